// Every table of the image as a tree down to single fields and bits, beside the bytes that they are.

import type { Part, Parts } from "diskette/inspector";

import { type App, type Current, type View, fileOf, layerOf } from "../app";
import { explain } from "../advice";
import { button, element, exactly, grouped, offset, size, wholeNumber } from "../format";
import { baseName } from "../paths";
import { ask } from "../rpc";
import { HexView } from "../widgets/hex-view";
import { TreeView } from "../widgets/tree-view";
import { named } from "./panel";

/** Of an image further down the chain only the header is known. */
function headerOf(current: Current): Parts {
  const parts = layerOf(current).header.map(
    ({ name, offset: at, length, text, doc }): Part => ({ name, kind: "field", file: "file", offset: at, length, bits: null, value: text, doc, problem: null, children: 0, target: null, guest: null }),
  );
  return { total: parts.length, parts };
}

export function structureView(app: App): View {
  const tree = named("structure-tree", new TreeView<Part>());
  tree.ariaLabel = "Structure of the image";
  const about = named("part", element("div", {}));
  about.setAttribute("aria-live", "polite");
  const bytes = new HexView();
  let current: Current | undefined;
  let ready: Promise<void> = Promise.resolve();

  /** The open file that a part is in. */
  function fileIndex(shown: Current, file: Part["file"]): number {
    if (file !== "data-file") return fileOf(shown, shown.layer);
    const name = layerOf(shown).dataFile?.name;
    return shown.opened.files.findIndex((open) => name !== undefined && baseName(open.name) === baseName(name));
  }

  function show(part: Part, path: number[]): void {
    if (!current) return;
    app.mark({ view: "structure", path: path.join(".") });
    const file = fileIndex(current, part.file);
    if (file >= 0) bytes.show(file, part.offset, { offset: part.offset, length: part.length });
    const facts: [string, Node | string][] = [["Place", `${offset(part.offset)}, ${exactly(part.length)}`]];
    if (part.bits) facts.push(["Bits", part.bits.count === 1 ? `bit ${part.bits.low}` : `bits ${part.bits.low} to ${part.bits.low + part.bits.count - 1}`]);
    if (part.value !== null) facts.push(["Value", element("span", { class: "mono", text: part.value })]);
    const { target, guest } = part;
    if (target) {
      const there = fileIndex(current, target.file);
      const place = `${offset(target.offset)}, ${size(target.length)}`;
      const lead = (): void => app.go({ view: "data", space: there, at: target.offset, length: target.length });
      facts.push(["Points to", there < 0 ? `${place} of a file that is not open` : button(place, lead, "link mono")]);
    }
    if (guest) facts.push(["Of the disk", button(`${offset(guest.start)}, ${size(guest.length)}`, () => app.go({ view: "map", space: "disk", at: guest.start }), "link mono")]);
    const list = element("dl", { class: "part" }, ...facts.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", {}, value))));
    const entry = element("input");
    entry.ariaLabel = "Number of an entry";
    const jump = element("form", { class: "bar" }, element("label", { text: `Go to one of ${grouped(part.children)}: ` }, entry), element("button", { text: "Go" }));
    jump.onsubmit = (event) => {
      event.preventDefault();
      const index = wholeNumber(entry.value);
      if (index !== undefined && index < part.children) void tree.reveal([...path, index]);
    };
    about.replaceChildren(
      element("h3", { text: part.name }),
      ...(part.problem === null ? [] : [element("p", { class: "bad", text: part.problem })]),
      element("p", { text: part.doc }),
      list,
      ...(part.children > 64 ? [jump] : []),
    );
  }

  /** The smallest part that is loaded and has a byte. */
  function partAt(file: number, at: number): number[] | undefined {
    if (!current) return undefined;
    let best: { part: Part; path: number[] } | undefined;
    for (const { item: part, path } of tree.loaded()) {
      if (part.kind === "bits" || at < part.offset || at >= part.offset + part.length || fileIndex(current, part.file) !== file) continue;
      if (!best || part.length < best.part.length || (part.length === best.part.length && path.length > best.path.length)) best = { part, path };
    }
    return best?.path;
  }

  bytes.onmove = (space, at) => {
    const path = partAt(space as number, at);
    if (!path) return;
    const cursor = bytes.selection;
    void tree.reveal(path).then(() => {
      bytes.show(space, cursor.offset);
      bytes.focusBytes();
    });
  };
  tree.onchoose = show;
  tree.onfail = (error) => about.replaceChildren(element("p", { class: "bad", text: explain(error) }));

  const source = {
    async load(path: number[], from: number, count: number) {
      if (!current) return { total: 0, items: [] };
      const { total, parts } = current.layer === 0 ? await ask("structure", { path, from, count }) : headerOf(current);
      return { total, items: parts };
    },
    children: (part: Part) => part.children,
    label({ name, value, problem, children }: Part, index: number): (Node | string)[] {
      const parts: (Node | string)[] = [element("span", { class: "name", text: name === "" ? String(index) : name })];
      if (value !== null) parts.push(element("span", { class: "value mono", text: value.length > 60 ? `${value.slice(0, 60)}…` : value }));
      else if (children > 0) parts.push(element("span", { class: "value", text: grouped(children) }));
      if (problem !== null) parts.push(element("span", { class: "bad", text: "✗ wrong" }));
      return parts;
    },
  };

  /** Shows the image of the chain that is looked at. */
  function showLayer(next: Current): void {
    current = next;
    const spaces = next.opened.files.map(({ name, size: total }, index) => ({ space: index, label: baseName(name), size: total }));
    bytes.setup(spaces, (space, at, length) => ask("read", { space, offset: at, length }));
    about.replaceChildren();
    ready = tree.show(source);
  }

  return {
    name: "structure",
    title: "Structure",
    element: element(
      "div",
      { class: "workbench" },
      named("tree-section", element("section", {}, element("h3", { text: "In the file" }), element("div", { class: "scroll" }, tree))),
      element("section", {}, about, bytes),
    ),
    opened: showLayer,
    chosen: showLayer,
    shown({ path }) {
      const way = path?.split(".").map(Number) ?? [];
      if (way.length > 0 && way.every((index) => Number.isSafeInteger(index) && index >= 0)) void ready.then(() => tree.reveal(way));
    },
  };
}
