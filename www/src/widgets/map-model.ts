// The extents of a disk.

import type { MapPage } from "diskette";

import { offset, size } from "../format";
import { baseName } from "../paths";
import type { Picture } from "./map-view";
import { Runs } from "./runs";

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

export class MapModel extends Runs implements Picture {
  readonly kinds;
  /** How often what is stored does not follow in the file what is stored before it on the disk. */
  breaks = 0;
  #expected = -1;
  #files: string[] = [];
  #sizeOf: (file: string) => number | undefined;

  /** `unallocated` says what is not allocated means, if not zeroes; `sizeOf` knows the sizes of open files. */
  constructor(total: number, sizeOf: (file: string) => number | undefined = () => undefined, unallocated = MEANING.unallocated) {
    super(total, KINDS.length, COLUMNS);
    this.kinds = KINDS.map((name) => ({ name, meaning: name === "unallocated" ? unallocated : MEANING[name] }));
    this.#sizeOf = sizeOf;
  }

  append({ columns, files, end }: MapPage): void {
    const names = files.map((name) => {
      const known = this.#files.indexOf(name);
      return known >= 0 ? known : this.#files.push(name) - 1;
    });
    for (let at = this.add(columns, end); at < this.count * COLUMNS; at += COLUMNS) {
      const file = this.columns[at + 5] as number;
      if (file >= 0) this.columns[at + 5] = names[file] as number;
      const [length, place] = [this.columns[at + 1] as number, this.columns[at + 4] as number];
      if (place < 0) continue;
      if (this.#expected >= 0 && place !== this.#expected) this.breaks++;
      this.#expected = place + length;
    }
  }

  protected kindAt(at: number): number {
    const flags = this.columns[at + 3] as number;
    if (flags & 8) return 1;
    if (flags & 4) return (this.columns[at + 2] as number) > 0 ? 2 : 0;
    return flags & 1 ? 3 : 4;
  }

  /** The extent that holds a guest offset. */
  extentAt(guest: number): Extent | undefined {
    if (guest >= this.end || this.count === 0) return undefined;
    const at = this.indexAt(guest);
    const [start, length, depth, , offset, file] = this.columns.subarray(at, at + COLUMNS) as unknown as number[];
    return {
      start: start as number,
      length: length as number,
      depth: depth as number,
      kind: KINDS[this.kindAt(at)] as Kind,
      offset: (offset as number) < 0 ? null : (offset as number),
      file: (file as number) < 0 ? null : (this.#files[file as number] ?? null),
    };
  }

  describe(guest: number): string | undefined {
    const extent = this.extentAt(guest);
    if (!extent) return undefined;
    const place = `${offset(extent.start)} to ${offset(extent.start + extent.length - 1)}, ${size(extent.length)}`;
    const lost = extent.offset !== null && extent.offset >= (this.#sizeOf(extent.file ?? "") ?? Infinity);
    const file = baseName(extent.file ?? "the file");
    const stored = extent.offset === null ? "" : ` At ${offset(extent.offset)} in ${file}${lost ? ", which ends before that" : ""}.`;
    const depth = extent.depth > 0 && extent.kind === "backing" ? ` Image ${extent.depth} down the chain.` : "";
    const meaning = this.kinds[KINDS.indexOf(extent.kind)]?.meaning ?? "";
    return `${place}: ${extent.kind}, ${meaning}.${stored}${depth}`;
  }
}
