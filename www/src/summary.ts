// What is known about an image, apart from its map and its bytes: facts, warnings, chain, lists, check.

import type { CheckReport, ImageInfo, LayerInfo, Property } from "diskette";

import { button, element, exactly, size } from "./format";
import type { Missing, Opened } from "./protocol";

const $ = (id: string): HTMLElement => document.getElementById(id) as HTMLElement;

/** Findings shown at most; the counts cover all. */
const MAX_FINDINGS = 200;

function fact(name: string, value: string, more = ""): HTMLElement {
  return element("div", { class: "fact" }, element("dt", { text: name }), element("dd", { text: value, title: more }));
}

export function showFacts(layer: LayerInfo, fileSize: number | undefined): void {
  const facts = [
    fact("Format", layer.format + (layer.probed ? "" : ", as named by the image above")),
    fact("Disk", size(layer.virtualSize), exactly(layer.virtualSize)),
  ];
  if (fileSize !== undefined) facts.push(fact("File", size(fileSize), exactly(fileSize)));
  if (layer.clusterSize !== null) facts.push(fact("Cluster", size(layer.clusterSize), exactly(layer.clusterSize)));
  if (layer.encryption) facts.push(fact("Encryption", layer.encryption));
  if (layer.backingFile) facts.push(fact("Backing file", named(layer.backingFile)));
  if (layer.dataFile) facts.push(fact("Data file", named(layer.dataFile)));
  const nested: HTMLElement[] = [];
  for (const [name, value] of Object.entries(layer.properties)) {
    // The bitmaps have a list of their own.
    if (name === "bitmaps") continue;
    if (typeof value === "object") nested.push(element("details", {}, element("summary", { text: name === "encrypt" ? "encryption in detail" : label(name) }), element("dl", {}, ...parts(value))));
    else facts.push(fact(label(name), text(value)));
  }
  $("facts").replaceChildren(...facts);
  $("nested").replaceChildren(...nested);
}

function label(name: string): string {
  return name.replaceAll("-", " ").replace(/\bl2\b/, "L2").replace(/\buuid\b/, "UUID");
}

/** What is in a property that has parts: a fact for each, and for each element of a list in it. */
function parts(value: Property[] | { [name: string]: Property }): HTMLElement[] {
  return Object.entries(value).flatMap(([name, part]) =>
    Array.isArray(part) ? part.map((element, index) => fact(`${label(name)} ${index}`, text(element))) : [fact(label(name), text(part))],
  );
}

function named({ name, format }: { name: string; format: string | null }): string {
  return format ? `${name} (${format})` : name;
}

function text(value: Property): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(text).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, part]) => `${label(name)} ${text(part)}`).join(", ");
  return String(value);
}

function warning(title: string, advice: string, ...acts: HTMLElement[]): HTMLElement {
  return element("div", { class: "warning" }, element("p", {}, element("strong", { text: title }), ` ${advice}`), ...acts);
}

/** What needs attention, and what to do about it. */
export function showWarnings({ info, missing }: Opened, give: (missing: Missing[]) => HTMLElement): void {
  const warnings: HTMLElement[] = [];
  const absent = missing.filter(({ given }) => !given);
  if (absent.length > 0) {
    const names = absent.map(({ name, role }) => `${name} (${role === "backing" ? "backing file" : "data file"})`).join(", ");
    const useless = missing.filter(({ given }) => given).map(({ name }) => name);
    const given = useless.length > 0 ? ` Without it ${useless.join(", ")} cannot be opened either.` : "";
    const advice = `The structure is shown; bytes that are in it are not.${given} Nothing that an image names is opened unless you give it.`;
    warnings.push(warning(`${names} is not open.`, advice, give(absent)));
  }
  for (const layer of info.chain) {
    const name = info.chain.length > 1 ? `${layer.filename}: ` : "";
    if (layer.corrupt) warnings.push(warning(`${name}Marked corrupt.`, "A writer found a contradiction. Work on a copy; qemu-img check -r all may repair it."));
    if (layer.dirty) warnings.push(warning(`${name}Not closed cleanly.`, "Refcounts may be wrong until qemu-img check -r all has run. Reading is safe."));
    if (layer.encryption) warnings.push(warning(`${name}Encrypted (${layer.encryption}).`, "Structure, map and check are shown; the bytes of the disk need the key."));
  }
  if (info.formats.filter(({ score }) => score > 1).length > 1) {
    warnings.push(warning("More than one format claims this file.", "Programs may disagree about what it is. Name the format wherever you open it."));
  }
  $("warnings").replaceChildren(...warnings);
}

export function showFormats(info: ImageInfo): void {
  const items = info.formats.map(({ format, score, evidence }) =>
    element("li", {}, element("strong", { text: format }), ` ${evidence} `, element("span", { class: "quiet", text: `(certainty ${score} of 100)` })),
  );
  $("formats").replaceChildren(...items);
}

/** The chain, top first; choosing an image shows its header and lists. */
export function showChain({ info, missing }: Opened, chosen: number, choose: (index: number) => void): void {
  const items = info.chain.map((layer, index) => {
    const name = layer.filename.split(/[/\\]/).at(-1) || "image";
    const pick = button(name, () => choose(index), "link");
    pick.title = layer.filename;
    if (index === chosen) pick.setAttribute("aria-current", "true");
    return element("li", {}, pick, ` ${layer.format}, ${size(layer.virtualSize)}`);
  });
  for (const { name, given } of missing) {
    items.push(element("li", { class: "missing", text: `${name} — ${given ? "given, but not opened without the next" : "not opened"}` }));
  }
  $("chain").replaceChildren(...items);
}

export function showLists(layer: LayerInfo): void {
  const fill = (id: string, items: HTMLElement[], none: string): void => {
    $(id).replaceChildren(...(items.length > 0 ? items : [element("li", { class: "quiet", text: none })]));
  };
  const item = (name: string, about: string): HTMLElement => element("li", {}, element("strong", { text: name }), ` ${about}`);
  fill("features", layer.features.map(({ kind, bit, name, known }) => item(name, `${kind} bit ${bit}${known ? "" : ", unknown to this program"}`)), "None is set.");
  fill(
    "snapshots",
    layer.snapshots.map(({ id, name, diskSize, vmStateSize, dateSeconds }) => {
      const date = new Date(dateSeconds * 1000).toISOString().replace("T", " ").slice(0, 16);
      return item(name || `number ${id}`, `${date} UTC, disk of ${size(diskSize)}${vmStateSize > 0 ? `, machine state of ${size(vmStateSize)}` : ""}`);
    }),
    "The image has none.",
  );
  fill(
    "bitmaps",
    layer.bitmaps.map(({ name, granularity, inUse, auto }) =>
      item(name, `one bit for ${size(granularity)}${auto ? ", recording" : ""}${inUse ? ", not saved by its last user" : ""}`),
    ),
    "The image has none.",
  );
}

type Go = (offset: number, length: number) => void;

/** The outcome in a word or two, beside the name of the image. */
function showVerdict(text: string, style: string): void {
  const verdict = $("verdict");
  [verdict.textContent, verdict.className, verdict.hidden] = [text, `badge ${style}`, text === ""];
}

/** The file that findings are about. */
interface Checked {
  size: number;
  clusterSize: number;
}

/** The outcome of the check; places in a finding lead to their bytes. */
export function showCheck(report: CheckReport | Error | undefined, file: Checked, go: Go): void {
  const summary = $("check-summary");
  const advice = $("check-advice");
  const findings = $("findings");
  findings.replaceChildren();
  findings.removeAttribute("tabindex");
  [summary.className, advice.textContent] = ["", ""];
  if (report === undefined) {
    summary.textContent = "Checking the metadata…";
    showVerdict("checking…", "");
    return;
  }
  if (report instanceof Error) {
    const unsupported = (report as { kind?: string }).kind === "unsupported";
    summary.textContent = unsupported ? "This format has no metadata to check." : report.message;
    showVerdict(unsupported ? "" : "could not be checked", "bad");
    return;
  }
  const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = report;
  const count = (number: number, one: string, many: string): string => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
  const problems = [
    [corruptions, count(corruptions, "corruption", "corruptions")] as const,
    [leaks, count(leaks, "leaked cluster", "leaked clusters")] as const,
    [checkErrors, count(checkErrors, "place that could not be checked", "places that could not be checked")] as const,
  ].filter(([number]) => number > 0);
  summary.className = problems.length === 0 ? "good" : corruptions > 0 ? "bad" : "";
  showVerdict(problems[0]?.[1] ?? "no errors", problems.length === 0 ? "good" : corruptions > 0 ? "bad" : "warn");
  summary.textContent =
    problems.length === 0
      ? `No errors. ${count(allocatedClusters, "cluster is", "clusters are")} allocated of ${totalClusters.toLocaleString("en")}, ${fragmentedClusters} fragmented, ${compressedClusters} compressed.`
      : `${problems.map(([, text]) => text).join(", ")}.`;
  if (corruptions > 0) advice.textContent = "Data may be lost or mixed up. Copy the file first; then qemu-img check -r all may repair the copy.";
  else if (leaks > 0) advice.textContent = "Leaks waste space and do no other harm. qemu-img check -r leaks gives the space back.";
  findings.replaceChildren(...report.findings.slice(0, MAX_FINDINGS).map((finding) => element("li", {}, ...linked(finding.text, file, go))));
  // The list scrolls, and may have nothing in it that takes the focus.
  if (report.findings.length > 0) findings.tabIndex = 0;
  const rest = corruptions + leaks + checkErrors - Math.min(MAX_FINDINGS, report.findings.length);
  if (rest > 0) findings.append(element("li", { class: "quiet", text: `and ${rest.toLocaleString("en")} more` }));
}

/** A text in which offsets and clusters that are in the file are buttons. */
function linked(text: string, { size, clusterSize }: Checked, go: Go): (Node | string)[] {
  return text.split(/((?<!size )\b0x[0-9a-f]+\b|\bcluster \d+\b)/i).map((part, index) => {
    if (index % 2 === 0) return part;
    const cluster = /^cluster (\d+)$/i.exec(part);
    const [at, length] = cluster ? [Number(cluster[1]) * clusterSize, clusterSize] : [Number(part), 8];
    return at < size ? button(part, () => go(at, length), "link") : part;
  });
}
