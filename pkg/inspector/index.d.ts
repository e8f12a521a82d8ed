import type { Abortable, Input, OpenOptions } from "../src/index.js";
import type { CreateOptions, FullOpenOptions, Image, Memory, Target } from "../src/full.js";

export * from "../src/full.js";

/** A range of one of the image's files: `file` is its own, `data-file` the one with guest data, `header` that of the encryption. */
export interface Place {
  file: "file" | "data-file" | "header";
  offset: number;
  length: number;
}

/** A part of an image's metadata, and where it is stored: for bits, the bytes that have them. */
export interface Part extends Place {
  name: string;
  kind: "table" | "entry" | "field" | "bits" | "text" | "data";
  /** Which bits of their number, from the least significant one on. */
  bits: { low: number; count: number } | null;
  /** What stands there. */
  value: string | null;
  /** What it means. */
  doc: string;
  /** What is plainly wrong with it. */
  problem: string | null;
  /** How many parts it has. */
  children: number;
  /** What it points to, if that is there. */
  target: Place | null;
  /** The range of the disk that it is about; behind the end of the disk is the state of a machine. */
  guest: { start: number; length: number } | null;
}

export interface Parts {
  /** How many parts there are. */
  total: number;
  /** Those that were asked for, as far as there are any. */
  parts: Part[];
}

export interface StructureOptions extends Abortable {
  /** The first part; 0 unless given. */
  from?: number;
  /** How many, at most 4096; 256 unless given. */
  count?: number;
}

/** What a stretch of a file holds. */
export type RegionKind =
  | "free"
  | "leaked"
  | "unknown"
  | "contested"
  | "header"
  | "l1-table"
  | "l2-table"
  | "refcount-table"
  | "refcount-block"
  | "snapshot-table"
  | "bitmap-directory"
  | "bitmap-table"
  | "bitmap-data"
  | "encryption"
  | "data"
  | "compressed"
  | "snapshot-data";

/** Some of the regions of a file, in order and without gaps. */
export interface RegionPage {
  /** `REGION_COLUMNS` numbers for each region: offset, length, index in `kinds`. */
  columns: Float64Array;
  kinds: RegionKind[];
  /** Where the last of them ends. */
  end: number;
}

/** Numbers per region in a page. */
export const REGION_COLUMNS: 3;

export interface InspectedImage extends Image {
  /** The parts of the part at `path`, which is the index of a part of the image, of a part of that, and so on. */
  structure(path?: readonly number[], options?: StructureOptions): Promise<Parts>;
  /** What is where in the image's own file; every byte of it is in one region. */
  regions(options?: Abortable): AsyncGenerator<RegionPage, void, void>;
}

/** A file that was not opened as an image. */
export type InspectedFile = Pick<InspectedImage, "structure" | "files" | "readFile" | "close">;

/** Takes a file apart that need not be good enough to be opened. */
export function look(input: Input, options?: Pick<OpenOptions, "format" | "headers" | "fetch" | "signal">): Promise<InspectedFile>;

export function open(input: Input | Memory, options?: FullOpenOptions & { writable?: false }): Promise<InspectedImage>;
export function open(target: Target, options: FullOpenOptions & { writable: true }): Promise<InspectedImage>;
export function create(target: Target, options: CreateOptions): Promise<InspectedImage>;
