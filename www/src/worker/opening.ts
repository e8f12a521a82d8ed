// Opening an image and what it names. Nothing is opened that the user did not give or allow.

import { open } from "../../../pkg/inspector/index.js";
import type { ImageInfo, InspectedImage as Image, Reference } from "diskette/inspector";

import { namedBy } from "../paths";
import type { Missing, Opened, Opening, Ops, Surveyed, Wish } from "../protocol";
import { type Call, type Handlers, replace } from "./state";

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

/** Those of several files that a file among them names. */
async function namedIn(file: File, files: File[]): Promise<{ info: ImageInfo; named: File[] }> {
  const info = await describe(await open(file));
  const named = referencesOf(info).map(({ name }) => namedBy(file.name, name, files));
  return { info, named: named.filter((other) => other !== undefined && other !== file) as File[] };
}

/** The one of several files that no other names comes first. */
async function topFirst(files: File[]): Promise<File[]> {
  if (files.length < 2) return files;
  const named = new Set<File>();
  for (const file of files) {
    const found = await namedIn(file, files).catch(() => undefined);
    for (const other of found?.named ?? []) named.add(other);
  }
  const top = files.find((file) => !named.has(file));
  return top ? [top, ...files.filter((file) => file !== top)] : files;
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
  const given = files.map(({ file }) => file);
  const [first, ...others] = ordered ? given : await topFirst(given);
  if (!first) throw new Error("no file was given");
  const find: Find = ({ name, from }) => namedBy(from, name, others) ?? null;
  return [first, ...(await openWith(first, find, wish))];
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

/** How often the page hears of a survey. */
const SURVEY_MILLISECONDS = 200;

async function survey(files: File[], { signal, part }: Call<Ops["survey"]["part"]>): Promise<null> {
  let found: Surveyed[] = [];
  let told = performance.now();
  for (const [index, file] of files.entries()) {
    signal.throwIfAborted();
    try {
      const { info, named } = await namedIn(file, files);
      if (info.format !== "raw") found.push({ name: file.name, format: info.format, virtualSize: info.virtualSize, named: named.map(({ name }) => name) });
    } catch {
      // What cannot be opened is said when it is chosen.
    }
    if (index + 1 < files.length && performance.now() - told < SURVEY_MILLISECONDS) continue;
    part({ done: index + 1, found });
    [found, told] = [[], performance.now()];
  }
  return null;
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
  survey: ({ files }, call) => survey(files, call),
};
