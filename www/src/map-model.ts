// The extents of a disk, as columns of numbers: a large disk has millions.

import type { MapPage } from "diskette";

export const KINDS = ["data", "compressed", "backing", "zero", "unallocated"] as const;
export type Kind = (typeof KINDS)[number];

/** What each kind means, for people. */
export const MEANING: Record<Kind, string> = {
  data: "stored as it is",
  compressed: "stored compressed",
  backing: "stored in an image further down the chain",
  zero: "reads as zeroes, and the image says so",
  unallocated: "nothing is stored; reads as zeroes",
};

export interface Extent {
  start: number;
  length: number;
  depth: number;
  kind: Kind;
  offset: number | null;
  file: string | null;
}

const COLUMNS = 6;

export class MapModel {
  readonly total: number;
  /** Guest offset up to which the extents reach. */
  end = 0;
  count = 0;
  /** Bytes of each kind. */
  readonly bytes: Record<Kind, number> = { data: 0, compressed: 0, backing: 0, zero: 0, unallocated: 0 };
  #columns = new Float64Array(COLUMNS * 64);
  #files: string[] = [];

  constructor(total: number) {
    this.total = total;
  }

  append({ columns, files, end }: MapPage): void {
    const needed = this.count * COLUMNS + columns.length;
    if (needed > this.#columns.length) {
      const larger = new Float64Array(Math.max(needed, this.#columns.length * 2));
      larger.set(this.#columns.subarray(0, this.count * COLUMNS));
      this.#columns = larger;
    }
    const names = files.map((name) => {
      const known = this.#files.indexOf(name);
      return known >= 0 ? known : this.#files.push(name) - 1;
    });
    const from = this.count * COLUMNS;
    this.#columns.set(columns, from);
    for (let at = from; at < from + columns.length; at += COLUMNS) {
      const file = this.#columns[at + 5] as number;
      if (file >= 0) this.#columns[at + 5] = names[file] as number;
      this.bytes[KINDS[this.#kind(at)] as Kind] += this.#columns[at + 1] as number;
    }
    this.count += columns.length / COLUMNS;
    this.end = end;
  }

  /** Index in `KINDS`. */
  #kind(at: number): number {
    const flags = this.#columns[at + 3] as number;
    if (flags & 8) return 1;
    if (flags & 4) return (this.#columns[at + 2] as number) > 0 ? 2 : 0;
    return flags & 1 ? 3 : 4;
  }

  /** The extent that holds a guest offset. */
  extentAt(guest: number): Extent | undefined {
    if (guest >= this.end || this.count === 0) return undefined;
    const at = this.#find(guest) * COLUMNS;
    const [start, length, depth, , offset, file] = this.#columns.subarray(at, at + COLUMNS) as unknown as number[];
    return {
      start: start as number,
      length: length as number,
      depth: depth as number,
      kind: KINDS[this.#kind(at)] as Kind,
      offset: (offset as number) < 0 ? null : (offset as number),
      file: (file as number) < 0 ? null : (this.#files[file as number] ?? null),
    };
  }

  #find(guest: number): number {
    let low = 0;
    let high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#columns[middle * COLUMNS] as number) <= guest) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /**
   * For each of `cells` equal parts of a range: its most telling kind, so that a small allocation in a large disk is seen,
   * and that kind's share of the cell. Kind -1 is not mapped yet.
   */
  cells(start: number, span: number, cells: number): { kind: Int8Array; share: Float32Array } {
    const kind = new Int8Array(cells).fill(-1);
    const share = new Float32Array(cells);
    if (this.count === 0 || span <= 0) return { kind, share };
    const step = span / cells;
    for (let index = this.#find(start); index < this.count; index++) {
      const at = index * COLUMNS;
      const from = Math.max(0, ((this.#columns[at] as number) - start) / step);
      const to = Math.min(cells, ((this.#columns[at] as number) + (this.#columns[at + 1] as number) - start) / step);
      if (from >= cells) break;
      const own = this.#kind(at);
      for (let cell = Math.floor(from); cell < to; cell++) {
        const part = Math.min(to, cell + 1) - Math.max(from, cell);
        const shown = kind[cell] as number;
        if (shown === own) share[cell] = (share[cell] as number) + part;
        else if (shown < 0 || own < shown) [kind[cell], share[cell]] = [own, part];
      }
    }
    return { kind, share };
  }
}
