// What is on the disk: its partitions, and the files in them, to list, look at and save. Nothing is written.

import { type App, type Current, type Place, type View } from "../app";
import type { Entry, Layout, Path, Volume } from "../contents";
import { explain } from "../advice";
import { button, element, exactly, grouped, hex, offset, size } from "../format";
import { baseName, decodePath, encodePath } from "../paths";
import { ask } from "../rpc";
import { askWhere, saveTo, tooLarge } from "../saving";
import { fill, named, section, statusLine } from "./panel";

/** Entries of a directory that are asked for at once. */
const PAGE = 200;
const PREVIEW_BYTES = 64 * 1024;
const MAX_PICTURE_BYTES = 8 * 1024 * 1024;

/** Pictures that browsers show, by how their files begin. */
const PICTURES: [type: string, begins: number[]][] = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47]],
  ["image/jpeg", [0xff, 0xd8, 0xff]],
  ["image/gif", [0x47, 0x49, 0x46, 0x38]],
  ["image/bmp", [0x42, 0x4d]],
];

function date(seconds: number | null): string {
  return seconds === null ? "" : new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 16);
}

/** The permissions as `ls` writes them. */
function permissions(mode: number): string {
  const letters = "rwxrwxrwx";
  return Array.from(letters, (letter, index) => (mode & (1 << (8 - index)) ? letter : "-")).join("");
}

/** The bytes as text, if they are some. */
function textOf(bytes: Uint8Array, whole: boolean): string | undefined {
  if (bytes.includes(0)) return undefined;
  try {
    // The last letter may be cut.
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: !whole });
  } catch {
    return undefined;
  }
}

function hexOf(bytes: Uint8Array): string {
  const lines: string[] = [];
  for (let at = 0; at < Math.min(bytes.length, 4096); at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const letters = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${hex(at, 8)}  ${row.map((byte) => hex(byte, 2)).join(" ").padEnd(47)}  ${letters}`);
  }
  return lines.join("\n");
}

export function contentsView(app: App): View {
  const about = named("layout", element("p", {}));
  about.setAttribute("role", "status");
  const notes = element("ul", { class: "plain" });
  const volumes = named("volumes", element("tbody"));
  const way = named("way", element("nav", { class: "bar" }));
  way.ariaLabel = "Place in the file system";
  const entries = named("entries", element("tbody"));
  const more = button("Show more", () => void list(false), "second");
  const say = statusLine("contents-status", "caption");
  const preview = named("file", element("section", {}));
  const head = (...texts: string[]): HTMLElement =>
    element("thead", {}, element("tr", {}, ...texts.map((text) => Object.assign(element("th", { text }), { scope: "col" }))));
  const table = (header: HTMLElement, body: HTMLElement, label: string): HTMLElement => {
    const scroll = element("div", { class: "scroll listing" }, element("table", {}, header, body));
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.ariaLabel = label;
    return scroll;
  };
  const browser = element("section", {}, way, table(head("Name", "Size", "Modified (UTC)", "Rights"), entries, "Files"), more, say.element);
  const divided = section("Partitions", about, notes, table(head("No.", "What", "Begins", "Size", "File system"), volumes, "Partitions"));

  let layout: Promise<Layout> | undefined;
  let known: Layout | undefined;
  let volume = -1;
  let path: Path = [];
  let listed = 0;
  /** Counts directories that are shown, so that what comes late is left out. */
  let turn = 0;
  /** Counts files that are looked at. */
  let looking = 0;
  let picture: string | undefined;

  function describe({ number, typeName, typeId, label }: Volume): string {
    const kind = typeName ?? (typeId === "" ? "the whole disk" : `type ${typeId}`);
    return label ? `${label} (${kind})` : number === 0 ? "The whole disk" : kind;
  }

  function showLayout(found: Layout): void {
    const kinds = { none: "The disk is not divided.", gpt: "GPT: GUID partition table.", mbr: "MBR: partition table of the PC.", apm: "APM: Apple partition map." };
    about.textContent = `${kinds[found.table]} ${found.volumes.length === 1 && found.table === "none" ? "" : `${found.volumes.length} ${found.volumes.length === 1 ? "partition" : "partitions"}, sectors of ${found.sectorSize} bytes.`}`;
    notes.replaceChildren(...found.notes.map((text) => element("li", { class: "warn", text })));
    volumes.replaceChildren(
      ...found.volumes.map((part, index) => {
        const { number, start, length, found: system, readable, flags } = part;
        const title = describe(part);
        const name = readable ? button(title, () => void go(index, []), "link") : element("span", { text: title });
        const bytes = button(offset(start), () => app.go({ view: "data", space: "disk", at: start }), "link mono");
        const what = system ? `${system.name}${system.label ? ` “${system.label}”` : ""}${readable ? "" : ", cannot be looked into"}` : "not recognised";
        const cell = (...children: (Node | string)[]): HTMLElement => element("td", {}, ...children);
        return element("tr", {}, cell(number === 0 ? "–" : String(number)), cell(name, flags.length > 0 ? element("span", { class: "doc", text: flags.join(", ") }) : ""), cell(bytes), cell(size(length)), cell(what));
      }),
    );
  }

  function names(): string[] {
    return path.map((name) => new TextDecoder().decode(name));
  }

  function showWay(): void {
    const part = known?.volumes[volume];
    const steps = [button(part ? describe(part) : "", () => void go(volume, []), "link")];
    names().forEach((name, index) => steps.push(button(name, () => void go(volume, path.slice(0, index + 1)), "link")));
    way.replaceChildren(...steps.flatMap((step, index) => (index === 0 ? [step] : [element("span", { text: "›" }), step])));
  }

  async function go(next: number, to: Path): Promise<void> {
    [volume, path] = [next, to];
    browser.hidden = false;
    closeFile();
    showWay();
    app.mark({ view: "contents", path: encodePath(volume, path) });
    await list(true);
  }

  async function list(anew: boolean): Promise<void> {
    const own = anew ? ++turn : turn;
    if (anew) {
      listed = 0;
      entries.replaceChildren();
    }
    say.tell("Reading…");
    more.hidden = true;
    try {
      const page = await ask("list", { volume, path, from: listed, count: PAGE });
      if (own !== turn) return;
      listed += page.entries.length;
      entries.append(...page.entries.map(row));
      more.hidden = !page.more;
      say.tell(listed === 0 ? "The directory is empty." : `${grouped(listed)} entries${page.more ? " so far" : ""}.`);
    } catch (error) {
      if (own === turn) say.tell(explain(error));
    }
  }

  function row(entry: Entry): HTMLElement {
    const { name, kind, size: bytes, modified, mode, target } = entry;
    const inner = [...path, entry.bytes];
    const act =
      kind === "directory" ? button(`${name}/`, () => void go(volume, inner), "link") : kind === "file" ? button(name, () => void open(entry), "link") : element("span", { text: kind === "link" ? `${name} → ${target ?? "?"}` : `${name} (device, socket or pipe)` });
    const cell = (text: string): HTMLElement => element("td", { text });
    return element("tr", {}, element("td", {}, act), cell(kind === "file" ? size(bytes) : ""), cell(date(modified)), element("td", { class: "mono", text: mode === null ? "" : permissions(mode) }));
  }

  function closeFile(): void {
    looking++;
    if (picture) URL.revokeObjectURL(picture);
    picture = undefined;
    preview.hidden = true;
  }

  /** Shows the beginning of a file. */
  async function open(entry: Entry): Promise<void> {
    closeFile();
    const own = ++looking;
    const inner = [...path, entry.bytes];
    const save = button("Save the file…", () => void store(entry, inner), "main");
    const show = (...content: (Node | string)[]): void => {
      preview.replaceChildren(element("h3", { text: entry.name }), element("p", { class: "quiet", text: exactly(entry.size) }), element("div", { class: "bar" }, save, button("Close", closeFile, "second")), ...content);
      preview.hidden = false;
    };
    show("Reading…");
    try {
      const bytes = await ask("file", { volume, path: inner, offset: 0, length: Math.min(PREVIEW_BYTES, entry.size) });
      if (own !== looking) return;
      const type = PICTURES.find(([, begins]) => begins.every((byte, at) => bytes[at] === byte))?.[0];
      if (type && entry.size <= MAX_PICTURE_BYTES) {
        const whole = await ask("save-file", { volume, path: inner, size: entry.size, handle: null });
        if (own !== looking || !whole) return;
        picture = URL.createObjectURL(new Blob([whole], { type }));
        const image = element("img");
        [image.src, image.alt] = [picture, `The picture ${entry.name}`];
        return show(image);
      }
      const text = textOf(bytes, bytes.length === entry.size);
      const body = element("pre", { class: "mono", text: text ?? hexOf(bytes) });
      body.tabIndex = 0;
      const cut = bytes.length < entry.size || text === undefined;
      show(body, cut && bytes.length > 0 ? element("p", { class: "quiet", text: text === undefined ? `The first ${size(Math.min(4096, bytes.length))}.` : `The first ${size(bytes.length)}.` }) : "");
    } catch (error) {
      if (own === looking) show(element("p", { class: "bad", text: explain(error) }));
    }
  }

  async function store(entry: Entry, inner: Path): Promise<void> {
    const obstacle = tooLarge(entry.size);
    if (obstacle !== "") return say.tell(obstacle);
    const [shown, from] = [app.current, volume];
    try {
      const where = await askWhere(baseName(entry.name));
      if (!where || app.current !== shown) return;
      const part = (done: number): void => say.progress(`Saved ${size(done)} of ${size(entry.size)}.`);
      await saveTo(where, (handle) => ask("save-file", { volume: from, path: inner, size: entry.size, handle }, { part }));
      say.tell(`${entry.name} is saved.`);
    } catch (error) {
      say.tell(`${entry.name} was not saved: ${explain(error)}`);
    }
  }

  /** Finds out how the disk is divided, once it is wanted. */
  function look(shown: Current): Promise<Layout> {
    layout ??= ask("layout", null).then(
      (found) => {
        if (app.current !== shown) return found;
        known = found;
        showLayout(found);
        return found;
      },
      (error: Error) => {
        layout = undefined;
        if (app.current === shown) about.textContent = `What is on the disk cannot be seen: ${explain(error)}`;
        throw error;
      },
    );
    return layout;
  }

  /** Follows a link into a file system. */
  async function follow(place: Place, shown: Current): Promise<void> {
    const found = await look(shown);
    if (app.current !== shown) return;
    const link = place.path === undefined ? undefined : decodePath(place.path);
    if (link && found.volumes[link.volume]?.readable) return go(link.volume, link.path);
    const only = found.volumes.length === 1 ? found.volumes[0] : undefined;
    // With nothing to choose from the files are shown at once.
    if (only?.readable && volume < 0) return go(0, []);
  }

  fill(notes, [], "");
  return {
    name: "contents",
    title: "Contents",
    element: element("div", {}, divided, browser, preview),
    opened() {
      [layout, known, volume, path] = [undefined, undefined, -1, []];
      turn++;
      about.textContent = "Looking…";
      notes.replaceChildren();
      volumes.replaceChildren();
      browser.hidden = true;
      closeFile();
    },
    shown(place, shown) {
      if (volume >= 0 && (place.path === undefined || place.path === encodePath(volume, path))) return;
      void follow(place, shown).catch(() => {});
    },
  };
}
