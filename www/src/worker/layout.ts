// The image taken apart: its tables, what is where in its file, which place of the disk a place in the file is, its bitmaps.

import { look } from "../../../pkg/inspector/index.js";
import type { InspectedFile, InspectedImage as Image } from "diskette/inspector";

import { type Handlers, type OpenImage, current } from "./state";

const COLUMNS = 6;
const PIECE_NUMBERS = 3 * 8192;

/** Extents of the disk by where they are in the file. */
interface Index {
  offsets: Float64Array;
  lengths: Float64Array;
  starts: Float64Array;
}

const indices = new WeakMap<Image, Index>();

async function build(image: Image, signal: AbortSignal): Promise<Index> {
  const rows: [offset: number, length: number, start: number][] = [];
  const own = image.files[0]?.name;
  for await (const { columns, files } of image.mapPages({ signal })) {
    for (let at = 0; at < columns.length; at += COLUMNS) {
      const [start, length, , , offset, file] = columns.subarray(at, at + COLUMNS) as unknown as [number, number, number, number, number, number];
      if (offset >= 0 && file >= 0 && files[file] === own) rows.push([offset, length, start]);
    }
  }
  rows.sort(([one], [two]) => one - two);
  return {
    offsets: Float64Array.from(rows, ([offset]) => offset),
    lengths: Float64Array.from(rows, ([, length]) => length),
    starts: Float64Array.from(rows, ([, , start]) => start),
  };
}

const broken = new WeakMap<Image, Promise<InspectedFile>>();

/** What can be taken apart: the image, or a file that was only opened for its bytes because it is no sound image. */
function subject({ image, input, opening }: OpenImage): Promise<Pick<Image, "structure">> | Image {
  if (opening.wish.format !== "raw") return image;
  let file = broken.get(image);
  if (!file) broken.set(image, (file = look(input)));
  return file;
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
  async "guest-of"({ offset }, { signal }) {
    const { image } = current();
    let index = indices.get(image);
    if (!index) indices.set(image, (index = await build(image, signal)));
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
