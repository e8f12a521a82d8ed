// The image taken apart: its tables, what is where in its file, which place of the disk a place in the file is, its bitmaps.

import { MAP_COLUMNS, look } from "../../../pkg/inspector/index.js";
import type { InspectedFile, InspectedImage as Image } from "diskette/inspector";

import { type Handlers, type OpenImage, current, whenReplaced } from "./state";

const PIECE_NUMBERS = 3 * 8192;

/** Extents of the disk by where they are in the file. */
interface Index {
  offsets: Float64Array;
  lengths: Float64Array;
  starts: Float64Array;
}

const indices = new WeakMap<Image, Promise<Index>>();

/** Extents beyond these are not found from the file. */
const MAX_INDEXED = 2_000_000;

async function build(image: Image): Promise<Index> {
  const own = image.files[0]?.name;
  let rows = new Float64Array(3 * 4096);
  let count = 0;
  for await (const { columns, files } of image.mapPages()) {
    for (let at = 0; at < columns.length && count < MAX_INDEXED; at += MAP_COLUMNS) {
      const [offset, file] = [columns[at + 4] as number, columns[at + 5] as number];
      if (offset < 0 || file < 0 || files[file] !== own) continue;
      if (count * 3 === rows.length) {
        const larger = new Float64Array(rows.length * 2);
        larger.set(rows);
        rows = larger;
      }
      rows.set([offset, columns[at + 1] as number, columns[at] as number], count * 3);
      count++;
    }
    if (count >= MAX_INDEXED) break;
  }
  const order = Uint32Array.from({ length: count }, (_, index) => index).sort((one, two) => (rows[one * 3] as number) - (rows[two * 3] as number));
  const column = (which: number): Float64Array => Float64Array.from(order, (row) => rows[row * 3 + which] as number);
  return { offsets: column(0), lengths: column(1), starts: column(2) };
}

/** The index of an image, made once. */
function indexOf(image: Image): Promise<Index> {
  let index = indices.get(image);
  if (!index) {
    indices.set(image, (index = build(image)));
    index.catch(() => indices.delete(image));
  }
  return index;
}

let broken: { file: Promise<InspectedFile>; stop: AbortController } | undefined;

whenReplaced(() => {
  broken?.stop.abort();
  void broken?.file.then((file) => file.close()).catch(() => {});
  broken = undefined;
});

/** A file that was only opened for its bytes; a failure is tried again. */
function lookAt(input: File | string): Promise<InspectedFile> {
  if (broken) return broken.file;
  const stop = new AbortController();
  const own = { stop, file: look(input, { signal: stop.signal }) };
  broken = own;
  own.file.catch(() => {
    if (broken === own) broken = undefined;
  });
  return own.file;
}

/** What can be taken apart: the image, or a file that was only opened for its bytes because it is no sound image. */
function subject({ image, input, opening }: OpenImage): Promise<InspectedFile> | Image {
  return opening.wish.format === "raw" ? lookAt(input) : image;
}

export const layout: Pick<Handlers, "structure" | "regions" | "bitmap" | "guest-of"> = {
  async structure({ path, from, count }, { signal }) {
    return (await subject(current())).structure(path, { from, count, signal });
  },
  async regions(_, { part, signal }) {
    for await (const { columns, kinds } of current().image.regions({ signal })) {
      // In pieces that the page takes in between two frames.
      for (let at = 0; at < columns.length; at += PIECE_NUMBERS) {
        const piece = columns.slice(at, at + PIECE_NUMBERS);
        part({ columns: piece, kinds, end: (piece.at(-3) ?? 0) + (piece.at(-2) ?? 0) }, [piece.buffer]);
      }
    }
    return null;
  },
  bitmap: ({ name }, { signal }) => current().image.readBitmap(name, { signal }),
  async "guest-of"({ offset }) {
    const index = await indexOf(current().image);
    let low = 0;
    let high = index.offsets.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((index.offsets[middle] as number) <= offset) low = middle + 1;
      else high = middle;
    }
    const found = low - 1;
    const [from, length, start] = [index.offsets[found], index.lengths[found], index.starts[found]];
    if (from === undefined || length === undefined || start === undefined || offset >= from + length) return null;
    return { start: start + offset - from, length: length - (offset - from) };
  },
};
