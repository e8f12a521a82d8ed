// Copying the disk into a new image: to a file that was picked, or to the browser's own storage and from there to a download.

import { convert } from "../../../pkg/inspector/index.js";

import type { Ops } from "../protocol";
import { type Call, type Handlers, current } from "./state";

/** Where copies are put together that are to be downloaded: files of the browser, which a download reads to its end. */
const SCRATCH = "diskette-copy-";
const OLD_MILLISECONDS = 3_600_000;

/** Makes a new one, and removes those that no download can need any more. */
async function scratchFile(): Promise<FileSystemFileHandle> {
  const storage = await navigator.storage.getDirectory();
  for await (const entry of storage.values()) {
    if (entry.kind !== "file" || !entry.name.startsWith(SCRATCH)) continue;
    const { lastModified } = await (entry as FileSystemFileHandle).getFile();
    // One that another tab writes to stays.
    if (lastModified < Date.now() - OLD_MILLISECONDS) await storage.removeEntry(entry.name).catch(() => {});
  }
  return storage.getFileHandle(`${SCRATCH}${crypto.randomUUID()}`, { create: true });
}

/** What holds a running copy up, by the number that its view gave it. */
const gates = new Map<number, { open: Promise<void>; release: () => void }>();

/** Lets `work` fill a file that was picked. If that fails and the file was empty it is empty again: a part may have been put in its place. */
async function convertTo(handle: FileSystemFileHandle, work: (handle: FileSystemFileHandle) => Promise<unknown>): Promise<void> {
  const { size } = await handle.getFile();
  try {
    await work(handle);
  } catch (error) {
    const left = await handle.getFile().catch(() => undefined);
    if (size === 0 && left && left.size > 0) await handle.createWritable().then((writable) => writable.close()).catch(() => {});
    throw error;
  }
}

async function copy({ handle, job, options }: Ops["convert"]["ask"], { signal, part }: Call<Ops["convert"]["part"]>): Promise<File | null> {
  const { image } = current();
  const aborted = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  // A copy that is paused waits before it reads on.
  const source = {
    size: image.size,
    mapPages: image.mapPages.bind(image),
    async read(...args: Parameters<typeof image.read>) {
      await Promise.race([gates.get(job)?.open, aborted]);
      signal.throwIfAborted();
      return image.read(...args);
    },
  };
  const copying = { ...options, signal, onProgress: part };
  try {
    if (handle) {
      await convertTo(handle, (target) => convert(source, target, copying));
      return null;
    }
    const scratch = await scratchFile();
    const access = await scratch.createSyncAccessHandle();
    try {
      access.truncate(0);
      await convert(source, access, copying);
    } catch (error) {
      access.truncate(0);
      throw error;
    } finally {
      access.close();
    }
    return await scratch.getFile();
  } finally {
    gates.get(job)?.release();
    gates.delete(job);
  }
}

export const converting: Pick<Handlers, "convert" | "pause"> = {
  convert: copy,
  async pause({ job, paused }) {
    const gate = gates.get(job);
    if (!paused) {
      gate?.release();
      gates.delete(job);
    } else if (!gate) {
      let release = (): void => {};
      const open = new Promise<void>((resolve) => (release = resolve));
      gates.set(job, { open, release });
    }
    return null;
  },
};
