// Internal snapshots and bitmaps: what there is, and looking through any of them.

import type { Bitmap, Snapshot } from "diskette";

import { type App, type Current, type View, layerOf } from "../app";
import { button, element, size } from "../format";
import { fill, named, section, warning } from "./panel";

function snapshotText({ diskSize, vmStateSize, dateSeconds }: Snapshot): string {
  const date = new Date(dateSeconds * 1000).toISOString().replace("T", " ").slice(0, 16);
  return `${date} UTC, disk of ${size(diskSize)}${vmStateSize > 0 ? `, machine state of ${size(vmStateSize)}` : ""}`;
}

function bitmapText({ granularity, inUse, auto }: Bitmap): string {
  return `one bit for ${size(granularity)}${auto ? ", recording" : ""}${inUse ? ", not saved by its last user" : ""}`;
}

export function snapshotsView(app: App): View {
  const snapshots = named("snapshots", element("ul", { class: "plain rows-of" }));
  const bitmaps = named("bitmaps", element("ul", { class: "plain rows-of" }));
  const banner = document.getElementById("banner") as HTMLElement;

  const look = ({ opening }: Current, snapshot: string | undefined): void => {
    const { snapshot: _, ...wish } = opening.wish;
    void app.open({ ...opening, wish: snapshot === undefined ? wish : { ...wish, snapshot } });
  };

  function row(name: string, about: string, act: HTMLElement | null): HTMLElement {
    return element("li", {}, element("div", {}, element("strong", { text: name }), element("span", { class: "doc", text: about })), act ?? "");
  }

  /** Says on every view that it is not the present that is looked at. */
  function showBanner(current: Current): void {
    const { snapshot } = current.opening.wish;
    const about = current.opened.info.snapshots.find(({ id }) => id === snapshot);
    const title = snapshot === undefined ? "" : about?.name || `number ${snapshot}`;
    const advice = "Map, data, contents, compare and convert show that; structure and check are those of the file.";
    const notice = warning(`The disk as it was at “${title}”.`, advice, button("Back to the present", () => look(current, undefined), "second"));
    banner.replaceChildren(...(snapshot === undefined ? [] : [notice]));
  }

  /** Shows the image of the chain that is looked at. */
  function show(current: Current): void {
    const layer = layerOf(current);
    const top = current.layer === 0;
    const shown = current.opening.wish.snapshot;
    fill(
      snapshots,
      layer.snapshots.map((snapshot) => {
        const name = snapshot.name || `number ${snapshot.id}`;
        const act = !top ? null : snapshot.id === shown ? element("span", { class: "quiet", text: "is shown" }) : button("Look through", () => look(current, snapshot.id), "second");
        if (act instanceof HTMLButtonElement) act.ariaLabel = `Look through: ${name}`;
        return row(name, snapshotText(snapshot), act);
      }),
      "The image has none.",
    );
    fill(
      bitmaps,
      layer.bitmaps.map((bitmap) => {
        const act = button("Show on the map", () => app.go({ view: "map", path: bitmap.name }), "second");
        act.ariaLabel = `Show on the map: ${bitmap.name}`;
        return row(bitmap.name, bitmapText(bitmap), top && !bitmap.inUse ? act : null);
      }),
      "The image has none.",
    );
    showBanner(current);
  }

  return {
    name: "snapshots",
    title: "Snapshots",
    element: element("div", { class: "pair" }, section("Snapshots", snapshots), section("Bitmaps", bitmaps)),
    opened: show,
    chosen: show,
  };
}
