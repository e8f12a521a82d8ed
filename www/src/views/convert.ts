// Copying the disk into a new image: raw or qcow2, to a file.

import type { Progress } from "diskette/full";

import { type App, type Current, type View } from "../app";
import { explain } from "../advice";
import { button, element, size } from "../format";
import { baseName } from "../paths";
import type { ConvertOptions } from "../protocol";
import { ask } from "../rpc";
import { askWhere, canPick, saveTo } from "../saving";
import { named, section, statusLine } from "./panel";

let jobs = 0;

function choice(id: string, label: string, options: [value: string, text: string][]): { field: HTMLElement; select: HTMLSelectElement } {
  const select = named(id, element("select"));
  select.append(...options.map(([value, text]) => new Option(text, value)));
  return { field: element("label", { class: "field" }, element("span", { text: label }), select), select };
}

export function convertView(app: App): View {
  const format = choice("convert-format", "Format", [
    ["qcow2", "qcow2"],
    ["compressed", "qcow2, compressed"],
    ["raw", "raw, with holes where there are zeroes"],
  ]);
  const cluster = choice("convert-cluster", "Cluster size", [
    ["65536", "64 KiB"],
    ["4096", "4 KiB"],
    ["131072", "128 KiB"],
    ["1048576", "1 MiB"],
    ["2097152", "2 MiB"],
  ]);
  const compat = choice("convert-compat", "Version", [
    ["1.1", "3 (QEMU 1.1 and later)"],
    ["0.10", "2 (every QEMU)"],
  ]);
  const about = element("p", { class: "quiet" });
  const say = statusLine("convert-status");
  const bar = element("progress");
  bar.max = 1;
  bar.ariaLabel = "Progress";
  const begin = button("Save a copy…", () => void start(), "main");
  begin.id = "convert-begin";
  const pause = button("Pause", () => void turn(), "second");
  const cancel = button("Cancel", () => running?.stop.abort(), "second");
  let running: { job: number; stop: AbortController; paused: boolean } | undefined;

  function show(busy: boolean): void {
    begin.disabled = busy;
    pause.hidden = cancel.hidden = bar.hidden = !busy;
    pause.textContent = "Pause";
  }

  async function turn(): Promise<void> {
    if (!running) return;
    running.paused = !running.paused;
    pause.textContent = running.paused ? "Go on" : "Pause";
    await ask("pause", { job: running.job, paused: running.paused });
  }

  function options(): ConvertOptions {
    const kind = format.select.value;
    if (kind === "raw") return { format: "raw" };
    return { format: "qcow2", compressed: kind === "compressed", clusterSize: Number(cluster.select.value), compat: compat.select.value as "1.1" | "0.10" };
  }

  async function start(): Promise<void> {
    const shown = app.current;
    if (!shown || running) return;
    const chosen = options();
    const stem = baseName(shown.opened.name).replace(/\.[^.]{1,6}$/, "");
    const name = `${stem}${chosen.format === shown.opened.info.format ? "-copy" : ""}.${chosen.format}`;
    const where = await askWhere(name).catch((error: unknown) => void app.complain(error));
    if (!where || app.current !== shown || running) return;
    const own = (running = { job: ++jobs, stop: new AbortController(), paused: false });
    show(true);
    say.tell("Copying…");
    bar.value = 0;
    const begun = performance.now();
    try {
      const part = ({ done, total }: Progress): void => {
        bar.value = total > 0 ? done / total : 1;
        say.progress(`${size(done)} of ${size(total)}${own.paused ? ", paused" : ""}`);
      };
      await saveTo(where, (handle) => ask("convert", { handle, job: own.job, options: chosen }, { signal: own.stop.signal, part }));
      const seconds = Math.max(0.1, (performance.now() - begun) / 1000);
      say.tell(`${"download" in where ? where.download : where.handle.name} is complete (${seconds.toFixed(1)} s).`, "good");
    } catch (error) {
      const stopped = own.stop.signal.aborted;
      if (app.current !== shown) return;
      say.tell(stopped ? "Cancelled. What was copied so far is not kept." : `Not copied: ${explain(error)}`, stopped ? "" : "bad");
    } finally {
      running = undefined;
      show(false);
      if (app.current) allow(app.current);
    }
  }

  /** What keeps a copy from being complete. */
  function obstacles({ opened, opening }: Current): { missing: boolean; locked: boolean } {
    return { missing: opened.missing.length > 0, locked: opened.info.encryption !== null && !opening.wish.passphrase };
  }

  function allow(current: Current): void {
    const { missing, locked } = obstacles(current);
    begin.disabled = missing || locked || running !== undefined;
  }

  format.select.onchange = () => {
    cluster.field.hidden = compat.field.hidden = format.select.value === "raw";
  };
  show(false);
  return {
    name: "convert",
    title: "Convert",
    element: element("div", {}, section("Save the disk as another image", about, element("div", { class: "fields" }, format.field, cluster.field, compat.field), element("div", { class: "bar" }, begin, pause, cancel), bar, say.element)),
    opened(current) {
      running?.stop.abort();
      const { opened, opening } = current;
      const { missing, locked } = obstacles(current);
      allow(current);
      say.tell("");
      const seen = opening.wish.snapshot ? "the disk as it was at the snapshot" : "the disk as the guest sees it";
      const alone = opened.info.chain.length > 1 ? ", with what its backing files hold" : "";
      const place = canPick ? "Choose a new name: the browser empties a file that is chosen, be it the image itself. The copy is written as the image is read, and is in its place when it is complete." : "This browser cannot write to a file directly: the copy is put together in its own storage and then downloaded.";
      about.textContent = missing
        ? "Files that the image names are missing; without them the copy would not be complete."
        : locked
          ? "The disk is encrypted; unlock it in the overview first. The copy will not be encrypted."
          : `The copy is ${seen}${alone}, ${size(opened.info.virtualSize)}. ${place}`;
    },
  };
}
