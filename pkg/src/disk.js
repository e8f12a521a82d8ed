// An open image with the interface that disk tools of Node.js expect of a disk (that of the package file-disk).

import { RangeTooLargeError, UnsupportedError, checkedNumber, isBytes } from "./errors.js";

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
    const at = checkedNumber(fileOffset, "fileOffset");
    const bytesRead = Math.max(0, Math.min(bytes.length, this.#image.size - at));
    await this.#image.readInto(bytesRead > 0 ? at : 0, bytes.subarray(0, bytesRead));
    return { bytesRead, buffer };
  }

  async write(buffer, bufferOffset, length, fileOffset) {
    const bytes = part(buffer, bufferOffset, length);
    await this.#changing("write", checkedNumber(fileOffset, "fileOffset"), bytes);
    return { bytesWritten: bytes.length, buffer };
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

/** A buffer may be a part of a larger one that belongs to others, so its borders are checked. */
function part(buffer, bufferOffset, length) {
  if (!isBytes(buffer)) throw new UnsupportedError({ kind: "unsupported", message: "a disk is read into and written from a Uint8Array" });
  const offset = checkedNumber(bufferOffset, "bufferOffset");
  const count = checkedNumber(length, "length");
  if (offset + count <= buffer.length) return new Uint8Array(buffer.buffer, buffer.byteOffset + offset, count);
  const message = `${count} bytes at ${offset} do not fit into a buffer of ${buffer.length}`;
  throw new RangeTooLargeError({ kind: "too-large", message });
}
