import type { Image, Size } from "./index.js";

/** An open image, of either entry. */
export interface DiskImage extends Pick<Image, "size" | "readInto" | "stream"> {
  readonly writable?: boolean;
  write?(offset: Size, bytes: Uint8Array): Promise<void>;
  discard?(offset: Size, length: Size): Promise<void>;
  flush?(): Promise<void>;
}

/** A readable stream of Node.js. */
export interface NodeReadable extends AsyncIterable<Uint8Array> {
  pipe<Destination>(destination: Destination): Destination;
  on(event: string, listener: (...args: never[]) => void): this;
}

/** An open image with the interface of the package file-disk. Closing the image is up to whoever opened it. */
export class ImageDisk {
  constructor(image: DiskImage);
  readonly readOnly: boolean;
  getCapacity(): Promise<number>;
  getLength(): Promise<number>;
  /** Fills `length` bytes of `buffer` from `bufferOffset`; fewer at the end of the disk. */
  read<Buffer extends Uint8Array>(buffer: Buffer, bufferOffset: number, length: number, fileOffset: number): Promise<{ bytesRead: number; buffer: Buffer }>;
  write<Buffer extends Uint8Array>(buffer: Buffer, bufferOffset: number, length: number, fileOffset: number): Promise<{ bytesWritten: number; buffer: Buffer }>;
  discard(offset: number, length: number): Promise<void>;
  flush(): Promise<void>;
  /** A stream of Node.js over the disk or a part of it. */
  getStream(position?: number, length?: number): Promise<NodeReadable>;
}
