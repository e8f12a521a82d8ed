// Opening an image and what it names. Nothing is opened that the user did not give or allow.

import { open } from "../../../pkg/inspector/index.js";
import type { ImageInfo, InspectedImage as Image, Reference } from "diskette/inspector";

import { Files } from "../paths";
import type { Given, Missing, Opened, Opening, Surveyed, Wish } from "../protocol";
import { type Handlers, replace } from "./state";

/** Ends an opening when another one begins. */
let latest = new AbortController();

/** What an image says of itself; it is closed then. */
async function describe(image: Image): Promise<ImageInfo> {
  try {
    return image.info();
  } finally {
    await image.close();
  }
}

/** What an image names. */
function referencesOf({ backingFile, dataFile }: ImageInfo): Missing[] {
  const named: Missing[] = [];
  if (backingFile) named.push({ name: backingFile.name, role: "backing", given: false });
  if (dataFile) named.push({ name: dataFile.name, role: "data-file", given: false });
  return named;
}

/** What is in each of several files; what cannot be opened is left out, and said when it is chosen. */
async function survey(files: Given[], signal?: AbortSignal): Promise<Surveyed[]> {
  const found: Surveyed[] = [];
  for (const { file, path } of files) {
    signal?.throwIfAborted();
    const info = await open(file).then(describe).catch(() => undefined);
    if (!info || info.format === "raw") continue;
    const references = referencesOf(info).map(({ name }) => name);
    found.push({ path, format: info.format, virtualSize: info.virtualSize, references });
  }
  return found;
}

/** The one of several files that no other names comes first. */
async function topFirst(files: Given[]): Promise<Given[]> {
  if (files.length < 2) return files;
  const named = new Set<Given>();
  const known = new Files(files);
  for (const { path, references } of await survey(files)) {
    for (const name of references) {
      const other = known.named(path, name);
      if (other && other.path !== path) named.add(other);
    }
  }
  const top = files.find((file) => !named.has(file));
  return top ? [top, ...files.filter((file) => file !== top)] : files;
}

/** A file that goes by its path, so that it is told from others of its name. */
function atPath({ file, path }: Given): File {
  return path === file.name ? file : new File([file], path, { type: file.type, lastModified: file.lastModified });
}

type Find = (reference: Reference) => File | string | null;

/** Opens an image with what `find` has of the files that it names; without them its structure can still be shown. */
async function openWith(input: File | string, find: Find, options: Wish & { signal: AbortSignal }): Promise<[Image, Missing[]]> {
  const { passphrase, snapshot, ...plain } = options;
  // Without what it names, and without a key, an image opens to be described. If there is nothing more to it, that is it.
  const probe = await open(input, plain);
  const named = options.format ? [] : referencesOf(probe.info());
  if (named.length === 0 && passphrase === undefined && snapshot === undefined) return [probe, []];
  await probe.close();
  let asked: Missing[] = [];
  const onOpen = (reference: Reference): File | string | null => {
    const found = find(reference);
    asked.push({ name: reference.name, role: reference.role, given: found !== null });
    return found;
  };
  if (named.length > 0) {
    try {
      return [await open(input, { onOpen, ...options }), []];
    } catch (error) {
      if (asked.every(({ given }) => given)) throw error;
    }
  }
  return [await open(input, options), asked];
}

type FilesOpening = Extract<Opening, { from: "files" }>;

async function openFiles({ files, ordered }: FilesOpening, wish: Wish & { signal: AbortSignal }): Promise<[File, Image, Missing[]]> {
  const [first, ...others] = ordered ? files : await topFirst(files);
  if (!first) throw new Error("no file was given");
  const known = new Files(others);
  const find: Find = ({ name, from }) => {
    const found = known.named(from, name);
    return found ? atPath(found) : null;
  };
  const top = atPath(first);
  return [top, ...(await openWith(top, find, wish))];
}

/**
 * An address; files beside it are fetched only if the user said so, and only from the same server. `diskette serve` says
 * itself what it has of what an image names.
 */
async function openUrl({ url, follow, served }: Extract<Opening, { from: "url" }>, wish: Wish & { signal: AbortSignal }): Promise<[Image, Missing[]]> {
  const find: Find = ({ name, from }) => {
    const there = served?.beside.find((file) => file.name === name && file.from === from);
    if (there) return there.url;
    if (!follow || !URL.canParse(name, from)) return null;
    const target = new URL(name, from);
    return target.origin === new URL(url).origin ? target.href : null;
  };
  return openWith(url, find, wish);
}

/** Opens an image without taking it as the current one. */
export async function openOne(opening: Opening, signal: AbortSignal): Promise<{ image: Image; opened: Opened; input: File | string }> {
  const wish = { ...opening.wish, signal };
  let image: Image;
  let missing: Missing[];
  let input: File | string;
  if (opening.from === "files") {
    [input, image, missing] = await openFiles(opening, wish);
  } else {
    [image, missing] = await openUrl(opening, wish);
    input = opening.url;
  }
  if (signal.aborted) {
    await image.close();
    signal.throwIfAborted();
  }
  const served = opening.from === "url" ? opening.served?.name : undefined;
  const name = served ?? (typeof input === "string" ? input : input.name);
  return { image, input, opened: { name, info: image.info(), files: image.files, missing } };
}

export const opening: Pick<Handlers, "open" | "survey"> = {
  async open(wanted) {
    latest.abort();
    const own = (latest = new AbortController());
    await replace(undefined);
    const { image, input, opened } = await openOne(wanted, own.signal);
    if (own.signal.aborted) {
      await image.close();
      own.signal.throwIfAborted();
    }
    await replace({ image, input, opening: wanted });
    return opened;
  },
  survey: ({ files }, { signal }) => survey(files, signal),
};
