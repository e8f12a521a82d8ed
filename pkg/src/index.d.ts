/** Sizes and offsets: exact whole numbers. A bigint is accepted where it fits. */
export type Size = number | bigint;

/** Where bytes come from. */
export interface Source {
  readonly name?: string;
  readonly size: number;
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  close?(): void | Promise<void>;
}

/** An OPFS handle for synchronous access. */
export interface SyncHandle {
  getSize(): number;
  read(into: Uint8Array, options: { at: number }): number;
}

/** A handle that a file can be taken from. */
export interface FileLikeHandle {
  getFile(): Promise<Blob>;
}

/** A FileHandle of Node.js. */
export interface NodeFileHandle {
  stat(): Promise<{ size: number }>;
  read(into: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
}

export type Input = string | URL | Blob | Uint8Array | ArrayBuffer | SyncHandle | FileLikeHandle | NodeFileHandle | Source;

/** A file that an image names. */
export interface Reference {
  name: string;
  format: string | null;
  role: "backing" | "data-file";
  from: string;
}

export interface OpenOptions {
  /** The format, if it is not to be recognised from the contents. */
  format?: string;
  /** Opens the files that the image names; null refuses. Without it nothing is opened, and reads that need it fail. */
  onOpen?(reference: Reference): Input | null | undefined | Promise<Input | null | undefined>;
  signal?: AbortSignal;
  /** For http(s) addresses. */
  headers?: Record<string, string>;
  fetch?: typeof fetch;
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
  offset: number | null;
}

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
  private constructor();
  /** Size of the disk in bytes. */
  readonly size: number;
  /** Size of the image file in bytes. */
  readonly fileSize: number;
  info(): ImageInfo;
  map(options?: RangeOptions): Promise<Extent[]>;
  check(options?: Abortable): Promise<CheckReport>;
  read(offset: Size, length: Size, options?: Abortable): Promise<Uint8Array>;
  readInto(offset: Size, into: Uint8Array, options?: Abortable): Promise<Uint8Array>;
  /** Bytes of the file itself, not of the disk in it. */
  readFile(offset: Size, length: Size): Promise<Uint8Array>;
  stream(options?: RangeOptions): ReadableStream<Uint8Array>;
  close(): Promise<void>;
}

export class DisketteError extends Error {
  readonly kind: string;
  readonly path: string | null;
  readonly offset: number | null;
  readonly operation: string | null;
}
export class CorruptImageError extends DisketteError {}
export class UnsupportedError extends DisketteError {}
export class ReferenceDeniedError extends DisketteError {}
export class RangeTooLargeError extends DisketteError {}
export class SourceError extends DisketteError {}
export class ClosedError extends DisketteError {}

export function load(module?: unknown): Promise<unknown>;
export function open(input: Input, options?: OpenOptions): Promise<Image>;
