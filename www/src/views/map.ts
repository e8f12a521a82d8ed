// Where the disk's bytes are, and what is in the file: two pictures, linked. What the cursor is on in one is framed in the other.

import { type App, type Current, type View } from "../app";
import { explain } from "../advice";
import { button, element, grouped, offset, percent, size, wholeNumber } from "../format";
import { ask } from "../rpc";
import { FileModel } from "../widgets/file-model";
import { MapModel } from "../widgets/map-model";
import { MapView } from "../widgets/map-view";
import { Marks } from "../widgets/runs";
import { named } from "./panel";

export function mapView(app: App): View {
  const disk = named("disk-map", new MapView("disk"));
  const file = named("file-map", new MapView("file"));
  const facts = named("map-facts", element("p", { class: "quiet" }));
  const marked = named("map-bitmap", element("p", {}));
  const fileSection = element("section", {}, element("h3", { text: "Map of the file" }), file, button("Show these bytes", () => file.pick(), "second"));
  let model = new MapModel(0);
  let regions = new FileModel(0);
  let current: Current | undefined;
  /** The bitmap that is marked on the picture of the disk. */
  let bitmap: string | undefined;
  /** A place that a link leads to. */
  let linked: { space: "disk" | 0; at: number } | undefined;

  async function read(shown: Current): Promise<void> {
    const { info, missing, files } = shown.opened;
    const backing = missing.find(({ role }) => role === "backing");
    const absent = backing && `nothing is stored here; the bytes are those of ${backing.name}, which is not open`;
    model = new MapModel(info.virtualSize, (name) => files.find((open) => open.name === name)?.size, absent);
    disk.reset(model);
    facts.textContent = "";
    try {
      const { complete } = await ask("map", null, {
        part(page) {
          if (app.current !== shown) return;
          model.append(page);
          disk.update();
        },
      });
      if (app.current !== shown) return;
      disk.update(complete);
      if (linked?.space === "disk") disk.lookAt(Math.min(linked.at, model.end - 1));
      const stored = model.bytes[0] ?? 0;
      facts.textContent = `${grouped(model.count)} ${model.count === 1 ? "extent" : "extents"}; ${percent(stored, info.virtualSize)} of the disk (${size(stored)}) is stored as it is. Fragmentation: the order of the disk breaks off ${grouped(model.breaks)} ${model.breaks === 1 ? "time" : "times"} in the file.`;
    } catch (error) {
      if (app.current === shown) disk.fail(explain(error));
    }
  }

  async function readFile(shown: Current): Promise<void> {
    regions = new FileModel(shown.opened.files[0]?.size ?? 0);
    // Of a raw image the two pictures are the same.
    fileSection.hidden = shown.opened.info.format === "raw" || regions.total === 0;
    if (fileSection.hidden) return;
    file.reset(regions);
    try {
      await ask("regions", null, {
        part(page) {
          if (app.current !== shown) return;
          regions.append(page);
          file.update();
        },
      });
      if (app.current !== shown) return;
      file.update(true);
      if (linked?.space === 0 && linked.at < regions.end) file.lookAt(linked.at);
      linked = undefined;
    } catch (error) {
      if (app.current === shown) file.fail(explain(error));
    }
  }

  /** Marks what a bitmap holds dirty. */
  async function mark(name: string, shown: Current): Promise<void> {
    if (bitmap === name) return;
    bitmap = name;
    marked.replaceChildren(`Reading the bitmap ${name}…`);
    try {
      const ranges = await ask("bitmap", { name });
      if (app.current !== shown || bitmap !== name) return;
      const marks = new Marks(model.total);
      marks.append(ranges);
      disk.marks = marks;
      const clear = (): void => {
        bitmap = disk.marks = undefined;
        marked.replaceChildren();
      };
      marked.replaceChildren(`Dots mark what the bitmap ${name} holds dirty: ${size(marks.bytes[0] ?? 0)} in ${grouped(marks.count)} ranges. `, button("Take the dots away", clear, "link"));
    } catch (error) {
      if (app.current === shown) marked.replaceChildren(`The bitmap ${name} cannot be shown: ${explain(error)}`);
    }
  }

  /** Leads to bytes of the disk, where they are stored if that is known. */
  disk.onpick = (guest) => {
    const extent = model.extentAt(guest);
    if (!extent) return;
    const index = current?.opened.files.findIndex(({ name }) => name === extent.file) ?? -1;
    if (extent.offset === null || index < 0) return app.go({ view: "data", space: "disk", at: guest });
    app.go({ view: "data", space: index, at: extent.offset + guest - extent.start });
  };
  disk.onpoint = (at) => {
    app.mark({ view: "map", space: "disk", at });
    const extent = model.extentAt(at);
    const own = extent?.offset !== null && extent?.file === current?.opened.files[0]?.name;
    if (extent && own) file.highlight((extent.offset ?? 0) + at - extent.start, extent.length - (at - extent.start));
    else file.highlight(0, 0);
  };
  file.onpick = (at) => app.go({ view: "data", space: 0, at });
  /** One question at a time; of those that come meanwhile only the last is asked. */
  let asking = false;
  let wanted: number | undefined;
  file.onpoint = async (at) => {
    app.mark({ view: "map", space: 0, at });
    wanted = at;
    if (asking) return;
    asking = true;
    const shown = app.current;
    for (let next: number | undefined = wanted; next !== undefined && app.current === shown; next = wanted) {
      wanted = undefined;
      const guest = await ask("guest-of", { offset: next }).catch(() => null);
      if (wanted !== undefined || app.current !== shown) continue;
      if (guest) disk.highlight(guest.start, guest.length);
      else disk.highlight(0, 0);
      file.note(guest ? `It is at ${offset(guest.start)} on the disk.` : "");
    }
    asking = false;
  };

  const find = named("map-offset", element("input"));
  find.ariaLabel = "Offset of the disk";
  find.placeholder = "0x10000";
  const form = element("form", { class: "bar" }, element("label", { text: "Where is offset " }, find), element("button", { text: "Find" }), button("Show these bytes", () => disk.pick(), "second"));
  form.onsubmit = (event) => {
    event.preventDefault();
    const at = wholeNumber(find.value);
    const sound = at !== undefined && at < model.total;
    find.setCustomValidity(sound ? "" : `An offset below ${offset(model.total)}`);
    if (sound) disk.lookAt(at);
    else find.reportValidity();
  };

  return {
    name: "map",
    title: "Map",
    element: element("div", {}, element("section", {}, element("h3", { text: "Map of the disk" }), facts, marked, disk, form), fileSection),
    opened(next) {
      current = next;
      bitmap = undefined;
      marked.replaceChildren();
      void read(next).then(() => (app.current === next ? readFile(next) : undefined));
    },
    shown({ space, at, path }, shown) {
      if (path !== undefined) void mark(path, shown);
      if (at === undefined) return;
      // What has not arrived yet is looked at when it has.
      if (space === "disk" && at < model.end) disk.lookAt(at);
      else if (space === 0 && at < regions.end) file.lookAt(at);
      else if (space === "disk" || space === 0) linked = { space, at };
    },
  };
}
