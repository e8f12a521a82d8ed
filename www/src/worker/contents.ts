// Partitions and files of the disk.

import { DiskContents } from "../contents";
import { gather } from "./pieces";
import { type Handlers, current, whenReplaced } from "./state";

/** Going to a place in a file takes time in some file systems. */
const FILE_PIECE_BYTES = 4 << 20;

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

export const containing: Pick<Handlers, "layout" | "list" | "file" | "save-file"> = {
  layout: (_, { signal }) => contents().layout(signal),
  list: ({ volume, path, from, count }, { signal }) => contents().list(volume, path, from, count, signal),
  file: async ({ volume, path, offset, length }, { signal }) => (await contents().read(volume, path, offset, length, signal)) as Uint8Array<ArrayBuffer>,
  "save-file"({ volume, path, size, handle }, call) {
    const disk = contents();
    const read = async (offset: number, length: number) => (await disk.read(volume, path, offset, length, call.signal)) as Uint8Array<ArrayBuffer>;
    return gather({ length: size, piece: FILE_PIECE_BYTES, read }, handle, call);
  },
};
