// Files for the user: to a place that is picked where the browser can do that, else as a download.

import { size } from "./format";

/** Where bytes go: a handle that the worker writes to, or a download that the page begins when they are complete. */
export type Destination = { handle: FileSystemFileHandle } | { download: string };

/** Whether files can be written as they come rather than being put together first. */
export const canPick = "showSaveFilePicker" in window;

/** Downloads are put together in the browser first, which has room for so much. */
const MAX_DOWNLOAD_BYTES = 1 << 30;

/** Why so many bytes cannot be saved here; nothing if they can. */
export function tooLarge(length: number): string {
  return canPick || length <= MAX_DOWNLOAD_BYTES ? "" : `This browser cannot write files as they come, so at most ${size(MAX_DOWNLOAD_BYTES)} can be saved at once.`;
}

interface SavePicker {
  showSaveFilePicker(options: { suggestedName: string }): Promise<FileSystemFileHandle>;
}

/** Asks where to save; nothing if the user does not want to. Has to be called from an act of the user. */
export async function askWhere(suggestedName: string): Promise<Destination | undefined> {
  if (!canPick) return { download: suggestedName };
  try {
    return { handle: await (window as unknown as SavePicker).showSaveFilePicker({ suggestedName }) };
  } catch (error) {
    if ((error as Error).name === "AbortError") return undefined;
    throw error;
  }
}

/** Lets `work` write to a place, or begins the download of what it gives. */
export async function saveTo(where: Destination, work: (handle: FileSystemFileHandle | null) => Promise<Blob | null>): Promise<void> {
  const blob = await work("handle" in where ? where.handle : null);
  if (blob && "download" in where) download(where.download, blob);
}

/** Begins a download of something that is complete. */
export function download(name: string, blob: Blob): void {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  [link.href, link.download] = [address, name];
  link.click();
  // The browser has taken what it needs by then.
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
