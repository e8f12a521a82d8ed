// Partitions and files of the disk.

import { DiskContents } from "../contents";
import type { Ops } from "../protocol";
import { type Call, type Handlers, current, whenReplaced } from "./state";

const PIECE_BYTES = 1 << 20;

let known: DiskContents | undefined;

whenReplaced(() => {
  known?.close();
  known = undefined;
});

/** The contents of the image that is open. */
function contents(): DiskContents {
  const { image } = current();
  known ??= new DiskContents((offset, length, signal) => image.read(offset, length, signal ? { signal } : {}), image.size);
  return known;
}

async function save({ volume, path, size, handle }: Ops["save-file"]["ask"], { signal, part }: Call<number>): Promise<Blob | null> {
  const disk = contents();
  const writable = await handle?.createWritable();
  const parts: Blob[] = [];
  try {
    for (let done = 0; done < size; part(done)) {
      signal.throwIfAborted();
      const piece = (await disk.read(volume, path, done, Math.min(PIECE_BYTES, size - done), signal)) as Uint8Array<ArrayBuffer>;
      if (piece.length === 0) throw new Error(`the file ends at ${done} of ${size} bytes`);
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

export const containing: Pick<Handlers, "layout" | "list" | "file" | "save-file"> = {
  layout: (_, { signal }) => contents().layout(signal),
  list: ({ volume, path, from, count }, { signal }) => contents().list(volume, path, from, count, signal),
  file: async ({ volume, path, offset, length }, { signal }) => (await contents().read(volume, path, offset, length, signal)).slice(),
  "save-file": save,
};
