// Where the disk's bytes are: a picture of the disk, linked with the places in the file.

import { type App, type Current, type View } from "../app";
import { button, element, offset, percent, size } from "../format";
import { ask } from "../rpc";
import { MapModel } from "../widgets/map-model";
import { MapView } from "../widgets/map-view";
import { named } from "./panel";

export function mapView(app: App): View {
  const disk = new MapView("disk");
  const facts = named("map-facts", element("p", { class: "quiet" }));
  let model = new MapModel(0);
  let current: Current | undefined;

  async function read(shown: Current): Promise<void> {
    const { info, missing, files } = shown.opened;
    const backing = missing.find(({ role }) => role === "backing");
    const absent = backing && `nothing is stored here; the bytes are those of ${backing.name}, which is not open`;
    model = new MapModel(info.virtualSize, (name) => files.find((file) => file.name === name)?.size, absent);
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
      const stored = model.bytes[0] ?? 0;
      facts.textContent = `${model.count.toLocaleString("en")} ${model.count === 1 ? "extent" : "extents"}; ${percent(stored, info.virtualSize)} of the disk (${size(stored)}) is stored as it is.`;
    } catch (error) {
      if (app.current === shown) disk.fail((error as Error).message);
    }
  }

  /** Leads to bytes of the disk, where they are stored if that is known. */
  disk.onpick = (guest) => {
    const extent = model.extentAt(guest);
    if (!extent) return;
    const file = current?.opened.files.findIndex(({ name }) => name === extent.file) ?? -1;
    if (extent.offset === null || file < 0) return app.go({ view: "data", space: "disk", at: guest });
    app.go({ view: "data", space: file, at: extent.offset + guest - extent.start });
  };
  disk.onpoint = (at) => app.mark({ view: "map", space: "disk", at });

  const find = named("map-offset", element("input"));
  find.ariaLabel = "Offset of the disk";
  find.placeholder = "0x10000";
  const form = element("form", { class: "bar" }, element("label", { text: "Where is offset " }, find), element("button", { text: "Find" }));
  form.onsubmit = (event) => {
    event.preventDefault();
    const at = Number(find.value.trim());
    const wrong = find.value.trim() === "" || !Number.isSafeInteger(at) || at < 0 || at >= model.total;
    find.setCustomValidity(wrong ? `An offset below ${offset(model.total)}` : "");
    if (wrong) find.reportValidity();
    else disk.lookAt(at);
  };
  const bytesHere = button("Show these bytes", () => disk.pick(), "second");

  return {
    name: "map",
    title: "Map",
    element: element("div", {}, element("section", {}, element("h3", { text: "Map of the disk" }), facts, disk, form, bytesHere)),
    opened(next) {
      if (current === next) return;
      current = next;
      void read(next);
    },
    shown({ space, at }) {
      if (at !== undefined && space !== undefined && space === "disk" && at < model.end) disk.lookAt(at);
    },
  };
}
