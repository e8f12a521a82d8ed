// The page: takes an image, asks the worker, shows the answers.

import type { CheckReport, ImageInfo, LayerInfo, Property } from "diskette";

import { element, hex, size } from "./format";
import type { HexView } from "./hex-view";
import "./hex-view";
import type { MapView } from "./map-view";
import "./map-view";
import type { Opened } from "./protocol";
import { ask } from "./rpc";

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

const status = $("status");
const results = $("results");
const hexView = document.querySelector("hex-view") as HexView;
const mapView = document.querySelector("map-view") as MapView;

const ADVICE: Record<string, string> = {
  invalid: "The file is damaged or is not a disk image of this format.",
  corrupt: "The image contradicts itself. Keep the file as it is and work on a copy.",
  unsupported: "This inspector does not understand a part of the image, so it shows nothing rather than something wrong.",
  denied: "The image needs another file. Choose all files together: the image first, then those it names.",
  io: "The bytes could not be read. Is the file still there, and does the server allow this page to read it (CORS)?",
};

function say(text: string, isError = false): void {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function inspect(opening: () => Promise<Opened>): Promise<void> {
  say("Opening…");
  results.hidden = true;
  const begun = performance.now();
  try {
    const opened = await opening();
    show(opened);
    say(`${opened.name}: opened in ${Math.round(performance.now() - begun)} ms.`);
    const { virtualSize } = opened.info;
    hexView.setup(opened.fileSize, virtualSize, (space, offset, length) => ask({ op: "read", space, offset, length }));
    mapView.setup(await ask({ op: "map" }), virtualSize);
    showCheck(await ask({ op: "check" }).catch((error: Error) => error));
  } catch (error) {
    const { message, kind = "" } = error as { message: string; kind?: string };
    say([message, ADVICE[kind]].filter(Boolean).join("\n"), true);
  }
}

function row(name: string, value: Node | string): HTMLElement {
  return element("div", { class: "fact" }, element("dt", { text: name }), element("dd", {}, value));
}

function show({ name, fileSize, info, missing }: Opened): void {
  results.hidden = false;
  $("title").textContent = name;
  const facts = $("facts");
  facts.replaceChildren(
    row("Format", `${info.format}${info.probed ? " (recognised)" : ""}`),
    row("Disk", `${size(info.virtualSize)} (${info.virtualSize} bytes)`),
    row("File", `${size(fileSize)} (${fileSize} bytes)`),
  );
  if (info.clusterSize) facts.append(row("Cluster", size(info.clusterSize)));
  if (info.encryption) facts.append(row("Encryption", info.encryption));
  if (info.dirty) facts.append(row("State", "not closed cleanly"));
  if (info.corrupt) facts.append(row("State", "marked corrupt"));
  for (const [property, value] of Object.entries(info.properties)) facts.append(row(property.replaceAll("-", " "), text(value)));
  $("formats").replaceChildren(
    ...info.formats.map(({ format, score, evidence }) => element("li", { text: `${format} (${score} %): ${evidence}` })),
  );
  showChain(info, missing);
  showHeader(info);
  showLists(info);
}

function text(value: Property): string {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function showChain(info: ImageInfo, missing: string[]): void {
  const items = info.chain.map((layer: LayerInfo) =>
    element("li", { text: `${layer.filename || "image"} — ${layer.format}, ${size(layer.virtualSize)}` }),
  );
  for (const name of missing) items.push(element("li", { class: "missing", text: `${name} — not opened; bytes in it cannot be shown` }));
  $("chain").replaceChildren(...items);
}

function showHeader(info: ImageInfo): void {
  const rows = info.header.map((field) => {
    const button = element("button", { class: "field", text: field.name });
    button.onclick = () => hexView.show("file", field.offset, { offset: field.offset, length: field.length });
    const bytes = `${hex(field.offset, 2)}–${hex(field.offset + field.length - 1, 2)}`;
    return element(
      "tr",
      {},
      element("th", { class: "name" }, button),
      element("td", { class: "mono", text: bytes }),
      element("td", { class: "mono", text: field.text }),
      element("td", { text: field.doc }),
    );
  });
  $("fields").replaceChildren(...rows);
  $("header-section").hidden = rows.length === 0;
}

function showLists(info: ImageInfo): void {
  const lists: [string, string[]][] = [
    ["features", info.features.map(({ kind, bit, name, known }) => `${kind} bit ${bit}: ${name}${known ? "" : " (unknown)"}`)],
    ["snapshots", info.snapshots.map(({ id, name, diskSize }) => `${id}: ${name}, disk of ${size(diskSize)}`)],
    ["bitmaps", info.bitmaps.map(({ name, granularity, inUse }) => `${name}: one bit for ${size(granularity)}${inUse ? ", in use" : ""}`)],
  ];
  for (const [id, items] of lists) {
    $(id).replaceChildren(...(items.length > 0 ? items : ["none"]).map((item) => element("li", { text: item })));
  }
}

function showCheck(report: CheckReport | Error): void {
  const summary = $("check-summary");
  const findings = $("findings");
  findings.replaceChildren();
  if (report instanceof Error) {
    summary.textContent = report.message;
    return;
  }
  const { corruptions, leaks, checkErrors } = report;
  summary.textContent =
    corruptions + leaks + checkErrors === 0
      ? `No errors. ${report.allocatedClusters} of ${report.totalClusters} clusters are allocated, ${report.fragmentedClusters} fragmented, ${report.compressedClusters} compressed.`
      : `${corruptions} errors, ${leaks} leaked clusters, ${checkErrors} places that could not be looked at.`;
  findings.replaceChildren(...report.findings.slice(0, 200).map((finding) => element("li", { text: finding.text })));
}

mapView.onpick = (extent, guest) => {
  if (extent.offset !== null && extent.depth === 0 && !extent.compressed) hexView.show("file", extent.offset, { offset: extent.offset, length: 16 });
  else hexView.show("guest", guest, { offset: guest, length: 16 });
};

const files = $<HTMLInputElement>("files");
files.onchange = () => {
  if (files.files?.length) void inspect(() => ask({ op: "open", files: [...(files.files ?? [])] }));
};
$<HTMLFormElement>("url-form").onsubmit = (event) => {
  event.preventDefault();
  const url = $<HTMLInputElement>("url").value.trim();
  if (url) void inspect(() => ask({ op: "open-url", url }));
};
$("sample").onclick = () => {
  const opening = async (): Promise<Opened> => {
    const response = await fetch("sample.qcow2");
    if (!response.ok) throw new Error(`the sample could not be loaded (${response.status})`);
    return ask({ op: "open", files: [new File([await response.blob()], "sample.qcow2")] });
  };
  void inspect(opening);
};
for (const type of ["dragover", "drop"] as const) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
    const dropped = type === "drop" ? [...(event.dataTransfer?.files ?? [])] : [];
    if (dropped.length > 0) void inspect(() => ask({ op: "open", files: dropped }));
  });
}
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
