// Map, check, bytes and search.

import { MAP_COLUMNS } from "../../../pkg/inspector/index.js";
import type { InspectedImage as Image } from "diskette/inspector";

import type { Space } from "../protocol";
import { PIECE_BYTES, gather, stretches } from "./pieces";
import { type Call, type Handlers, current } from "./state";

/** A map is cut here; a picture cannot show more. */
const MAX_EXTENTS = 2_000_000;
/** What is searched for is no longer than this. */
const MAX_NEEDLE = 4096;

/** Bytes of the disk or of a file. Work that reads more than once keeps to one image. */
async function readSpace(image: Image, space: Space, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  return space === "disk" ? image.read(offset, length) : (await image.readFile(offset, length, { file: space })).slice();
}

/** The stretches of a space that a search has to read. */
async function* searched(image: Image, space: Space, from: number): AsyncGenerator<[start: number, end: number], void, void> {
  if (space === "disk") yield* stretches(image, from);
  else yield [from, image.files[space]?.size ?? 0];
}

function find(haystack: Uint8Array, needle: Uint8Array): number {
  const first = needle[0] as number;
  for (let at = haystack.indexOf(first); at >= 0 && at + needle.length <= haystack.length; at = haystack.indexOf(first, at + 1)) {
    let same = 1;
    while (same < needle.length && haystack[at + same] === needle[same]) same++;
    if (same === needle.length) return at;
  }
  return -1;
}

async function search({ space, from, bytes }: { space: Space; from: number; bytes: Uint8Array }, call: Call<number>): Promise<number | null> {
  if (bytes.length === 0 || bytes.length > MAX_NEEDLE) throw new Error(`what is searched for is from 1 to ${MAX_NEEDLE} bytes long`);
  const { image } = current();
  /** The end of what was looked at, which a match may begin in, and where it ends. */
  let tail = new Uint8Array();
  let reached = from;
  const look = (piece: Uint8Array): number | null => {
    const joined = new Uint8Array(tail.length + piece.length);
    joined.set(tail);
    joined.set(piece, tail.length);
    const found = find(joined, bytes);
    if (found >= 0) return reached - tail.length + found;
    reached += piece.length;
    tail = joined.slice(Math.max(0, joined.length - bytes.length + 1));
    return null;
  };
  /** Between stretches there are zeroes. Beyond the first few they cannot make a match that the first few do not. */
  const skip = (to: number): number | null => {
    const found = look(new Uint8Array(Math.min(bytes.length, to - reached)));
    if (reached < to) [reached, tail] = [to, new Uint8Array(Math.min(bytes.length - 1, to - reached + bytes.length))];
    return found;
  };
  for await (const [start, end] of searched(image, space, from)) {
    if (start > reached) {
      const found = skip(start);
      if (found !== null) return found;
    }
    while (reached < end) {
      call.signal.throwIfAborted();
      const piece = await readSpace(image, space, reached, Math.min(PIECE_BYTES, end - reached));
      if (piece.length === 0) return null;
      const found = look(piece);
      if (found !== null) return found;
      call.part(reached);
    }
  }
  return space === "disk" && reached < image.size ? skip(image.size) : null;
}

export const reading: Pick<Handlers, "map" | "check" | "read" | "export" | "search"> = {
  async map(_, { part, signal }) {
    let extents = 0;
    for await (const page of current().image.mapPages({ signal })) {
      extents += page.columns.length / MAP_COLUMNS;
      part(page, [page.columns.buffer as ArrayBuffer]);
      if (extents > MAX_EXTENTS) return { complete: false };
    }
    return { complete: true };
  },
  check: (_, { signal }) => current().image.check({ signal }),
  read: ({ space, offset, length }) => readSpace(current().image, space, offset, length),
  export({ space, offset, length, handle }, call) {
    const { image } = current();
    return gather({ length, read: (done, count) => readSpace(image, space, offset + done, count) }, handle, call);
  },
  search,
};
