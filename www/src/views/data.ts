// The bytes of the disk and of its files: go to, search, copy, export.

import type { App, View } from "../app";
import { explain } from "../advice";
import { button, element, exactly, offset, size, wholeNumber } from "../format";
import { baseName } from "../paths";
import { ask } from "../rpc";
import { askWhere, saveTo, tooLarge } from "../saving";
import { HexView } from "../widgets/hex-view";
import { named, statusLine } from "./panel";

/** The bytes that a search text stands for: `0x` and digits, or the text in UTF-8. */
export function needleOf(text: string): Uint8Array | string {
  const digits = /^0x([0-9a-f\s]*)$/i.exec(text.trim())?.[1]?.replace(/\s/g, "");
  if (digits === undefined) return new TextEncoder().encode(text);
  if (digits.length === 0 || digits.length % 2 !== 0) return "Two digits for each byte, such as 0x51 46 49 fb.";
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export function dataView(app: App): View {
  const bytes = new HexView();
  const say = statusLine("data-status", "caption");
  const text = named("search", element("input"));
  text.type = "search";
  text.placeholder = "text, or 0x51 46 49 fb";
  text.ariaLabel = "Search for text, or for bytes after 0x";
  text.spellcheck = false;
  let running: AbortController | undefined;
  const stop = button("Stop", () => running?.abort(), "second");
  stop.hidden = true;

  const spaceName = (): string => bytes.space.label;

  async function search(next: boolean): Promise<void> {
    const needle = needleOf(text.value);
    if (typeof needle === "string" || needle.length === 0) {
      return say.tell(typeof needle === "string" ? needle : "Type what to search for.");
    }
    const { space, size: total } = bytes.space;
    const from = Math.min(total, next ? bytes.selection.offset + 1 : 0);
    await work(`Searching ${spaceName()}…`, async (signal) => {
      const found = await ask("search", { space, from, bytes: needle }, { signal, part: (at) => progress("searched", at, total) });
      if (found === null) say.tell(next && from > 0 ? "Not found from here to the end." : "Not found.");
      else {
        app.go({ view: "data", space, at: found, length: needle.length });
        say.tell(`Found at ${offset(found)}.`);
      }
    });
  }

  function progress(what: string, at: number, total: number): void {
    say.progress(`${what} ${size(at)} of ${size(total)}`);
  }

  /** One thing at a time, which the user can stop. */
  async function work(about: string, act: (signal: AbortSignal) => Promise<void>): Promise<void> {
    running?.abort();
    const own = (running = new AbortController());
    say.tell(about);
    stop.hidden = false;
    try {
      await act(own.signal);
    } catch (error) {
      if (running === own) say.tell(own.signal.aborted ? "Stopped." : explain(error));
    } finally {
      if (running === own) stop.hidden = true;
    }
  }

  async function copy(as: "hex" | "text"): Promise<void> {
    try {
      const count = await bytes.copy(as);
      say.tell(`${exactly(count)} copied${count < bytes.selection.length ? ", the most that is copied at once" : ""}.`);
    } catch (error) {
      say.tell(`Nothing was copied: ${explain(error)}`);
    }
  }

  const first = named("export-from", element("input"));
  const last = named("export-length", element("input"));
  first.ariaLabel = "Export from offset";
  last.ariaLabel = "Bytes to export";

  async function exportRange(): Promise<void> {
    const { space, size: total } = bytes.space;
    const [at, length] = [wholeNumber(first.value), wholeNumber(last.value)];
    if (at === undefined || !length || at + length > total) {
      return say.tell(`A start and a number of bytes within ${exactly(total)}, in decimal or with 0x.`);
    }
    const obstacle = tooLarge(length);
    if (obstacle !== "") return say.tell(obstacle);
    const name = `${baseName(app.current?.opened.name ?? "disk")}-${offset(at)}-${length}.bin`;
    const where = await askWhere(name);
    if (!where) return;
    await work("Exporting…", async (signal) => {
      const part = (done: number): void => progress("exported", done, length);
      await saveTo(where, (handle) => ask("export", { space, offset: at, length, handle }, { signal, part }));
      say.tell(`${exactly(length)} exported.`);
    });
  }

  const form = element("form", { class: "bar" }, element("label", { text: "Find " }, text), element("button", { text: "Find next" }), button("Find first", () => void search(false), "second"), stop);
  form.onsubmit = (event) => {
    event.preventDefault();
    void search(true);
  };
  const copying = element(
    "div",
    { class: "bar" },
    button("Copy as hex", () => void copy("hex")),
    button("Copy as text", () => void copy("text")),
    element("label", { text: "Export from " }, first),
    element("label", { text: "bytes " }, last),
    button("Export…", () => void exportRange()),
  );
  bytes.onmove = (space, at) => {
    const { offset: start, length } = bytes.selection;
    if (length > 1) [first.value, last.value] = [offset(start), String(length)];
    app.mark({ view: "data", space, at });
  };
  return {
    name: "data",
    title: "Data",
    element: element("div", {}, element("section", {}, bytes, form, copying, say.element)),
    opened(current) {
      running?.abort();
      say.tell("");
      [first.value, last.value] = ["0", "512"];
      const { info, files } = current.opened;
      const spaces = files.map(({ name, size: total }, index) => ({ space: index, label: baseName(name), size: total }));
      const disk = { space: "disk" as const, label: `Disk of ${size(info.virtualSize)}`, size: info.virtualSize };
      bytes.setup([...spaces, disk], (space, at, length) => ask("read", { space, offset: at, length }));
    },
    shown({ space, at, length }) {
      if (at === undefined) return;
      bytes.show(space ?? 0, at, length === undefined ? undefined : { offset: at, length });
      if (length !== undefined) [first.value, last.value] = [offset(at), String(length)];
    },
  };
}
