// The ways in which an image comes to the page: chosen, dropped, a folder, an address, the sample, or served by `diskette serve`.

import { button, element, grouped, size } from "./format";
import { Files } from "./paths";
import type { Given, Opening, Surveyed } from "./protocol";
import { ask } from "./rpc";

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

interface Host {
  open(opening: Opening): Promise<void>;
  complain(error: unknown): void;
  /** `busy`: it is said again and again, so it is not read out. */
  say(text: string, busy?: boolean): void;
  /** Gets to know what is served. */
  serves(images: { name: string; opening: Opening }[]): void;
}

/** A folder is looked into no further than this. */
const MAX_FOLDER_FILES = 2000;
const MAX_FOLDER_DEPTH = 16;
/** Handing files to the worker takes time, for each is looked up. */
const SURVEYED_AT_ONCE = 25;

/** What `diskette serve` says it serves. Images are numbered by their place; `named` on the command line, or else by another image. */
interface Manifest {
  images: {
    name: string;
    size: number | null;
    problem: string | null;
    url: string;
    writable: boolean;
    named: boolean;
    references: { name: string; role: string; image: number | null }[];
  }[];
}

/** What some browsers give besides. */
interface HandleItem extends DataTransferItem {
  getAsFileSystemHandle?(): Promise<FileSystemHandle | null>;
}

/** Files as they were chosen: in a folder under their paths. */
export const given = (files: Iterable<File>): Given[] => Array.from(files, (file) => ({ file, path: file.webkitRelativePath || file.name }));
const files = (all: Given[]): Opening => ({ from: "files", files: all, wish: {} });

/** Files, whether they are a folder's, and whether there are more of them than are looked at. */
interface Many {
  all: Given[];
  folder: boolean;
  more: boolean;
}

const cut = (all: File[]): { some: File[]; more: boolean } => ({ some: all.slice(0, MAX_FOLDER_FILES), more: all.length > MAX_FOLDER_FILES });

/** What was dropped, with handles where the browser gives them. They have to be asked for before the event is over. */
async function dropped(transfer: DataTransfer): Promise<Many> {
  const handles = [...transfer.items]
    .filter(({ kind }) => kind === "file")
    .map((item) => ({ file: item.getAsFile(), handle: (item as HandleItem).getAsFileSystemHandle?.() }));
  const many: Many = { all: [], folder: false, more: false };
  const folders = new Set<string>();
  for (const { file, handle } of handles) {
    const known = await handle?.catch(() => null);
    if (known?.kind === "directory") {
      many.folder = true;
      // Folders from different places can have the same name.
      let name = known.name;
      for (let count = 2; folders.has(name); count++) name = `${known.name} (${count})`;
      folders.add(name);
      await addFolder(known as FileSystemDirectoryHandle, name, many);
    } else if (file) many.all.push({ file, path: file.name, ...(known ? { handle: known as FileSystemFileHandle } : {}) });
  }
  return many;
}

/** Takes the files of a folder and of the folders in it, with their paths. */
async function addFolder(folder: FileSystemDirectoryHandle, path: string, many: Many, depth = 0): Promise<void> {
  for await (const entry of folder.values()) {
    many.more ||= many.all.length >= MAX_FOLDER_FILES;
    if (many.more) return;
    const inner = `${path}/${entry.name}`;
    if (entry.kind === "directory") {
      if (depth < MAX_FOLDER_DEPTH) await addFolder(entry as FileSystemDirectoryHandle, inner, many, depth + 1);
    } else {
      const handle = entry as FileSystemFileHandle;
      many.all.push({ file: await handle.getFile(), path: inner, handle });
    }
  }
}

let looking: AbortController | undefined;

/** Ends looking into a folder: something else is opened. */
export function stopLooking(): void {
  looking?.abort();
  looking = undefined;
}

/** Of many files the user picks the image; those that it names come with it. */
async function pick({ all, more }: Omit<Many, "folder">, host: Host): Promise<void> {
  stopLooking();
  const own = (looking = new AbortController());
  const list = $("choice");
  const stop = button("Stop looking", () => own.abort(), "second");
  list.replaceChildren(stop);
  list.hidden = false;
  host.say(`Looking at ${grouped(all.length)} files…`);
  const found: Surveyed[] = [];
  try {
    for (let at = 0; at < all.length; at += SURVEYED_AT_ONCE) {
      found.push(...(await ask("survey", { files: all.slice(at, at + SURVEYED_AT_ONCE) }, { signal: own.signal })));
      if (looking === own) host.say(`Looked at ${grouped(Math.min(at + SURVEYED_AT_ONCE, all.length))} of ${grouped(all.length)} files.`, true);
    }
  } catch (error) {
    if (looking === own) list.hidden = true;
    if (!own.signal.aborted) throw error;
  }
  // Something else was opened meanwhile.
  if (looking !== own) return;
  looking = undefined;
  const stopped = own.signal.aborted;
  const files = new Files(all);
  const references = new Map(
    found.map(({ path, references: names }) => [path, names.map((name) => files.named(path, name)).filter((file) => file !== undefined && file.path !== path) as Given[]]),
  );
  const named = new Set([...references.values()].flat().map(({ path }) => path));
  const top = found.filter(({ path }) => !named.has(path));
  // Images that name each other in a circle are all there is then.
  const tops = top.length > 0 ? top : found;
  /** Opens an image with what it names, and what that names. */
  const begin = ({ path }: Surveyed): void => {
    const chain = new Set([files.at(path) as Given]);
    for (const file of chain) for (const other of references.get(file.path) ?? []) chain.add(other);
    void host.open({ from: "files", files: [...chain], ordered: true, wish: {} });
  };
  if (tops.length === 1 && !stopped && !more) return begin(tops[0] as Surveyed);
  const limits = `${stopped ? " It was stopped before all files were looked at." : ""}${more ? ` There are more than ${grouped(MAX_FOLDER_FILES)} files; those beyond were not looked at.` : ""}`;
  if (tops.length === 0) host.say(`None of the files ${stopped || more ? "that were looked at" : "here"} is an image of a known format.${limits} Choose one by itself to look at its bytes.`);
  else host.say(`Which image?${limits}`);
  const focused = list.contains(document.activeElement);
  list.hidden = tops.length === 0;
  const line = (image: Surveyed): HTMLElement => element("li", {}, button(image.path, () => begin(image), "link"), ` ${image.format}, ${size(image.virtualSize)}`);
  list.replaceChildren(element("ul", { class: "plain" }, ...tops.map(line)));
  if (focused) (list.querySelector("button") ?? $("files")).focus();
}

async function openSample(host: Host): Promise<void> {
  const response = await fetch("./sample.qcow2");
  if (!response.ok) throw new Error(`the sample is missing (${response.status})`);
  await host.open(files(given([new File([await response.blob()], "sample.qcow2")])));
}

/** The images of `diskette serve`, where the page is its. */
async function openServed(host: Host): Promise<void> {
  const address = document.querySelector<HTMLMetaElement>('meta[name="diskette-serve"]')?.content;
  if (address === undefined) return;
  const response = await fetch(address);
  if (!response.ok) throw new Error(`diskette serve answered ${response.status}; is it still running?`);
  const { images } = (await response.json()) as Manifest;
  const addresses = images.map(({ url }) => new URL(url, new URL(address, location.href)).href);
  const beside = images.flatMap(({ references }, index) =>
    references.flatMap(({ name, image }) => (image === null ? [] : [{ from: addresses[index] as string, name, url: addresses[image] as string }])),
  );
  const chosen = [...images.keys()].filter((index) => images[index]?.named);
  const openings = images.map(({ name, writable }, index): Opening => ({ from: "url", url: addresses[index] as string, follow: false, served: { name, writable, beside }, wish: {} }));
  const begin = (index: number): void => void host.open(openings[index] as Opening);
  host.serves(chosen.map((index) => ({ name: images[index]?.name ?? "", opening: openings[index] as Opening })));
  const list = $("served");
  list.hidden = chosen.length < 2;
  const items = chosen.map((index) => {
    const { name, size: bytes, problem } = images[index] as Manifest["images"][number];
    return element("li", {}, button(name, () => begin(index), "link"), problem ?? (bytes === null ? "" : ` ${size(bytes)}`));
  });
  list.replaceChildren(element("p", { text: "Served on this machine:" }), element("ul", { class: "plain" }, ...items));
  if (chosen[0] !== undefined) begin(chosen[0]);
}

/** Lets the user give an image in every way there is. */
export function listenForImages(host: Host): void {
  const guarded = (work: Promise<void>): void => void work.catch((error: unknown) => host.complain(error));
  const fileInput = $<HTMLInputElement>("files");
  fileInput.onchange = () => {
    if (fileInput.files?.length) guarded(host.open(files(given(fileInput.files))));
    // The same files can be chosen again: they may have changed.
    fileInput.value = "";
  };
  const folderInput = $<HTMLInputElement>("folder");
  folderInput.onchange = () => {
    const { some, more } = cut([...(folderInput.files ?? [])]);
    if (some.length > 0) guarded(pick({ all: given(some), more }, host));
    folderInput.value = "";
  };
  $("url-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const url = $<HTMLInputElement>("url").value.trim();
    if (/^https?:\/\/./.test(url)) guarded(host.open({ from: "url", url, follow: false, wish: {} }));
    else host.complain({ message: "the address has to begin with http:// or https://.", kind: "" });
  });
  $("sample").onclick = () => guarded(openSample(host));

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
    if (!event.dataTransfer) return;
    const taken = dropped(event.dataTransfer).then((many) => {
      if (many.all.length > 0) return many.folder || many.all.length > 8 ? pick(many, host) : host.open(files(many.all));
    });
    guarded(taken);
  });
  guarded(openServed(host));
}
