// What the page and its worker say to each other: each question by name, with its answer and what comes before the answer.

import type { CheckReport, ImageInfo, MapPage } from "diskette";
import type { ConvertOptions as AllConvertOptions, Progress } from "diskette/full";
import type { Parts, RegionPage } from "diskette/inspector";

import type { Layout, Page, Path } from "./contents";

/** The disk that the guest sees, or one of the files that hold it. */
export type Space = "disk" | number;

/** A file, its path in the folder that it was chosen with or else its name, and its handle where the browser gave one: only with that it can be changed. */
export interface Given {
  file: File;
  path: string;
  handle?: FileSystemFileHandle;
}

/** How an image is to be opened. */
export interface Wish {
  /** Taken as that, whatever it looks like. */
  format?: string;
  /** Opens what is encrypted. */
  passphrase?: string;
  /** Shows the disk as it was at this internal snapshot: its identifier. */
  snapshot?: string;
}

/** What `diskette serve` says of an image: its name, whether it can be changed, and which addresses the files have that are named. */
export interface Served {
  name: string;
  writable: boolean;
  beside: { from: string; name: string; url: string }[];
}

/**
 * An image that is to be opened. `ordered`: it is the first of the files, rather than the one that no other names. `follow`:
 * files that it names may be fetched, from the same server only.
 */
export type Opening = { from: "files"; files: Given[]; ordered?: boolean; wish: Wish } | { from: "url"; url: string; follow: boolean; served?: Served; wish: Wish };

/** A file that an image names and that was not opened. */
export interface Missing {
  name: string;
  role: string;
  /** It was given, but is of no use without another one that was not. */
  given: boolean;
}

export interface Opened {
  name: string;
  info: ImageInfo;
  /** The files that are open, the image's own first. */
  files: { name: string; size: number }[];
  missing: Missing[];
}

/** What is in a file among several: an image, and what it names. */
export interface Surveyed {
  path: string;
  format: string;
  virtualSize: number;
  references: string[];
}

/** A change of metadata that can be made where the image is. */
export type Edit =
  | { kind: "repair-leaks" }
  | { kind: "delete-snapshot"; name: string }
  /** What the image is based on, as it is named in the file; null: nothing. */
  | { kind: "set-backing"; name: string | null; format: string | null };

/** What an edit does to a file; the worker has the bytes, under the number of the plan. */
export interface PlanInfo {
  plan: number;
  /** It puts back what an undo file kept. */
  undo: boolean;
  name: string;
  sizeBefore: number;
  sizeAfter: number;
  /** How many places change, and how many bytes there are in them. */
  places: number;
  bytes: number;
}

/** Some of the bytes that are at a place, and how many there are of them. */
export interface Side {
  bytes: Uint8Array<ArrayBuffer>;
  length: number;
}

/** A place that changes. At the end of a file there may be fewer bytes after, or before. */
export interface Change {
  offset: number;
  before: Side;
  after: Side;
}

/** How two disks compare. */
export interface Comparison {
  name: string;
  size: number;
  missing: Missing[];
  /** Bytes in ranges that differ, and how many ranges. */
  differing: number;
  count: number;
}

export type ConvertOptions = Pick<AllConvertOptions, "format" | "compressed" | "clusterSize" | "compat">;

interface Question<Ask, Reply, Part = never> {
  ask: Ask;
  reply: Reply;
  part: Part;
}

export interface Ops {
  open: Question<Opening, Opened>;
  /** Looks into files without opening any for good; what is no image of a known format is left out. */
  survey: Question<{ files: Given[] }, Surveyed[]>;
  map: Question<null, { complete: boolean }, MapPage>;
  check: Question<null, CheckReport>;
  read: Question<{ space: Space; offset: number; length: number }, Uint8Array<ArrayBuffer>>;
  /** Parts of the image, or of the part that a path of indices leads to. */
  structure: Question<{ path: number[]; from: number; count: number }, Parts>;
  /** What is where in the file. */
  regions: Question<null, null, RegionPage>;
  /** What a bitmap marks: start and length in turn. */
  bitmap: Question<{ name: string }, Float64Array>;
  /** The place on the disk that is stored at a place in the image's file, if there is one. */
  "guest-of": Question<{ offset: number }, { start: number; length: number } | null>;
  /** How the disk is divided, and what is in its parts. */
  layout: Question<null, Layout>;
  list: Question<{ volume: number; path: Path; from: number; count: number }, Page>;
  /** Bytes of a file on the disk. */
  file: Question<{ volume: number; path: Path; offset: number; length: number }, Uint8Array<ArrayBuffer>>;
  /** A file on the disk into one that was picked, or else as something to download. */
  "save-file": Question<{ volume: number; path: Path; size: number; handle: FileSystemFileHandle | null }, Blob | null, number>;
  /** Bytes into a file, or else as something to download; tells how far it is. */
  export: Question<{ space: Space; offset: number; length: number; handle: FileSystemFileHandle | null }, Blob | null, number>;
  /** The first place at or after `from` that holds the bytes; tells how far it is. */
  search: Question<{ space: Space; from: number; bytes: Uint8Array }, number | null, number>;
  /** Opens a second image and finds where the two differ; ranges are start and length in turn. */
  compare: Question<{ opening: Opening }, Comparison, { done: number; total: number; ranges: Float64Array }>;
  "read-other": Question<{ offset: number; length: number }, Uint8Array<ArrayBuffer>>;
  /** A copy into a file, or else into one that can be downloaded. `job` is a number for `pause`. */
  convert: Question<{ handle: FileSystemFileHandle | null; job: number; options: ConvertOptions }, File | null, Progress>;
  pause: Question<{ job: number; paused: boolean }, null>;
  /** What an edit would change. */
  "plan-edit": Question<{ edit: Edit }, PlanInfo>;
  /** What an undo file of the image that is open would put back. */
  "plan-undo": Question<{ file: File }, PlanInfo>;
  /** Some of the places that a plan changes; of each, so many bytes after the first ones that are skipped. */
  "plan-places": Question<{ plan: number; from: number; count: number; skip: number; bytes: number }, Change[]>;
  /** The undo file of a plan into one that was picked, or else as something to download. */
  "save-undo": Question<{ plan: number; handle: FileSystemFileHandle | null }, Blob | null>;
  /** Changes a file that was picked, or else the one that `diskette serve` has at an address. */
  "apply-edit": Question<{ to: { handle: FileSystemFileHandle } | { url: string }; plan: number }, null>;
}

export type Op = keyof Ops;

export interface Failure {
  message: string;
  kind: string;
  /** Byte offset in the file. */
  offset: number | null;
  /** What was being done: `fetch` where a server is to blame. */
  operation: string | null;
}

export type ToWorker = { id: number; op: Op; ask: unknown } | { id: number; cancel: true };

/** A part of an answer, the answer, or why there is none; or, first of all, the lock that the worker holds for as long as it lives. */
export type FromWorker = { life: string } | { id: number; part: unknown } | { id: number; value: unknown } | { id: number; failure: Failure };
