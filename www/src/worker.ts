// Everything that reads an image runs here, away from the page.

// @ts-expect-error the package's entry is plain JavaScript; its declarations are those of "diskette"
import { open as openImage } from "../../pkg/src/web.js";
import type { Image, MapPage, Reference, open as openType } from "diskette";

import type { Answer, Ask, Envelope, Failure, Missing, Opened } from "./protocol";

const open = openImage as typeof openType;
const scope = self as unknown as DedicatedWorkerGlobalScope;
let image: Image | undefined;
/** Ends an opening when another one begins. */
let opening = new AbortController();

/** A map is cut here; a picture cannot show more. */
const MAX_EXTENTS = 2_000_000;
const COLUMNS = 6;

const baseName = (name: string): string => name.split(/[/\\]/).at(-1) ?? name;

/** What an image names, without opening it. */
async function referencesOf(input: File | string): Promise<Missing[]> {
  const probe = await open(input);
  const { backingFile, dataFile } = probe.info();
  await probe.close();
  const named: Missing[] = [];
  if (backingFile) named.push({ name: backingFile.name, role: "backing", given: false });
  if (dataFile) named.push({ name: dataFile.name, role: "data-file", given: false });
  return named;
}

/** The one of several files that no other names comes first. */
async function topFirst(files: File[]): Promise<File[]> {
  if (files.length < 2) return files;
  const named = new Set<string>();
  for (const file of files) {
    for (const { name } of await referencesOf(file).catch(() => [])) if (baseName(name) !== file.name) named.add(baseName(name));
  }
  const top = files.find((file) => !named.has(file.name));
  return top ? [top, ...files.filter((file) => file !== top)] : files;
}

interface Wish {
  name: string;
  /** Taken as that, whatever it looks like. */
  format: string | undefined;
  signal: AbortSignal;
}

type Find = (reference: Reference) => File | string | null;

/** Opens an image with what `find` has of the files that it names; without them its structure can still be shown. */
async function openWith(input: File | string, named: Missing[], find: Find, { name, format, signal }: Wish): Promise<Opened> {
  let asked: Missing[] = [];
  const onOpen = (reference: Reference): File | string | null => {
    const found = find(reference);
    asked.push({ name: reference.name, role: reference.role, given: found !== null });
    return found;
  };
  let made: Image | undefined;
  if (named.length > 0) {
    try {
      made = await open(input, { onOpen, signal });
      asked = [];
    } catch (error) {
      if (asked.every(({ given }) => given)) throw error;
    }
  }
  made ??= await open(input, format === undefined ? { signal } : { format, signal });
  if (signal.aborted) {
    await made.close();
    signal.throwIfAborted();
  }
  image = made;
  return { name, info: made.info(), files: made.files, missing: asked };
}

/** Leaves the image that is open, and any that is being opened. */
async function leave(): Promise<AbortSignal> {
  opening.abort();
  opening = new AbortController();
  const { signal } = opening;
  const before = image;
  image = undefined;
  await before?.close();
  return signal;
}

async function openFiles(given: File[], format: string | undefined, signal: AbortSignal): Promise<Opened> {
  const [first, ...others] = await topFirst(given);
  if (!first) throw new Error("no file was given");
  const find: Find = ({ name }) => others.find((file) => file.name === baseName(name)) ?? null;
  return openWith(first, format ? [] : await referencesOf(first), find, { name: first.name, format, signal });
}

/** An address; files beside it are fetched only if the user said so, and only from the same server. */
async function openUrl(url: string, follow: boolean, format: string | undefined, signal: AbortSignal): Promise<Opened> {
  const find: Find = ({ name, from }) => {
    if (!follow || !URL.canParse(name, from)) return null;
    const target = new URL(name, from);
    return target.origin === new URL(url).origin ? target.href : null;
  };
  return openWith(url, format ? [] : await referencesOf(url), find, { name: url, format, signal });
}

function current(): Image {
  if (!image) throw Object.assign(new Error("no image is open"), { kind: "closed" });
  return image;
}

async function map(part: (page: MapPage) => void): Promise<{ complete: boolean }> {
  let extents = 0;
  for await (const page of current().mapPages()) {
    extents += page.columns.length / COLUMNS;
    part(page);
    if (extents > MAX_EXTENTS) return { complete: false };
  }
  return { complete: true };
}

async function answer(ask: Ask, part: (page: MapPage) => void): Promise<unknown> {
  switch (ask.op) {
    case "open":
      return openFiles(ask.files, ask.format, await leave());
    case "open-url":
      return openUrl(ask.url, ask.follow, ask.format, await leave());
    case "map":
      return map(part);
    case "check":
      return current().check();
    case "read":
      return ask.space === "disk"
        ? current().read(ask.offset, ask.length)
        : (await current().readFile(ask.offset, ask.length, { file: ask.space })).slice();
  }
}

scope.onmessage = async ({ data }: MessageEvent<Envelope>) => {
  const { id } = data;
  let reply: Answer;
  try {
    reply = { id, value: await answer(data.ask, (page) => scope.postMessage({ id, part: page } satisfies Answer, [page.columns.buffer])) };
  } catch (error) {
    const { message = String(error), kind = "unknown", offset = null, operation = null } = error as Partial<Failure>;
    reply = { id, failure: { message, kind, offset, operation } };
  }
  scope.postMessage(reply);
};
