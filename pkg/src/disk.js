// An open image with the interface that disk tools of Node.js expect of a disk (that of the package file-disk).

import { RangeTooLargeError, UnsupportedError } from "./errors.js";

/** A disk over an open image. Closing it is up to whoever opened the image. */
export class ImageDisk {
  #image;

  constructor(image) {
    if (typeof image?.readInto !== "function") {
      throw new UnsupportedError({ kind: "unsupported", message: "a disk is made of an open image: new ImageDisk(await open(input))" });
    }
    this.#image = image;
  }

  /** Whether nothing can be written. */
  get readOnly() {
    return !this.#image.writable;
  }

  async getCapacity() {
    return this.#image.size;
  }

  async getLength() {
    return this.#image.size;
  }

  /** Fills `length` bytes of `buffer` from `bufferOffset`; fewer at the end of the disk. */
  async read(buffer, bufferOffset, length, fileOffset) {
    const bytes = part(buffer, bufferOffset, length);
    const bytesRead = Math.max(0, Math.min(length, this.#image.size - fileOffset));
    await this.#image.readInto(bytesRead > 0 ? fileOffset : 0, bytes.subarray(0, bytesRead));
    return { bytesRead, buffer };
  }

  async write(buffer, bufferOffset, length, fileOffset) {
    await this.#changing("write", fileOffset, part(buffer, bufferOffset, length));
    return { bytesWritten: length, buffer };
  }

  async discard(offset, length) {
    await this.#changing("discard", offset, length);
  }

  async flush() {
    if (!this.readOnly) await this.#image.flush();
  }

  /** A stream of Node.js over a part of the disk. */
  async getStream(position = 0, length = undefined) {
    const { Readable } = await import("node:stream");
    return Readable.fromWeb(this.#image.stream({ offset: position, ...(length === undefined ? {} : { length }) }));
  }

  #changing(verb, ...args) {
    if (typeof this.#image[verb] === "function") return this.#image[verb](...args);
    const message = "this image only reads: open it with diskette/full and { writable: true }";
    throw new UnsupportedError({ kind: "unsupported", message, operation: verb });
  }
}

function part(buffer, offset, length) {
  if (offset + length <= buffer.length) return new Uint8Array(buffer.buffer, buffer.byteOffset + offset, length);
  const message = `${length} bytes at ${offset} do not fit into a buffer of ${buffer.length}`;
  throw new RangeTooLargeError({ kind: "too-large", message });
}
