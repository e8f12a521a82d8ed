import type { Abortable, Budgets, CheckReport, Image as ReadableImage, Input, OpenOptions, Reference, Size, Snapshot } from "./index.js";

export {
  ClosedError,
  CorruptImageError,
  DisketteError,
  MAP_COLUMNS,
  RangeTooLargeError,
  ReadOnlyError,
  ReferenceDeniedError,
  SourceError,
  UnsupportedError,
  load,
} from "./index.js";
export type {
  Abortable,
  Bitmap,
  Budgets,
  CheckReport,
  ErrorKind,
  Extent,
  Feature,
  FileLikeHandle,
  HeaderField,
  ImageInfo,
  Input,
  LayerInfo,
  MapPage,
  NamedFile,
  NodeFileHandle,
  OpenOptions,
  Property,
  RangeOptions,
  Reference,
  Size,
  Snapshot,
  Source,
  SyncHandle,
} from "./index.js";

/** Where bytes go. Its `size` is looked at once, when it is opened. */
export interface TargetObject {
  readonly name?: string;
  readonly size: Size;
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  /** Writes all of `bytes`, which are the target's to keep; behind the end it makes the file longer. */
  write(offset: number, bytes: Uint8Array): void | Promise<void>;
  /** Changes the length; what is added reads as zeroes. Without it the target has a fixed length. */
  resize?(length: number): void | Promise<void>;
  /** Everything written before is on stable storage when this is done. */
  flush?(): void | Promise<void>;
  discard?(offset: number, length: number): void | Promise<void>;
  /** Makes a range read as zeroes, and the file longer if it reaches behind the end; written byte by byte otherwise. */
  zero?(offset: number, length: number): void | Promise<void>;
  close?(): void | Promise<void>;
}

/** An OPFS handle for synchronous access. It stays open when the image is closed. */
export interface WritableSyncHandle {
  getSize(): number;
  read(into: Uint8Array, options: { at: number }): number;
  write(bytes: Uint8Array<ArrayBuffer>, options: { at: number }): number;
  truncate(length: number): void;
  flush(): void;
}

/** A handle of OPFS or of the file picker. The file changes when the image is closed or flushed, all at once. */
export interface WritableFileLikeHandle {
  getFile(): Promise<Blob>;
  createWritable(options: { keepExistingData: boolean; mode: "exclusive" }): Promise<unknown>;
}

/** A FileHandle of Node.js, opened with `r+`. It stays open when the image is closed. */
export interface WritableNodeFileHandle {
  stat(): Promise<{ size: number }>;
  read(into: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  write(bytes: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesWritten: number }>;
  truncate(length: number): Promise<void>;
  sync(): Promise<void>;
}

/** What can be written: a path (in Node.js), a handle, `Memory`, or an object of the caller. */
export type Target = string | URL | Memory | WritableSyncHandle | WritableFileLikeHandle | WritableNodeFileHandle | TargetObject;

/** A file in memory that grows as it is written to. */
export class Memory {
  /** A file that holds `bytes`, which are its own from then on. */
  constructor(bytes?: Uint8Array);
  readonly name: string;
  readonly size: number;
  /** What the file holds: a view that is good until the next change. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  read(offset: number, length: number): Uint8Array;
  write(offset: number, bytes: Uint8Array): void;
  resize(length: number): void;
}

export interface FullOpenOptions extends OpenOptions {
  /** Opens the image for changing; the input has to be a `Target` then. */
  writable?: boolean;
  /** The passphrase of an encrypted image (LUKS, or qcow2 with LUKS or AES). It is not used for images behind it. */
  passphrase?: string;
  /**
   * Opens nothing that the image names: it can be described, mapped, checked and repaired. Without `onOpen` that is how
   * images are opened for reading.
   */
  structureOnly?: boolean;
  /**
   * Does not open the image that this one is based on. What is not stored in it cannot be read, but metadata can be changed:
   * snapshots, or the backing file itself.
   */
  noBacking?: boolean;
}

export interface CreateOptions {
  /** `qcow2` unless given. */
  format?: "qcow2" | "raw" | "luks";
  /** Size of the disk in bytes. */
  size: Size;
  clusterSize?: Size;
  /** Version of qcow2: `1.1` (3) unless given. */
  compat?: "0.10" | "1.1";
  compressionType?: "zlib" | "zstd";
  extendedL2?: boolean;
  lazyRefcounts?: boolean;
  refcountBits?: number;
  preallocation?: "off" | "metadata" | "falloc" | "full";
  /** The image that shows where this one holds nothing, as it is to be named in the file. */
  backingFile?: string;
  backingFormat?: string;
  /** Opens `backingFile`, as in `open`. */
  onOpen?(reference: Reference): Input | null | undefined | Promise<Input | null | undefined>;
  /** Encrypts qcow2 with LUKS; `luks` as a format always does. Needs `passphrase`. */
  encryption?: "luks";
  passphrase?: string;
  /** How long deriving a key from the passphrase is to take; 2000 unless given. The thread is busy for that long. */
  iterationMilliseconds?: number;
  signal?: AbortSignal;
  /** What the image, and those that it is based on, may cost. */
  budgets?: Budgets;
  /** For http(s) addresses that `onOpen` answers. */
  headers?: Record<string, string>;
  fetch?: typeof fetch;
  timeout?: number;
}

/** How far a copy is, in bytes of the disk. */
export interface Progress {
  done: number;
  total: number;
}

export interface ConvertOptions extends Omit<CreateOptions, "size" | "onOpen" | "backingFile" | "backingFormat"> {
  /** Compresses clusters with zlib; only qcow2. */
  compressed?: boolean;
  /** What it throws stops the copy, which waits for a promise that it answers with. */
  onProgress?(progress: Progress): void | Promise<void>;
}

export interface RepairReport extends CheckReport {
  leaksFixed: number;
  corruptionsFixed: number;
}

export interface Snapshots {
  list(): Snapshot[];
  create(name: string, options?: { date?: Date }): Promise<void>;
  /** Makes the disk what it was: by identifier, or else by name. */
  apply(nameOrId: string): Promise<void>;
  /** Forgets the first snapshot of that name. */
  delete(name: string): Promise<void>;
}

/**
 * An open image. A change that was begun runs to its end, and what is asked for once it is done sees it; changes that overlap
 * and are not awaited are made in any order. A `signal` is looked at before each piece of a change: 4 MiB that are written, or
 * 1 GiB that is zeroed or discarded. After a change that failed or was stopped the range it was about holds the old bytes or
 * the new ones.
 */
export class Image extends ReadableImage {
  private constructor();
  readonly writable: boolean;
  readonly snapshots: Snapshots;
  /** Writes bytes within the disk. `compressed` stores whole clusters compressed and needs them to be whole. */
  write(offset: Size, bytes: Uint8Array, options?: Abortable & { compressed?: boolean }): Promise<void>;
  /** Makes a range read as zeroes; its space is given back unless `unmap` is false. */
  zero(offset: Size, length: Size, options?: Abortable & { unmap?: boolean }): Promise<void>;
  /** Says that a range is not needed any more. What it reads as then is up to the format. */
  discard(offset: Size, length: Size, options?: Abortable): Promise<void>;
  /** Everything written before is on stable storage when this is done. A `signal` ends only the wait for that. */
  flush(options?: Abortable): Promise<void>;
  /** Changes the size of the disk; `shrink` allows it to lose its end. */
  resize(size: Size, options?: { shrink?: boolean }): Promise<void>;
  /**
   * Names another file that shows where this image has nothing, or with `null` none, as it is to be named in the image. What
   * is stored stays, so it is for the caller to know that the disk still reads alike. Counts when the image is opened again.
   * A format that `open` does not know is refused, also where QEMU knows it: the image could not be opened with it here.
   */
  setBacking(name: string | null, format?: string | null): Promise<void>;
  /**
   * What a persistent bitmap says was written to: start and length of each range in turn, in order. Of a bitmap with more than
   * four million ranges it is a `RangeTooLargeError`.
   */
  readBitmap(name: string, options?: Abortable): Promise<Float64Array>;
  /** Counts what is wrong; `repair` puts right what is lost, or all that can be. Counts are of what is left. */
  check(options?: Abortable & { repair?: "leaks" | "all" }): Promise<RepairReport>;
  /** Waits for changes, writes everything back, and closes what was opened. Fails if that did not all work. */
  close(): Promise<void>;
  /** Closes at once and without writing back: what was not flushed is lost, or left as leaks. */
  abandon(): Promise<void>;
}

/** Opens an image for reading. */
export function open(input: Input | Memory, options?: FullOpenOptions & { writable?: false }): Promise<Image>;
/** Opens an image for reading and writing. */
export function open(target: Target, options: FullOpenOptions & { writable: true }): Promise<Image>;
/**
 * Makes an image in a target, in place of what that held, and opens it for writing. If that fails, a path holds what it did
 * before; one where no file can be made beside it is not used for an image over another one unless it is empty.
 */
export function create(target: Target, options: CreateOptions): Promise<Image>;
/**
 * Copies a disk into a new image, in constant memory and without what is zero. When it fails or is aborted, the source is
 * as it was; of the target, a path or FileSystemFileHandle is as it was (but see "New images in paths" in the README), and
 * others hold a part of the copy.
 */
export function convert(image: Pick<ReadableImage, "size" | "mapPages" | "read">, target: Target, options?: ConvertOptions): Promise<void>;
/** What is needed of a `ReadableStream` of Uint8Arrays, be it the browser's or that of Node.js. */
export interface ByteStream {
  getReader(): {
    read(): Promise<{ done: false; value: Uint8Array } | { done: true; value?: Uint8Array | undefined }>;
    cancel(reason?: unknown): Promise<void>;
    releaseLock(): void;
  };
}

/** Fills a new image from a stream of exactly `size` bytes. `Readable.toWeb` makes one of a stream of Node.js. */
export function fromStream(readable: ByteStream, target: Target, options: ConvertOptions & { size: Size }): Promise<void>;
