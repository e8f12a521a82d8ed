// A target in memory.

import { SourceError } from "./errors.js";

const LEAST_BYTES = 64 * 1024;

/** A file in memory that grows as it is written to. */
export class Memory {
  #bytes;
  #size;

  constructor(bytes = new Uint8Array()) {
    this.#bytes = bytes;
    this.#size = bytes.length;
  }

  get name() {
    return "memory";
  }

  get size() {
    return this.#size;
  }

  /** What the file holds: a view, until the next change. */
  get bytes() {
    return this.#bytes.subarray(0, this.#size);
  }

  read(offset, length) {
    return this.#bytes.slice(offset, Math.min(offset + length, this.#size));
  }

  write(offset, bytes) {
    if (offset + bytes.length > this.#size) this.resize(offset + bytes.length);
    this.#bytes.set(bytes, offset);
  }

  resize(length) {
    if (length > this.#bytes.length) {
      let larger;
      try {
        larger = new Uint8Array(Math.max(length, Math.min(this.#bytes.length * 2, 2 ** 32), LEAST_BYTES));
      } catch (cause) {
        throw new SourceError({ kind: "no-space", message: `memory has no room for a file of ${length} bytes`, path: this.name }, { cause });
      }
      larger.set(this.bytes);
      this.#bytes = larger;
    } else if (length < this.#size) {
      this.#bytes.fill(0, length, this.#size);
    }
    this.#size = length;
  }
}
