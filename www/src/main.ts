// The page: takes an image, asks the worker, shows the answers.

import type { HeaderField, LayerInfo } from "diskette";

import { button, element, hex, size } from "./format";
import type { HexView } from "./hex-view";
import "./hex-view";
import type { MapView } from "./map-view";
import "./map-view";
import type { Ask, Missing, Opened } from "./protocol";
import { type InspectorError, ask } from "./rpc";
import { showChain, showCheck, showFacts, showFormats, showLists, showWarnings } from "./summary";

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

const status = $("status");
const results = $("results");
const fileInput = $<HTMLInputElement>("files");
const hexView = document.querySelector("hex-view") as HexView;
const mapView = document.querySelector("map-view") as MapView;

type Opening = Extract<Ask, { op: "open" | "open-url" }>;

const ADVICE: Record<string, string> = {
  invalid: "The file is cut off, damaged, or not an image of this format. Compare its size and checksum with where it came from.",
  corrupt: "The image contradicts itself. Keep it as it is, work on a copy, and see what qemu-img check says.",
  unsupported: "Rather than show something wrong, the inspector shows nothing. A newer version may know it.",
  denied: "The image needs another file. Choose all of them together: the image and those it names.",
  "too-large": "A page cannot count beyond 8 PiB. The diskette command line can.",
  "over-budget": "The image asks for more than a sound one needs. If you trust it, use the diskette command line.",
  "not-found": "There is nothing at this place. Check the name or address.",
  "permission-denied": "Reading it is not permitted. Check the rights of the file, or whether the server asks for a login.",
  io: "Is the file still there and unchanged?",
};

const SERVER_ADVICE = "A server must answer range requests and allow this page to read (CORS). Else download the file and choose it here.";

/** Answers of a server that are about the file and not about how it serves. */
const SAID = new Set(["not-found", "permission-denied"]);

/** Failures after which the file itself can still be read. */
const READABLE = new Set(["invalid", "corrupt", "unsupported", "too-large", "over-budget"]);

/** Counts openings, so that answers about an image before are not shown for this one. */
let generation = 0;
let current: { opening: Opening; opened: Opened; layer: number } | undefined;

function say(text: string): void {
  status.className = "";
  status.replaceChildren(element("p", { text }));
}

function complain(error: unknown, opening?: Opening): void {
  const { message, kind = "", offset = null, operation = null } = error as Partial<InspectorError> & { message: string };
  status.className = "failed";
  const parts: HTMLElement[] = [element("p", {}, element("strong", { text: "It could not be opened: " }), message)];
  const server = operation === "fetch" && !SAID.has(kind);
  const advice = server ? SERVER_ADVICE : ADVICE[kind];
  if (advice) parts.push(element("p", { text: advice }));
  if (opening && !server && READABLE.has(kind)) {
    const look = async (): Promise<void> => {
      await inspect({ ...opening, format: "raw" });
      if (offset !== null) reveal(() => hexView.show(0, offset, { offset, length: 4 }));
    };
    parts.push(button("Show its bytes", () => void look()));
  }
  status.replaceChildren(...parts);
}

async function inspect(opening: Opening): Promise<void> {
  const turn = ++generation;
  say("Opening…");
  results.hidden = true;
  document.body.classList.remove("opened");
  const begun = performance.now();
  let opened: Opened;
  try {
    opened = await ask(opening);
  } catch (error) {
    if (turn === generation) complain(error, opening.format ? undefined : opening);
    return;
  }
  if (turn !== generation) return;
  current = { opening, opened, layer: 0 };
  results.hidden = false;
  document.body.classList.add("opened");
  say(`${opened.name} opened in ${Math.max(1, Math.round(performance.now() - begun))} ms.`);
  show(opened);
  await Promise.all([showMap(turn, opened), showReport(turn)]);
}

function show(opened: Opened): void {
  const { info, files } = opened;
  document.title = `${opened.name.split("/").at(-1)} – diskette inspector`;
  $("title").textContent = opened.name;
  showFormats(info);
  showWarnings(opened, giveMissing);
  const spaces = files.map(({ name, size: bytes }, index) => {
    const shown = name.split(/[/\\]/).at(-1) || "file";
    return { space: index, label: shown, size: bytes };
  });
  const disk = { space: "disk" as const, label: `Disk of ${size(info.virtualSize)}`, size: info.virtualSize };
  hexView.setup([...spaces, disk], (space, offset, length) => ask({ op: "read", space, offset, length }));
  choose(0);
}

/** Shows an image of the chain. */
function choose(index: number): void {
  if (!current) return;
  const { opened } = current;
  const layer = opened.info.chain[index];
  if (!layer) return;
  current.layer = index;
  const file = fileOf(layer, index);
  showFacts(layer, opened.files[file]?.size);
  showChain(opened, index, choose);
  showHeader(layer, file);
  showLists(layer);
  hexView.show(file, 0);
}

/** Index of the file that an image of the chain is in. */
function fileOf(layer: LayerInfo, index: number): number {
  const found = current?.opened.files.findIndex(({ name }) => name === layer.filename) ?? -1;
  return index === 0 || found < 0 ? 0 : found;
}

let fieldsShown: { field: HeaderField; row: HTMLElement }[] = [];
let fieldsFile = 0;

function showHeader(layer: LayerInfo, file: number): void {
  fieldsFile = file;
  fieldsShown = layer.header.map((field) => {
    const go = button(field.name, () => lead(field), "link mono");
    const name = element("th", {}, go, element("span", { class: "doc", text: field.doc }));
    const place = element("span", { class: "doc", text: bytesOf(field) });
    const row = element("tr", {}, name, element("td", { class: "mono" }, field.text, place));
    name.scope = "row";
    return { field, row };
  });
  const none = element("tr", {}, Object.assign(element("td", { text: "A raw image has no header: every byte is the disk's own." }), { colSpan: 2 }));
  $("fields").replaceChildren(...(fieldsShown.length > 0 ? fieldsShown.map(({ row }) => row) : [none]));
}

function bytesOf({ offset, length }: HeaderField): string {
  return length === 1 ? `byte ${hex(offset, 2)}` : `bytes ${hex(offset, 2)}–${hex(offset + length - 1, 2)}`;
}

function lead(field: HeaderField): void {
  hexView.show(fieldsFile, field.offset, { offset: field.offset, length: field.length });
  markField(field.offset);
}

function markField(at: number): void {
  for (const { field, row } of fieldsShown) {
    const here = at >= field.offset && at < field.offset + field.length;
    row.classList.toggle("current", here);
    if (here) row.scrollIntoView({ block: "nearest" });
  }
}

hexView.onmove = (space, at) => {
  if (space === fieldsFile) markField(at);
};

async function showMap(turn: number, { info, missing }: Opened): Promise<void> {
  const backing = missing.find(({ role }) => role === "backing");
  mapView.sizeOf = (name) => current?.opened.files.find((file) => file.name === name)?.size;
  mapView.reset(info.virtualSize, backing && `nothing is stored here; the bytes are those of ${backing.name}, which is not open`);
  try {
    const { complete } = await ask({ op: "map" }, (page) => {
      if (turn !== generation) return;
      mapView.model.append(page);
      mapView.update();
    });
    if (turn === generation) mapView.update(complete);
  } catch (error) {
    if (turn === generation) mapView.fail((error as Error).message);
  }
}

async function showReport(turn: number): Promise<void> {
  showCheck(undefined, { size: 0, clusterSize: 1 }, () => {});
  const report = await ask({ op: "check" }).catch((error: Error) => error);
  const { info, files } = current?.opened ?? {};
  const file = { size: files?.[0]?.size ?? 0, clusterSize: info?.clusterSize ?? 1 };
  const go = (offset: number, length: number): void => reveal(() => hexView.show(0, offset, { offset, length }));
  if (turn === generation) showCheck(report, file, go);
}

/** Shows bytes and brings them into sight. */
function reveal(show: () => void): void {
  show();
  hexView.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

mapView.onpick = (extent, guest) => {
  const file = current?.opened.files.findIndex(({ name }) => name === extent.file) ?? -1;
  if (extent.offset === null || file < 0) return reveal(() => hexView.show("disk", guest));
  const at = extent.offset + guest - extent.start;
  reveal(() => hexView.show(file, at, { offset: extent.offset ?? at, length: extent.length }));
};

/** How to give files that the image names. */
function giveMissing(missing: Missing[]): HTMLElement {
  const opening = current?.opening;
  if (opening?.op === "open-url" && !opening.follow) {
    return button("Fetch it from the same server", () => void inspect({ ...opening, follow: true }));
  }
  const input = element("input");
  input.type = "file";
  input.multiple = true;
  input.ariaLabel = `Choose ${missing.map(({ name }) => name).join(", ")}`;
  input.onchange = () => {
    const before = opening?.op === "open" ? opening.files : [];
    if (input.files?.length) void inspect({ op: "open", files: [...before, ...input.files] });
  };
  return input;
}

fileInput.onchange = () => {
  if (fileInput.files?.length) void inspect({ op: "open", files: [...fileInput.files] });
};
$("url-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = $<HTMLInputElement>("url").value.trim();
  if (/^https?:\/\/./.test(url)) void inspect({ op: "open-url", url, follow: false });
  else complain({ message: "the address has to begin with http:// or https://.", kind: "" });
});
$("sample").onclick = async () => {
  try {
    const response = await fetch("./sample.qcow2");
    if (!response.ok) throw new Error(`the sample is missing (${response.status})`);
    await inspect({ op: "open", files: [new File([await response.blob()], "sample.qcow2")] });
  } catch (error) {
    complain(error);
  }
};

let dragging = 0;
const drop = (on: number): void => {
  dragging = Math.max(0, on);
  document.body.classList.toggle("dropping", dragging > 0);
};
document.addEventListener("dragenter", () => drop(dragging + 1));
document.addEventListener("dragleave", () => drop(dragging - 1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop(0);
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length > 0) void inspect({ op: "open", files });
});
