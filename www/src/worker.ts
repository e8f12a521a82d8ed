// Everything that reads an image runs here, away from the page.

// @ts-expect-error the package's entry is plain JavaScript; its declarations are those of "diskette"
import { open as openImage } from "../../pkg/src/web.js";
import type { Image, open as openType } from "diskette";

import type { Answer, Ask, Envelope, Opened } from "./protocol";

const open = openImage as typeof openType;
const scope = self as unknown as DedicatedWorkerGlobalScope;
let image: Image | undefined;

async function opened(make: () => Promise<Image>, name: string, missing: string[]): Promise<Opened> {
  await image?.close();
  image = undefined;
  image = await make();
  return { name, fileSize: image.fileSize, info: image.info(), missing };
}

/** Opens the first file; files that it names are taken from the others. */
async function openFiles(files: File[]): Promise<Opened> {
  const [first, ...others] = files;
  if (!first) throw new Error("no file was given");
  const missing: string[] = [];
  const find = (name: string): File | undefined => others.find((file) => file.name === name.split(/[/\\]/).at(-1));
  // With references that nobody gave, the structure can still be shown.
  const probe = await open(first);
  const { backingFile, dataFile } = probe.info();
  await probe.close();
  for (const named of [backingFile, dataFile]) if (named && !find(named.name)) missing.push(named.name);
  if (missing.length > 0 || others.length === 0) return opened(() => open(first), first.name, missing);
  const onOpen = ({ name }: { name: string }): File | null => {
    const file = find(name);
    if (!file) missing.push(name);
    return file ?? null;
  };
  return opened(() => open(first, { onOpen }), first.name, missing);
}

function current(): Image {
  if (!image) throw new Error("no image is open");
  return image;
}

async function answer(ask: Ask): Promise<unknown> {
  switch (ask.op) {
    case "open":
      return openFiles(ask.files);
    case "open-url":
      return opened(() => open(ask.url), ask.url, []);
    case "map":
      return current().map();
    case "check":
      return current().check();
    case "read":
      return ask.space === "file" ? current().readFile(ask.offset, ask.length) : current().read(ask.offset, ask.length);
  }
}

scope.onmessage = async ({ data }: MessageEvent<Envelope>) => {
  let reply: Answer;
  try {
    reply = { id: data.id, value: await answer(data.ask) };
  } catch (error) {
    const { message = String(error), kind = "unknown" } = error as { message?: string; kind?: string };
    reply = { id: data.id, failure: { message, kind } };
  }
  scope.postMessage(reply);
};
