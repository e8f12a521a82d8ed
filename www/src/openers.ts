// The ways in which an image comes to the page: chosen, dropped, a folder, an address, the sample, or served by `diskette serve`.

import { button, element, size } from "./format";
import { namedBy } from "./paths";
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

/** What was dropped, with handles where the browser gives them. They have to be asked for before the event is over. */
async function dropped(transfer: DataTransfer): Promise<{ all: Given[]; folder: boolean }> {
  const handles = [...transfer.items]
    .filter(({ kind }) => kind === "file")
    .map((item) => ({ file: item.getAsFile(), handle: (item as HandleItem).getAsFileSystemHandle?.() }));
  const all: Given[] = [];
  let folder = false;
  for (const { file, handle } of handles) {
    const known = await handle?.catch(() => null);
    if (known?.kind === "directory") {
      folder = true;
      await addFolder(known as FileSystemDirectoryHandle, known.name, all);
    } else if (file) all.push({ file, path: file.name, ...(known ? { handle: known as FileSystemFileHandle } : {}) });
  }
  return { all, folder };
}

/** Takes the files of a folder and of the folders in it, with their paths. */
async function addFolder(folder: FileSystemDirectoryHandle, path: string, all: Given[], depth = 0): Promise<void> {
  for await (const entry of folder.values()) {
    if (all.length >= MAX_FOLDER_FILES) return;
    const inner = `${path}/${entry.name}`;
    if (entry.kind === "directory") {
      if (depth < MAX_FOLDER_DEPTH) await addFolder(entry as FileSystemDirectoryHandle, inner, all, depth + 1);
    } else {
      const handle = entry as FileSystemFileHandle;
      all.push({ file: await handle.getFile(), path: inner, handle });
    }
  }
}

/** Stops looking at the files of a folder. */
let looking: AbortController | undefined;

/** Of many files, and others that are too many, the user picks the image; those that it names come with it. */
async function pick(all: Given[], left: number, host: Host): Promise<void> {
  looking?.abort();
  const own = (looking = new AbortController());
  const beyond = left > 0 ? ` ${left.toLocaleString("en")} more in the folder were not looked at.` : "";
  const list = $("choice");
  list.replaceChildren(button("Stop looking", () => own.abort(), "second"));
  list.hidden = false;
  host.say(`Looking at ${all.length.toLocaleString("en")} files…`);
  const found: Surveyed[] = [];
  try {
    for (let at = 0; at < all.length; at += SURVEYED_AT_ONCE) {
      found.push(...(await ask("survey", { files: all.slice(at, at + SURVEYED_AT_ONCE) }, { signal: own.signal })));
      if (looking === own) host.say(`Looked at ${Math.min(at + SURVEYED_AT_ONCE, all.length).toLocaleString("en")} of ${all.length.toLocaleString("en")} files.`, true);
    }
  } catch (error) {
    if (looking === own) list.hidden = true;
    if (!own.signal.aborted) throw error;
  }
  // Something else was opened meanwhile.
  if (looking !== own) return;
  looking = undefined;
  const referred = ({ path, references }: Surveyed): Given[] =>
    references.map((name) => namedBy(path, name, all)).filter((file): file is Given => file !== undefined && file.path !== path);
  const named = new Set(found.flatMap(referred));
  const tops = found.filter(({ path }) => !named.has(all.find((file) => file.path === path) as Given));
  /** Opens an image with what it names, and what that names. */
  const begin = (image: Surveyed): void => {
    const chain = new Set(all.filter(({ path }) => path === image.path));
    for (const { path } of chain) for (const file of found.filter((other) => other.path === path).flatMap(referred)) chain.add(file);
    void host.open({ from: "files", files: [...chain], ordered: true, wish: {} });
  };
  list.hidden = true;
  if (tops.length === 1 && !own.signal.aborted) return begin(tops[0] as Surveyed);
  const none = `None of these files is an image of a known format.${beyond} Choose one by itself to look at its bytes.`;
  host.say(tops.length === 0 ? none : `Which image?${own.signal.aborted ? " These were found until it was stopped." : ""}${beyond}`);
  list.hidden = tops.length === 0;
  const line = (image: Surveyed): HTMLElement => element("li", {}, button(image.path, () => begin(image), "link"), ` ${image.format}, ${size(image.virtualSize)}`);
  list.replaceChildren(element("ul", { class: "plain" }, ...tops.map(line)));
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
export function listenForImages(page: Host): void {
  const host: Host = {
    ...page,
    open(opening) {
      looking?.abort();
      looking = undefined;
      return page.open(opening);
    },
  };
  const guarded = (work: Promise<void>): void => void work.catch((error: unknown) => host.complain(error));
  const fileInput = $<HTMLInputElement>("files");
  fileInput.onchange = () => {
    if (fileInput.files?.length) guarded(host.open(files(given(fileInput.files))));
    // The same files can be chosen again: they may have changed.
    fileInput.value = "";
  };
  const folderInput = $<HTMLInputElement>("folder");
  folderInput.onchange = () => {
    const all = [...(folderInput.files ?? [])];
    if (all.length > 0) guarded(pick(given(all.slice(0, MAX_FOLDER_FILES)), Math.max(0, all.length - MAX_FOLDER_FILES), host));
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
    const taken = dropped(event.dataTransfer).then(({ all, folder }) => {
      if (all.length === 0) return;
      return folder || all.length > 8 ? pick(all.slice(0, MAX_FOLDER_FILES), Math.max(0, all.length - MAX_FOLDER_FILES), host) : host.open(files(all));
    });
    guarded(taken);
  });
  guarded(openServed(host));
}
