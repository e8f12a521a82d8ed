// What is written in the file besides the disk: the header, field by field, beside its bytes.

import type { HeaderField } from "diskette";

import { type App, type View, baseName, fileOf, layerOf } from "../app";
import { button, element, hex } from "../format";
import { ask } from "../rpc";
import { HexView } from "../widgets/hex-view";
import { named } from "./panel";

export function structureView(app: App): View {
  const rows = named("fields", element("tbody"));
  const bytes = new HexView();
  let shown: { field: HeaderField; row: HTMLElement }[] = [];
  let file = 0;

  function place({ offset, length }: HeaderField): string {
    return length === 1 ? `byte ${hex(offset, 2)}` : `bytes ${hex(offset, 2)}–${hex(offset + length - 1, 2)}`;
  }

  function markField(at: number): void {
    for (const { field, row } of shown) {
      const here = at >= field.offset && at < field.offset + field.length;
      row.classList.toggle("current", here);
      if (here) row.scrollIntoView({ block: "nearest" });
    }
  }

  function lead(field: HeaderField): void {
    bytes.show(file, field.offset, { offset: field.offset, length: field.length });
    markField(field.offset);
  }

  bytes.onmove = (_, at) => markField(at);
  const head = (text: string): HTMLElement => Object.assign(element("th", { text }), { scope: "col" });
  const table = element("table", {}, element("thead", {}, element("tr", {}, head("Field"), head("Value and place"))), rows);
  return {
    name: "structure",
    title: "Structure",
    element: element(
      "div",
      { class: "workbench" },
      named("header-section", element("section", {}, element("h3", { text: "Header" }), element("div", { class: "scroll" }, table))),
      element("section", {}, element("h3", { text: "Bytes" }), bytes),
    ),
    opened(current) {
      const layer = layerOf(current);
      file = fileOf(current, current.layer);
      shown = layer.header.map((field) => {
        const go = button(field.name, () => lead(field), "link mono");
        const name = element("th", {}, go, element("span", { class: "doc", text: field.doc }));
        name.scope = "row";
        const row = element("tr", {}, name, element("td", { class: "mono" }, field.text, element("span", { class: "doc", text: place(field) })));
        return { field, row };
      });
      const none = element("tr", {}, Object.assign(element("td", { text: "A raw image has no header: every byte is the disk's own." }), { colSpan: 2 }));
      rows.replaceChildren(...(shown.length > 0 ? shown.map(({ row }) => row) : [none]));
      const { name, size } = current.opened.files[file] ?? { name: "file", size: 0 };
      bytes.setup([{ space: file, label: baseName(name), size }], (space, offset, length) => ask("read", { space, offset, length }));
    },
  };
}
