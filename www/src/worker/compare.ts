// Whether two disks hold the same bytes. What is zero on both by their maps is not read.

import type { InspectedImage as Image } from "diskette/inspector";

import { baseName } from "../paths";
import type { Ops } from "../protocol";
import { openOne } from "./opening";
import { PIECE_BYTES, stretches } from "./pieces";
import { type Call, type Handlers, current, whenReplaced } from "./state";

/** Ranges that differ beyond these are joined, however far they are from each other. */
const MAX_RANGES = 200_000;
/** Differences closer than this are one, so that a list of them can be read. */
const JOIN_BYTES = 512;

let other: Image | undefined;

async function closeOther(): Promise<void> {
  const before = other;
  other = undefined;
  await before?.close();
}

whenReplaced(closeOther);

/** Stretches of the union of what two disks hold, in order. */
async function* union(one: Image, two: Image): AsyncGenerator<[start: number, end: number], void, void> {
  const sides = [stretches(one), stretches(two)] as const;
  const heads = [await sides[0].next(), await sides[1].next()];
  let open: [number, number] | undefined;
  while (!heads[0]?.done || !heads[1]?.done) {
    const [left, right] = heads.map((head) => (head.done ? Infinity : head.value[0])) as [number, number];
    const side = left <= right ? 0 : 1;
    const [start, end] = heads[side]?.value as [number, number];
    heads[side] = await sides[side].next();
    if (open && start <= open[1]) open[1] = Math.max(open[1], end);
    else {
      if (open) yield open;
      open = [start, end];
    }
  }
  if (open) yield open;
}

/** Bytes of a disk, and zeroes behind its end. */
async function padded(image: Image, offset: number, length: number, signal: AbortSignal): Promise<Uint8Array> {
  const there = Math.max(0, Math.min(length, image.size - offset));
  const bytes = there > 0 ? await image.read(offset, there, { signal }) : new Uint8Array();
  if (there === length) return bytes;
  const all = new Uint8Array(length);
  all.set(bytes);
  return all;
}

/** Calls `found` for each run of bytes that differ. */
function differences(one: Uint8Array, two: Uint8Array, base: number, found: (start: number, end: number) => void): void {
  let start = -1;
  let last = -1;
  for (let at = 0; at < one.length; at++) {
    if (one[at] === two[at]) continue;
    if (start >= 0 && at - last > JOIN_BYTES) {
      found(base + start, base + last + 1);
      start = at;
    } else if (start < 0) start = at;
    last = at;
  }
  if (start >= 0) found(base + start, base + last + 1);
}

async function compare({ opening }: Ops["compare"]["ask"], call: Call<Ops["compare"]["part"]>): Promise<Ops["compare"]["reply"]> {
  const { image: one } = current();
  const { image: two, opened } = await openOne(opening, call.signal);
  if (current().image !== one) {
    await two.close();
    throw Object.assign(new Error("another image was opened"), { kind: "closed" });
  }
  await closeOther();
  other = two;
  if (opened.info.encryption && !opening.wish.passphrase) {
    throw Object.assign(new Error(`${baseName(opened.name)} is encrypted: its passphrase is needed to compare it`), { kind: "locked" });
  }
  const total = Math.max(one.size, two.size);
  let ranges: number[] = [];
  let differing = 0;
  let count = 0;
  let open: [number, number] | undefined;
  const close = (): void => {
    if (!open) return;
    ranges.push(open[0], open[1] - open[0]);
    differing += open[1] - open[0];
    count += 1;
    open = undefined;
  };
  const found = (start: number, end: number): void => {
    if (open && (start - open[1] <= JOIN_BYTES || count >= MAX_RANGES)) open[1] = end;
    else {
      close();
      open = [start, end];
    }
  };
  const tell = (done: number): void => {
    call.part({ done, total, ranges: Float64Array.from(ranges) });
    ranges = [];
  };
  for await (const [start, end] of union(one, two)) {
    for (let at = start; at < end; ) {
      call.signal.throwIfAborted();
      const length = Math.min(PIECE_BYTES, end - at);
      const [left, right] = await Promise.all([padded(one, at, length, call.signal), padded(two, at, length, call.signal)]);
      differences(left, right, at, found);
      at += length;
      // What the last difference goes on to be is not known yet.
      tell(open ? open[0] : at);
    }
  }
  close();
  tell(total);
  return { name: opened.name, size: two.size, missing: opened.missing, differing, count };
}

export const comparing: Pick<Handlers, "compare" | "read-other"> = {
  compare,
  async "read-other"({ offset, length }, { signal }) {
    if (!other) throw Object.assign(new Error("no second image is open"), { kind: "closed" });
    return other.read(offset, length, { signal });
  },
};
