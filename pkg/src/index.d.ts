/// <reference lib="esnext.disposable" />

/** Sizes and offsets: exact whole numbers. A bigint is accepted where it fits. */
export type Size = number | bigint;

/** Where bytes come from. */
export interface Source {
  readonly name?: string;
  readonly size: Size;
  /** Exactly `length` bytes; never asked for beyond `size`. */
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  close?(): void | Promise<void>;
}

/** An OPFS handle for synchronous access. */
export interface SyncHandle {
  getSize(): number;
  read(into: Uint8Array, options: { at: number }): number;
}

/** A handle that a file can be taken from, such as OPFS and the file picker give. */
export interface FileLikeHandle {
  getFile(): Promise<Blob>;
}

/** A FileHandle of Node.js. It stays open when the image is closed. */
export interface NodeFileHandle {
  stat(): Promise<{ size: number }>;
  read(into: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
}

export type Input = string | URL | Blob | ArrayBufferView | ArrayBuffer | SyncHandle | FileLikeHandle | NodeFileHandle | Source;

/** A file that an image names. */
export interface Reference {
  name: string;
  format: string | null;
  role: "backing" | "data-file";
  /** The file that names it: its address, its path, the name of a File whose name is a path, or else as it was named itself. */
  from: string;
}

/** Bounds on what an image may cost. */
export interface Budgets {
  /** Bytes of metadata kept in memory for each image of a chain; 32 MiB unless given. */
  metadataBytes?: Size;
  /** Images in a chain; 200 unless given. */
  chainDepth?: Size;
  /** Bytes that one compressed cluster may expand to; 2 MiB unless given. */
  expandedBytes?: Size;
  /** Bytes of memory that a check may take; 1 GiB unless given. */
  checkBytes?: Size;
}

export interface OpenOptions {
  /**
   * The format, if it is not to be recognised from the contents. What is encrypted with LUKS is refused by the entry that only
   * reads, unless it is said to be `raw`.
   */
  format?: string;
  /** Opens the files that the image names; null refuses. Without it nothing is opened, and reads that need it fail. */
  onOpen?(reference: Reference): Input | null | undefined | Promise<Input | null | undefined>;
  /** Shows the disk as it was at an internal snapshot: its identifier, or else its name. Only for reading. */
  snapshot?: string;
  /** What the image may cost; more is a `RangeTooLargeError` of kind `over-budget`. Other names than those are refused. */
  budgets?: Budgets;
  signal?: AbortSignal;
  /** For http(s) addresses. */
  headers?: Record<string, string>;
  fetch?: typeof fetch;
  /** Milliseconds that a server has for each answer, 0 for no limit. Unless given, it may be silent for 30 seconds at a time. */
  timeout?: number;
}

export interface NamedFile {
  name: string;
  format: string | null;
}

export interface HeaderField {
  name: string;
  offset: number;
  length: number;
  text: string;
  doc: string;
}

export interface Feature {
  kind: "incompatible" | "compatible" | "autoclear";
  bit: number;
  name: string;
  known: boolean;
}

export interface Snapshot {
  id: string;
  name: string;
  vmStateSize: number;
  diskSize: number;
  dateSeconds: number;
  vmClockSeconds: number;
}

export interface Bitmap {
  name: string;
  granularity: number;
  inUse: boolean;
  auto: boolean;
}

export type Property = boolean | number | string | Property[] | { [name: string]: Property };

export interface LayerInfo {
  filename: string;
  format: string;
  probed: boolean;
  virtualSize: number;
  clusterSize: number | null;
  encryption: string | null;
  dirty: boolean;
  corrupt: boolean;
  backingFile: NamedFile | null;
  backingOpened: boolean;
  dataFile: NamedFile | null;
  properties: { [name: string]: Property };
  features: Feature[];
  snapshots: Snapshot[];
  bitmaps: Bitmap[];
  header: HeaderField[];
}

export interface ImageInfo extends LayerInfo {
  /** Every format that claims the file, best first. */
  formats: { format: string; score: number; evidence: string }[];
  /** The image and what is behind it, top first. */
  chain: LayerInfo[];
}

export interface Extent {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  compressed: boolean;
  /** Where it is stored in `file`, for data that is stored as it is. */
  offset: number | null;
  /** Name of the file that `offset` counts in. */
  file: string | null;
}

/** Part of a map. Neighbours of two pages may continue each other. */
export interface MapPage {
  /**
   * `MAP_COLUMNS` numbers for each extent: start, length, depth, flags (1 present, 2 zero, 4 data, 8 compressed), offset
   * (or -1), index in `files` (or -1).
   */
  columns: Float64Array;
  files: string[];
  /** The guest offset where the next page begins. */
  end: number;
}

/** Numbers per extent in a page of a map. */
export const MAP_COLUMNS: 6;

export interface CheckReport {
  leaks: number;
  corruptions: number;
  checkErrors: number;
  imageEndOffset: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  findings: { kind: "leak" | "corruption" | "check-error"; text: string }[];
}

export interface Abortable {
  signal?: AbortSignal;
}

export interface RangeOptions extends Abortable {
  offset?: Size;
  length?: Size;
}

export class Image {
  protected constructor();
  /** Size of the disk in bytes. */
  readonly size: number;
  /** The files that are open: the image's own first, then those that it names. */
  readonly files: { name: string; size: number }[];
  info(): ImageInfo;
  /** What the disk holds, from metadata alone. Fails beyond four million extents. */
  map(options?: RangeOptions): Promise<Extent[]>;
  /** The same without a limit, part by part, as numbers. */
  mapPages(options?: RangeOptions): AsyncGenerator<MapPage, void, void>;
  check(options?: Abortable): Promise<CheckReport>;
  read(offset: Size, length: Size, options?: Abortable): Promise<Uint8Array<ArrayBuffer>>;
  /** Fills `into`; saves the allocation that `read` makes. After an error its contents are unspecified. */
  readInto<Bytes extends Uint8Array>(offset: Size, into: Bytes, options?: Abortable): Promise<Bytes>;
  /** Bytes of a file itself (an index in `files`), not of the disk in it; fewer at its end. */
  readFile(offset: Size, length: Size, options?: Abortable & { file?: number }): Promise<Uint8Array>;
  stream(options?: RangeOptions): ReadableStream<Uint8Array>;
  /** Ends every job, with `ClosedError`, and closes what `open` opened. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** What went wrong, for programs. */
export type ErrorKind =
  | "invalid"
  | "corrupt"
  | "io"
  | "unsupported"
  | "denied"
  | "permission-denied"
  | "not-found"
  | "no-space"
  | "read-only"
  | "exists"
  | "busy"
  | "too-large"
  | "over-budget"
  | "cancelled"
  | "closed"
  | "internal"
  | (string & {});

/** Every error of this package. */
export class DisketteError extends Error {
  readonly kind: ErrorKind;
  /** `kind` in the spelling of Node.js, such as `DISKETTE_NOT_FOUND`; stable as well. */
  readonly code: `DISKETTE_${string}`;
  /** The file it is about. */
  readonly path: string | null;
  /** Byte offset in that file. */
  readonly offset: number | null;
  /** What was being done, such as `read`, or `fetch` where a server is to blame. */
  readonly operation: string | null;
}
/** The image contradicts itself or has a value that is not allowed. */
export class CorruptImageError extends DisketteError {}
/** The image, the source or the server does not support what is needed. */
export class UnsupportedError extends DisketteError {}
/** The bytes are in a file that the image names and that was not opened, or behind a key that was not given. */
export class ReferenceDeniedError extends DisketteError {}
/** A number beyond 2^53 - 1, or more than a budget allows. */
export class RangeTooLargeError extends DisketteError {}
/** The source could not be read, or the target not be written. */
export class SourceError extends DisketteError {}
/** The image or the target was not opened for writing, or cannot be written at all. */
export class ReadOnlyError extends DisketteError {}
/** The image was closed. */
export class ClosedError extends DisketteError {}

/** Loads the WebAssembly, once; `open` does it on its own. `module` is its bytes or, in browsers, its address. */
export function load(module?: ArrayBuffer | ArrayBufferView | URL | string): Promise<void>;
/** Opens an image for reading. */
export function open(input: Input, options?: OpenOptions): Promise<Image>;
