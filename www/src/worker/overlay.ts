// A copy of what an edit touches in a file: the file itself is only read.

import type { TargetObject } from "diskette/inspector";

import type { Change } from "./undo";

const BLOCK_BYTES = 4096;
/** An edit that touches more is for the command line. */
const MAX_BLOCKS = 16_384;
/** Nor has it more places than that, each of which takes its room in an undo file. */
const MAX_PLACES = 500_000;
/** Changes closer than this are shown as one. */
const JOIN_BYTES = 8;

/** A file that is read, whatever it is in. */
export interface Original {
  readonly name: string;
  readonly size: number;
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
}

const tooMuch = (): Error => Object.assign(new Error("this changes more than can be shown; use the diskette command line"), { kind: "over-budget" });

/** A file that keeps what is written to it apart. */
export class Overlay implements TargetObject {
  readonly name: string;
  size: number;
  readonly #file: Original;
  readonly #blocks = new Map<number, Uint8Array<ArrayBuffer>>();
  /** What is behind this in the file does not count: it was cut off once. */
  #valid: number;

  constructor(file: Original) {
    this.#file = file;
    this.name = file.name;
    this.size = this.#valid = file.size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    const end = Math.min(offset + length, this.#valid);
    if (offset < end) bytes.set(await this.#file.read(offset, end - offset));
    for (let number = Math.floor(offset / BLOCK_BYTES); number * BLOCK_BYTES < offset + length; number++) {
      const block = this.#blocks.get(number);
      if (!block) continue;
      const from = Math.max(offset, number * BLOCK_BYTES);
      const to = Math.min(offset + length, (number + 1) * BLOCK_BYTES);
      bytes.set(block.subarray(from - number * BLOCK_BYTES, to - number * BLOCK_BYTES), from - offset);
    }
    return bytes;
  }

  async #block(number: number): Promise<Uint8Array> {
    const known = this.#blocks.get(number);
    if (known) return known;
    if (this.#blocks.size === MAX_BLOCKS) throw tooMuch();
    const block = new Uint8Array(BLOCK_BYTES);
    block.set(await this.read(number * BLOCK_BYTES, BLOCK_BYTES));
    this.#blocks.set(number, block);
    return block;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done;
      const number = Math.floor(at / BLOCK_BYTES);
      const count = Math.min(bytes.length - done, (number + 1) * BLOCK_BYTES - at);
      (await this.#block(number)).set(bytes.subarray(done, done + count), at - number * BLOCK_BYTES);
      done += count;
    }
    this.size = Math.max(this.size, offset + bytes.length);
  }

  resize(length: number): void {
    if (length < this.size) {
      this.#valid = Math.min(this.#valid, length);
      for (const [number, block] of this.#blocks) {
        if (number * BLOCK_BYTES >= length) this.#blocks.delete(number);
        else if ((number + 1) * BLOCK_BYTES > length) block.fill(0, length - number * BLOCK_BYTES);
      }
    }
    this.size = length;
  }

  /** Every byte that is another one now, and those that are new or gone at the end. */
  async changes(): Promise<Change[]> {
    const found: Change[] = [];
    for (const number of [...this.#blocks.keys()].sort((one, two) => one - two)) {
      const start = number * BLOCK_BYTES;
      const after = (this.#blocks.get(number) as Uint8Array<ArrayBuffer>).subarray(0, Math.max(0, this.size - start));
      const before = await this.#old(start, start + BLOCK_BYTES);
      for (let at = 0; at < after.length; at++) {
        // Behind the old end everything is new, zeroes excepted: a file that grows has them anyway.
        if (after[at] === (before[at] ?? 0)) continue;
        let end = at + 1;
        for (let next = end; next < Math.min(after.length, end + JOIN_BYTES); next++) if (after[next] !== (before[next] ?? 0)) end = next + 1;
        if (found.length === MAX_PLACES) throw tooMuch();
        found.push({ offset: start + at, before: before.slice(at, end), after: after.slice(at, end) });
        at = end;
      }
    }
    return found;
  }

  /** Bytes of the file as it is, as far as there are any. */
  async #old(start: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    const length = Math.min(end, this.#file.size) - start;
    return length > 0 ? this.#file.read(start, length) : new Uint8Array();
  }

  /** What the file loses at its end. */
  async lost(): Promise<Change[]> {
    const from = Math.min(this.size, this.#file.size);
    if (this.#file.size - from > MAX_BLOCKS * BLOCK_BYTES) {
      throw Object.assign(new Error("this cuts off more than an undo file can keep; use the diskette command line"), { kind: "over-budget" });
    }
    const before = await this.#old(from, this.#file.size);
    return before.length > 0 ? [{ offset: from, before, after: new Uint8Array() }] : [];
  }
}
