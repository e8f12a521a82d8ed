// Changes of metadata in the file itself. First every byte that will change is shown, then an undo file is saved, then it is written.

import { type App, type Current, type View } from "../app";
import { explain } from "../advice";
import { button, element, exactly, grouped, hex, offset } from "../format";
import { baseName } from "../paths";
import type { Change, Edit, Given, Opening, PlanInfo, Side } from "../protocol";
import { ask } from "../rpc";
import { askWhere, saveTo } from "../saving";
import { named, section, statusLine } from "./panel";

/** Places shown at once; more of them when that is wanted. */
const SHOWN = 200;
/** Of more bytes the beginning is shown, and so many more each time when that is wanted. */
const BYTES_SHOWN = 32;
const BYTES_MORE = 4096;

interface OpenPicker {
  showOpenFilePicker(options: { multiple: false }): Promise<[FileSystemFileHandle]>;
}

const canWrite = "showOpenFilePicker" in window;

/** Why an image cannot be changed here; nothing if it can. */
function obstacle({ opening }: Current): string {
  if (opening.wish.snapshot) return "A snapshot is looked at. Go back to the present to change the image.";
  if (opening.from === "url") {
    if (!opening.served) return "An image behind an address cannot be changed here. Download it and choose the file.";
    return opening.served.writable ? "" : "The image is served to be read only. Start diskette serve with --writable to change it here.";
  }
  return canWrite ? "" : "This browser cannot write files in place. Chromium and its relatives can; so can the diskette command line.";
}

export function editView(app: App): View {
  const acts = named("edits", element("div", { class: "edits" }));
  const say = statusLine("edit-status");
  const { tell } = say;
  const preview = named("preview", element("section", {}));
  preview.hidden = true;
  const panel = element("div", {}, section("Change the image where it is", acts, say.element), preview);
  let current: Current | undefined;
  /** What is previewed, and for which image it is. */
  let plan: { made: PlanInfo; shown: Current } | undefined;
  let undoSaved = false;

  /** Previews what is worked out; `failed` begins what is said if that cannot be done. */
  async function prepare(failed: string, work: () => Promise<PlanInfo>): Promise<void> {
    const shown = current;
    if (!shown) return;
    tell("Working out what will change…");
    preview.hidden = true;
    plan = undefined;
    try {
      const made = await work();
      if (current !== shown) return;
      if (made.places === 0 && made.sizeAfter === made.sizeBefore) return tell("Nothing has to change.", "good");
      const places = await ask("plan-places", { plan: made.plan, from: 0, count: SHOWN, skip: 0, bytes: BYTES_SHOWN });
      if (current === shown) show(made, places, shown);
    } catch (error) {
      if (current === shown) tell(`${failed}: ${explain(error)}`, "bad");
    }
  }

  const edit = (wanted: Edit): void => void prepare("This cannot be done", () => ask("plan-edit", { edit: wanted }));

  const spelled = (all: Uint8Array): string => Array.from(all, (byte) => hex(byte, 2)).join(" ") || "nothing";

  /** The bytes at a place, and more of them on request. */
  function bytes(side: Side, more: (skip: number) => Promise<Side>): HTMLElement {
    const cell = element("td", { class: "mono", text: spelled(side.bytes) });
    const { length } = side;
    let there = side.bytes.length;
    const next = button("", () => void add(), "link");
    const label = (): void => void (next.textContent = `${exactly(Math.min(BYTES_MORE, length - there))} more of ${exactly(length)}`);
    async function add(): Promise<void> {
      next.disabled = true;
      try {
        const { bytes: rest } = await more(there);
        there += rest.length;
        next.before(` ${spelled(rest)} `);
        if (there < length) label();
        else {
          cell.tabIndex = -1;
          cell.focus();
          next.remove();
        }
      } catch (error) {
        tell(explain(error), "bad");
      } finally {
        next.disabled = false;
      }
    }
    label();
    if (there < length) cell.append(" ", next);
    return cell;
  }

  /** Shows a plan and the first of its places. One that comes from an undo file needs none of its own. */
  function show(made: PlanInfo, first: Change[], shown: Current): void {
    plan = { made, shown };
    const undoing = made.undo;
    undoSaved = undoing;
    preview.inert = false;
    const rows = element("tbody");
    const rest = button("", () => void next(), "second");
    const add = (places: Change[]): void => {
      for (const { offset: at, before, after } of places) {
        const index = rows.childElementCount;
        const more = (side: "before" | "after") => async (skip: number) => {
          const [found] = await ask("plan-places", { plan: made.plan, from: index, count: 1, skip, bytes: BYTES_MORE });
          return (found as Change)[side];
        };
        const go = button(offset(at), () => app.go({ view: "data", space: 0, at, length: Math.max(1, before.length) }), "link mono");
        rows.append(element("tr", {}, element("td", {}, go), bytes(before, more("before")), bytes(after, more("after"))));
      }
      const left = made.places - rows.childElementCount;
      [rest.hidden, rest.textContent] = [left === 0, `Show more places (${grouped(left)})`];
    };
    const next = async (): Promise<void> => {
      rest.disabled = true;
      try {
        add(await ask("plan-places", { plan: made.plan, from: rows.childElementCount, count: SHOWN, skip: 0, bytes: BYTES_SHOWN }));
      } catch (error) {
        tell(explain(error), "bad");
      } finally {
        rest.disabled = false;
      }
    };
    add(first);
    const head = (text: string): HTMLElement => Object.assign(element("th", { text }), { scope: "col" });
    const table = element("table", {}, element("thead", {}, element("tr", {}, head("Offset"), head("Now"), head("Then"))), rows);
    const resized = made.sizeAfter === made.sizeBefore ? "" : ` The file will be ${exactly(made.sizeAfter)} long instead of ${exactly(made.sizeBefore)}.`;
    const write = button("Write to the file", () => void apply(), "main");
    write.id = "edit-apply";
    write.disabled = !undoSaved;
    const save = button("Save the undo file…", () => void saveUndo());
    save.id = "edit-undo";
    const saveUndo = async (): Promise<void> => {
      try {
        const where = await askWhere(`${made.name}.undo.json`);
        if (!where || plan?.made !== made) return;
        if ("handle" in where && (await isImage(where.handle, shown))) return tell("That is the image itself. Save the undo file under another name.", "bad");
        await saveTo(where, (handle) => ask("save-undo", { plan: made.plan, handle }));
        if (plan?.made !== made) return;
        undoSaved = true;
        write.disabled = false;
        const kept = "handle" in where ? `${where.handle.name} is saved.` : "The undo file is on its way to your downloads: see that it has arrived before you go on.";
        tell(`${kept} Keep it until you are sure.`);
      } catch (error) {
        if (plan?.made === made) tell(`The undo file was not saved: ${explain(error)}`, "bad");
      }
    };
    const steps = undoing ? [write] : [save, write];
    const scroll = element("div", { class: "scroll" }, table);
    scroll.tabIndex = 0;
    preview.replaceChildren(
      element("h3", { text: `What changes in ${made.name}` }),
      element("p", { text: `${exactly(made.bytes)} in ${grouped(made.places)} ${made.places === 1 ? "place" : "places"}.${resized}` }),
      scroll,
      rest,
      element("div", { class: "bar" }, ...steps, button("Leave it", leave)),
    );
    preview.hidden = false;
    tell(undoing ? "This puts back what the undo file kept." : "Nothing has been written. Save the undo file first.");
  }

  function leave(): void {
    plan = undefined;
    preview.hidden = true;
    tell("Nothing was changed.");
  }

  /** The handle of the image's file: the one it was dropped with, or one that the user chooses now. */
  async function handleOf(files: Given[], name: string): Promise<FileSystemFileHandle> {
    const known = files.find(({ path }) => path === name)?.handle;
    const handle = known ?? (await (window as unknown as OpenPicker).showOpenFilePicker({ multiple: false }))[0];
    const asking = handle as FileSystemFileHandle & { requestPermission?(options: { mode: "readwrite" }): Promise<PermissionState> };
    const permission = await asking.requestPermission?.({ mode: "readwrite" });
    if (permission !== undefined && permission !== "granted") throw new Error("the browser was not allowed to write the file");
    return handle;
  }

  /** Whether a place that was picked is the image's own. */
  async function isImage(handle: FileSystemFileHandle, { opening, opened }: Current): Promise<boolean> {
    if (opening.from === "url") return false;
    const own = opening.files.find(({ path }) => path === opened.name)?.handle;
    return own ? own.isSameEntry(handle) : handle.name === baseName(opened.name);
  }

  /** Writes a plan; gives how the image is opened afterwards. */
  async function write({ opening, opened }: Current, made: PlanInfo): Promise<Opening> {
    if (opening.from === "url") {
      await ask("apply-edit", { to: { url: opening.url }, plan: made.plan });
      return opening;
    }
    const handle = await handleOf(opening.files, opened.name);
    await ask("apply-edit", { to: { handle }, plan: made.plan });
    const others = opening.files.filter(({ path }) => path !== opened.name);
    const known = opening.files.filter(({ path }) => path === opened.name);
    // If it cannot be read again, opening says so.
    const file = await handle.getFile().catch(() => undefined);
    return { ...opening, files: [...(file ? [{ file, path: opened.name, handle }] : known), ...others] };
  }

  async function apply(): Promise<void> {
    if (!plan || plan.shown !== current || !undoSaved) return;
    const { made, shown } = plan;
    tell("Writing…");
    // What cannot be used any more cannot have the focus.
    panel.focus({ preventScroll: true });
    preview.inert = true;
    try {
      const opening = await write(shown, made);
      // Another image may have been opened meanwhile.
      if (current === shown) await app.open(opening);
      tell(`${made.name} was changed.`, "good");
    } catch (error) {
      preview.inert = false;
      const { name, message, kind } = error as Error & { kind?: string };
      if (kind === "half-changed") return tell(`${made.name} is changed in part, and could not be put back: ${message} Use the undo file when it can be written again.`, "bad");
      if (name === "AbortError") return tell("Nothing was changed.");
      tell(`Nothing was changed: ${explain(error)}`, "bad");
    }
  }

  function row(title: string, about: string, ...controls: HTMLElement[]): HTMLElement {
    return element("div", { class: "edit" }, element("div", {}, element("strong", { text: title }), element("span", { class: "doc", text: about })), element("div", { class: "bar" }, ...controls));
  }

  function editsOf({ opened }: Current): HTMLElement[] {
    const { info } = opened;
    const rows: HTMLElement[] = [];
    if (info.format === "qcow2") {
      rows.push(row("Give lost space back", "Clusters that are counted as used and are not: leaks.", button("Repair leaks…", () => edit({ kind: "repair-leaks" }))));
      for (const { id, name } of info.snapshots) {
        // Snapshots are deleted by name, and that of the first one that has it.
        const first = info.snapshots.find((other) => other.name === name)?.id === id && name !== "";
        const about = first ? "The disk as it is now does not change." : "It has no name of its own, so it cannot be told from others here; diskette snapshot can.";
        rows.push(row(`Forget the snapshot “${name || `number ${id}`}”`, about, ...(first ? [button("Delete…", () => edit({ kind: "delete-snapshot", name }))] : [])));
      }
      const name = named("backing-name", element("input"));
      const format = named("backing-format", element("input"));
      [name.value, format.value] = [info.backingFile?.name ?? "", info.backingFile?.format ?? ""];
      [name.ariaLabel, format.ariaLabel] = ["Name of the backing file", "Format of the backing file"];
      [name.placeholder, format.placeholder] = ["base.qcow2", "qcow2"];
      const set = (): void => edit({ kind: "set-backing", name: name.value.trim() || null, format: name.value.trim() ? format.value.trim() || null : null });
      rows.push(row("Backing file", "Only the name that is written in the header. What shows through changes if the other file differs.", name, format, button("Change the name…", set)));
    }
    const undo = named("undo-file", element("input"));
    undo.type = "file";
    undo.ariaLabel = "Undo file";
    undo.onchange = () => {
      const file = undo.files?.[0];
      undo.value = "";
      if (file) void prepare(`${file.name} cannot be used`, () => ask("plan-undo", { file }));
    };
    rows.push(row("Undo", "Put back what an undo file of this image kept.", undo));
    return rows;
  }

  return {
    name: "edit",
    title: "Edit",
    element: panel,
    opened(next) {
      current = next;
      plan = undefined;
      preview.hidden = true;
      preview.inert = false;
      tell("");
      const why = obstacle(next);
      acts.replaceChildren(...(why ? [element("p", { class: "quiet", text: why })] : editsOf(next)));
    },
  };
}
