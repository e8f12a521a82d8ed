// Internal snapshots and bitmaps of the image.

import type { Bitmap, Snapshot } from "diskette";

import { type App, type View, layerOf } from "../app";
import { element, size } from "../format";
import { fill, named, section } from "./panel";

function snapshotText({ diskSize, vmStateSize, dateSeconds }: Snapshot): string {
  const date = new Date(dateSeconds * 1000).toISOString().replace("T", " ").slice(0, 16);
  return `${date} UTC, disk of ${size(diskSize)}${vmStateSize > 0 ? `, machine state of ${size(vmStateSize)}` : ""}`;
}

function bitmapText({ granularity, inUse, auto }: Bitmap): string {
  return `one bit for ${size(granularity)}${auto ? ", recording" : ""}${inUse ? ", not saved by its last user" : ""}`;
}

export function snapshotsView(_app: App): View {
  const snapshots = named("snapshots", element("ul", { class: "plain" }));
  const bitmaps = named("bitmaps", element("ul", { class: "plain" }));
  const item = (name: string, about: string): HTMLElement => element("li", {}, element("strong", { text: name }), ` ${about}`);
  return {
    name: "snapshots",
    title: "Snapshots",
    element: element("div", { class: "pair" }, section("Snapshots", snapshots), section("Bitmaps", bitmaps)),
    opened(current) {
      const layer = layerOf(current);
      fill(snapshots, layer.snapshots.map((snapshot) => item(snapshot.name || `number ${snapshot.id}`, snapshotText(snapshot))), "The image has none.");
      fill(bitmaps, layer.bitmaps.map((bitmap) => item(bitmap.name, bitmapText(bitmap))), "The image has none.");
    },
  };
}
