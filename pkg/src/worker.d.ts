import type { Abortable, Extent, ImageInfo, MapPage, RangeOptions, Size, Snapshot } from "./index.js";
import type { ConvertOptions, CreateOptions, FullOpenOptions, RepairReport } from "./full.js";

export {
  ClosedError,
  CorruptImageError,
  DisketteError,
  RangeTooLargeError,
  ReadOnlyError,
  ReferenceDeniedError,
  SourceError,
  UnsupportedError,
} from "./index.js";

/** What can be handed to a worker: a path (in Node.js), an address, a File or Blob, bytes, or a FileSystemFileHandle. */
export type Postable = string | URL | Blob | Uint8Array | ArrayBuffer | { getFile(): Promise<Blob> };

/** Options but for functions, which no worker can be handed; `onOpen` is asked from here. */
export interface WorkerOpenOptions extends Omit<FullOpenOptions, "fetch" | "onOpen"> {
  onOpen?(reference: { name: string; format: string | null; role: "backing" | "data-file"; from: string }): Postable | null | undefined | Promise<Postable | null | undefined>;
}
export interface WorkerCreateOptions extends Omit<CreateOptions, "onOpen"> {
  onOpen?: WorkerOpenOptions["onOpen"];
}

/** An image that a worker has open: the `Image` of `diskette/full`, all of whose answers are promises. */
export class WorkerImage {
  private constructor();
  readonly size: number;
  readonly writable: boolean;
  readonly snapshots: {
    list(): Promise<Snapshot[]>;
    create(name: string, options?: { date?: Date }): Promise<void>;
    apply(nameOrId: string): Promise<void>;
    delete(name: string): Promise<void>;
  };
  info(): Promise<ImageInfo>;
  files(): Promise<{ name: string; size: number }[]>;
  map(options?: RangeOptions): Promise<Extent[]>;
  mapPages(options?: RangeOptions): AsyncGenerator<MapPage, void, void>;
  check(options?: Abortable & { repair?: "leaks" | "all" }): Promise<RepairReport>;
  read(offset: Size, length: Size, options?: Abortable): Promise<Uint8Array<ArrayBuffer>>;
  readInto<Bytes extends Uint8Array>(offset: Size, into: Bytes, options?: Abortable): Promise<Bytes>;
  readFile(offset: Size, length: Size, options?: Abortable & { file?: number }): Promise<Uint8Array>;
  stream(options?: RangeOptions): ReadableStream<Uint8Array>;
  write(offset: Size, bytes: Uint8Array, options?: Abortable & { compressed?: boolean }): Promise<void>;
  zero(offset: Size, length: Size, options?: Abortable & { unmap?: boolean }): Promise<void>;
  discard(offset: Size, length: Size, options?: Abortable): Promise<void>;
  flush(options?: Abortable): Promise<void>;
  resize(size: Size, options?: { shrink?: boolean }): Promise<void>;
  setBacking(name: string | null, format?: string | null): Promise<void>;
  readBitmap(name: string, options?: Abortable): Promise<Float64Array>;
  /** Copies the disk into a new image, within the worker. */
  convert(target: Postable, options?: ConvertOptions): Promise<void>;
  close(): Promise<void>;
  /** Closes at once and without writing back. */
  abandon(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Workers that share the images that are opened. A worker that dies fails what it had, with a `SourceError`. */
export class Pool {
  /** At most `size` workers; unless given four, or as many as there are processors. */
  constructor(options?: { size?: number });
  open(input: Postable, options?: WorkerOpenOptions): Promise<WorkerImage>;
  create(target: Postable, options: WorkerCreateOptions): Promise<WorkerImage>;
  /** Ends all workers, with whatever they are doing. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Opens an image in a worker of a common pool. */
export function open(input: Postable, options?: WorkerOpenOptions): Promise<WorkerImage>;
/** Makes an image in a worker of a common pool. */
export function create(target: Postable, options: WorkerCreateOptions): Promise<WorkerImage>;
