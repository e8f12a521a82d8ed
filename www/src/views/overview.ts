// What is known about an image at first sight: facts, what needs attention, what it is recognised as, its chain.

import type { LayerInfo, Property } from "diskette";

import { type App, type Current, type View, fileOf, layerOf } from "../app";
import { button, element, exactly, size } from "../format";
import { given } from "../openers";
import { baseName } from "../paths";
import type { Missing, Opened } from "../protocol";
import { fill, named, section, warning } from "./panel";
import { reasons } from "./verdict";

function fact(name: string, value: string, more = ""): HTMLElement {
  return element("div", { class: "fact" }, element("dt", { text: name }), element("dd", { text: value, title: more }));
}

function label(name: string): string {
  return name.replaceAll("-", " ").replace(/\bl2\b/, "L2").replace(/\buuid\b/, "UUID");
}

function text(value: Property): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(text).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, part]) => `${label(name)} ${text(part)}`).join(", ");
  return String(value);
}

/** What is in a property that has parts: a fact for each, and for each element of a list in it. */
function parts(value: Property[] | { [name: string]: Property }): HTMLElement[] {
  return Object.entries(value).flatMap(([name, part]) =>
    Array.isArray(part) ? part.map((element, index) => fact(`${label(name)} ${index}`, text(element))) : [fact(label(name), text(part))],
  );
}

function reference({ name, format }: { name: string; format: string | null }): string {
  return format ? `${name} (${format})` : name;
}

function showFacts(facts: HTMLElement, nested: HTMLElement, layer: LayerInfo, fileSize: number | undefined): void {
  const all = [
    fact("Format", layer.format + (layer.probed ? "" : ", as named by the image above")),
    fact("Disk", size(layer.virtualSize), exactly(layer.virtualSize)),
  ];
  if (fileSize !== undefined) all.push(fact("File", size(fileSize), exactly(fileSize)));
  if (layer.clusterSize !== null) all.push(fact("Cluster", size(layer.clusterSize), exactly(layer.clusterSize)));
  if (layer.encryption) all.push(fact("Encryption", layer.encryption));
  if (layer.backingFile) all.push(fact("Backing file", reference(layer.backingFile)));
  if (layer.dataFile) all.push(fact("Data file", reference(layer.dataFile)));
  const deeper: HTMLElement[] = [];
  for (const [name, value] of Object.entries(layer.properties)) {
    // The bitmaps have a view of their own.
    if (name === "bitmaps") continue;
    if (typeof value === "object") {
      const summary = element("summary", { text: name === "encrypt" ? "encryption in detail" : label(name) });
      deeper.push(element("details", {}, summary, element("dl", {}, ...parts(value))));
    } else all.push(fact(label(name), text(value)));
  }
  facts.replaceChildren(...all);
  nested.replaceChildren(...deeper);
}

export function overviewView(app: App): View {
  const warnings = named("warnings", element("div"));
  const facts = named("facts", element("dl"));
  const nested = named("nested", element("div"));
  const why = named("reasons", element("ul", { class: "plain" }));
  const formats = named("formats", element("ul", { class: "plain" }));
  const chain = named("chain", element("ol", { class: "chain" }));
  const features = named("features", element("ul", { class: "plain" }));
  const panel = element(
    "div",
    {},
    named("summary", element("section", {}, warnings, facts, nested)),
    element("div", { class: "pair" }, section("Is it safe, is it whole?", why), section("Chain", chain)),
    element("div", { class: "pair" }, section("Recognised as", formats), section("Feature bits", features)),
  );

  /** How to give files that the image names. */
  function giveMissing({ opening }: Current, missing: Missing[]): HTMLElement {
    if (opening.from === "url") {
      if (!opening.follow) return button("Fetch it from the same server", () => void app.open({ ...opening, follow: true }));
      return element("p", { text: "It is not on the same server. Download the files and choose them together." });
    }
    const input = element("input");
    input.type = "file";
    input.multiple = true;
    input.ariaLabel = `Choose ${missing.map(({ name }) => name).join(", ")}`;
    input.onchange = () => {
      const more = given(input.files ?? []);
      if (more.length > 0) void app.open({ ...opening, files: [...opening.files, ...more] });
    };
    return input;
  }

  /** Asks for the passphrase of an encrypted image. */
  function askPassphrase(current: Current): HTMLElement {
    const input = element("input");
    input.type = "password";
    input.autocomplete = "off";
    input.ariaLabel = "Passphrase";
    input.placeholder = "Passphrase";
    const form = element("form", { class: "unlock" }, input, element("button", { text: "Unlock" }));
    form.onsubmit = (event) => {
      event.preventDefault();
      const { opening } = current;
      if (input.value !== "") void app.open({ ...opening, wish: { ...opening.wish, passphrase: input.value } });
    };
    return form;
  }

  /** What needs attention, and what to do about it. */
  function showWarnings(current: Current): void {
    const { info, missing } = current.opened;
    const all: HTMLElement[] = [];
    const absent = missing.filter(({ given }) => !given);
    if (absent.length > 0) {
      const names = absent.map(({ name, role }) => `${name} (${role === "backing" ? "backing file" : "data file"})`).join(", ");
      const useless = missing.filter(({ given }) => given).map(({ name }) => name);
      const given = useless.length > 0 ? ` Without it ${useless.join(", ")} cannot be opened either.` : "";
      const advice = `The structure is shown; bytes that are in it are not.${given} Nothing that an image names is opened unless you give it.`;
      all.push(warning(`${names} is not open.`, advice, giveMissing(current, absent)));
    }
    info.chain.forEach((layer, index) => {
      const name = info.chain.length > 1 ? `${layer.filename}: ` : "";
      if (layer.corrupt) all.push(warning(`${name}Marked corrupt.`, "A writer found a contradiction. Work on a copy; Repair may put it right."));
      if (layer.dirty) all.push(warning(`${name}Not closed cleanly.`, "Refcounts may be wrong until it is repaired. Reading is safe."));
      if (layer.encryption && !(index === 0 && current.opening.wish.passphrase)) {
        const advice = "Structure, map and check are shown; the bytes of the disk need the passphrase. It stays in this tab.";
        all.push(warning(`${name}Encrypted (${layer.encryption}).`, advice, ...(index === 0 ? [askPassphrase(current)] : [])));
      }
    });
    if (info.formats.filter(({ score }) => score > 1).length > 1) {
      all.push(warning("More than one format claims this file.", "Programs may disagree about what it is. Name the format wherever you open it."));
    }
    warnings.replaceChildren(...all);
  }

  /** The chain, top first, each image over the one that shows through it; choosing one shows its facts. */
  function showChain({ info, missing, files }: Opened, chosen: number): void {
    const items = info.chain.map((layer, index) => {
      const pick = button(baseName(layer.filename), () => app.choose(index), "link");
      pick.title = layer.filename;
      if (index === chosen) pick.setAttribute("aria-current", "true");
      const stored = files.find(({ name }) => name === layer.filename)?.size;
      const about = `${layer.format}, disk of ${size(layer.virtualSize)}${stored === undefined ? "" : `, file of ${size(stored)}`}`;
      const item = element("li", { class: index === chosen ? "chosen" : "" }, pick, element("span", { class: "doc", text: about }));
      if (layer.dataFile) item.append(element("span", { class: "doc", text: `its data is in ${layer.dataFile.name}` }));
      return item;
    });
    for (const { name, given } of missing) {
      items.push(element("li", { class: "missing", text: `${name} — ${given ? "given, but not opened without the next" : "not opened"}` }));
    }
    chain.replaceChildren(...items);
  }

  /** Shows the image of the chain that is looked at. */
  function show(current: Current): void {
    const { opened, layer: index } = current;
    const layer = layerOf(current);
    showFacts(facts, nested, layer, opened.files[fileOf(current, index)]?.size);
    showWarnings(current);
    showChain(opened, index);
    fill(why, reasons(current), "Nothing speaks against it.");
    formats.replaceChildren(
      ...opened.info.formats.map(({ format, score, evidence }) =>
        element("li", {}, element("strong", { text: format }), ` ${evidence} `, element("span", { class: "quiet", text: `(certainty ${score} of 100)` })),
      ),
    );
    const bits = layer.features.map(({ kind, bit, name, known }) =>
      element("li", {}, element("strong", { text: name }), ` ${kind} bit ${bit}${known ? "" : ", unknown to this program"}`),
    );
    fill(features, bits, "None is set.");
  }

  return {
    name: "overview",
    title: "Overview",
    element: panel,
    opened: show,
    chosen: show,
  };
}
