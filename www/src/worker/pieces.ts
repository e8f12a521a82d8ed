// Long work goes piece by piece: which stretches of a disk there is a point in reading, and bytes into a file or a download.

import { MAP_COLUMNS } from "../../../pkg/inspector/index.js";
import type { InspectedImage as Image } from "diskette/inspector";

import type { Call } from "./state";

/** Flags of extents. */
const [ZERO, DATA] = [2, 4];
/** What is read, and written, at a time. */
export const PIECE_BYTES = 1 << 20;

interface Pieces {
  length: number;
  /** At a time; `PIECE_BYTES` unless given. */
  piece?: number;
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
}

/**
 * The stretches of a disk that can hold anything but zeroes, from an offset on. What lies in a file that is not open is among
 * them: reading it says so.
 */
export async function* stretches(image: Image, from = 0): AsyncGenerator<[start: number, end: number], void, void> {
  for await (const { columns } of image.mapPages({ offset: from, length: image.size - from })) {
    for (let at = 0; at < columns.length; at += MAP_COLUMNS) {
      const [start, length, , flags] = columns.subarray(at, at + MAP_COLUMNS) as unknown as [number, number, number, number];
      if (flags & DATA || !(flags & ZERO)) yield [start, start + length];
    }
  }
}

/** Puts bytes into a file, which changes when all of them are there, or else together for a download. */
export async function gather({ length, piece: most = PIECE_BYTES, read }: Pieces, handle: FileSystemFileHandle | null, { signal, part }: Call<number>): Promise<Blob | null> {
  const writable = await handle?.createWritable();
  const parts: Blob[] = [];
  try {
    for (let done = 0; done < length; part(done)) {
      signal.throwIfAborted();
      const piece = await read(done, Math.min(most, length - done));
      if (piece.length === 0) throw new Error(`there are only ${done} of ${length} bytes; was the file changed?`);
      if (writable) await writable.write(piece);
      else parts.push(new Blob([piece]));
      done += piece.length;
    }
    await writable?.close();
  } catch (error) {
    await writable?.abort().catch(() => {});
    throw error;
  }
  return handle ? null : new Blob(parts);
}
