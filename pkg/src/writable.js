// An image that may be open for writing.

import { abortable } from "./abortable.js";
import { RangeTooLargeError, ReadOnlyError, UnsupportedError, checkBytes, checkedNumber, closed, typed } from "./errors.js";
import { Image } from "./image.js";

/** Writes are cut at multiples of this. */
const PIECE_BYTES = 4 * 1024 * 1024;
/** And what is zeroed or discarded, most of which is metadata, at multiples of this. */
const EMPTY_PIECE_BYTES = 1024 * 1024 * 1024;
const REPAIRS = [undefined, "leaks", "all"];

/** An open image that can be changed, if it was opened so. */
export class WritableImage extends Image {
  #pump;
  #options;
  #changes = new Set();
  #closing;

  constructor(pump, options) {
    super(pump);
    this.#pump = pump;
    this.#options = options;
  }

  static begin(session, name, size, { format, onOpen, passphrase, writable, structureOnly, noBacking, snapshot }) {
    const structure = structureOnly ?? (!onOpen && !writable && passphrase === undefined);
    const flags = [structure, onOpen, writable].map(Boolean);
    const which = snapshot === undefined ? undefined : String(snapshot);
    return session.openAs(name, size, format, ...flags, passphrase, which, Boolean(noBacking));
  }

  /** Whether the image was opened for writing. */
  get writable() {
    return Boolean(this.#options.writable);
  }

  /** Internal snapshots. */
  get snapshots() {
    const change = (verb, name, date = 0) => this.#change((session) => session.snapshot(verb, text(name, "a snapshot", "snapshot"), date));
    return {
      list: () => this.info().snapshots,
      create: async (name, { date = new Date() } = {}) => change("create", name, seconds(date)),
      apply: (nameOrId) => change("apply", nameOrId).then(() => this.measure()),
      delete: (name) => change("delete", name),
    };
  }

  /** Names another file that shows where this image has nothing, or with `null` none. What is stored stays. */
  async setBacking(name, format = null) {
    const file = name === null ? undefined : text(name, "a backing file", "set-backing");
    const isKnown = (format) => typeof format === "string" && this.#pump.call((session) => session.knows(format));
    if (format !== null && !isKnown(format)) {
      throw new UnsupportedError({ kind: "unsupported", message: `the format '${String(format)}' is not known here`, operation: "set-backing" });
    }
    await this.#change((session) => session.setBacking(file, format ?? undefined));
  }

  /** What a bitmap says was written to: start and length of each range in turn. */
  readBitmap(name, { signal } = {}) {
    return this.#pump.run((session) => session.readBitmap(String(name)), signal);
  }

  /** Writes bytes; `compressed` stores whole clusters compressed. */
  async write(offset, bytes, { signal, compressed = false } = {}) {
    checkBytes(bytes, "write takes", "write");
    const at = this.#within(offset, bytes.length, "write");
    const write = (session, start, length) => session.write(start, bytes.subarray(start - at, start - at + length), compressed);
    await this.#changePieces(at, bytes.length, PIECE_BYTES, signal, write);
  }

  /** Makes a range read as zeroes; its space may be given back. */
  async zero(offset, length, { signal, unmap = true } = {}) {
    const len = checkedNumber(length, "length");
    const at = this.#within(offset, len, "zero");
    await this.#changePieces(at, len, EMPTY_PIECE_BYTES, signal, (session, start, length) => session.writeZeroes(start, length, unmap));
  }

  /** Says that a range is not needed any more; what it reads as from then on is up to the format. */
  async discard(offset, length, { signal } = {}) {
    const len = checkedNumber(length, "length");
    const at = this.#within(offset, len, "discard");
    await this.#changePieces(at, len, EMPTY_PIECE_BYTES, signal, (session, start, length) => session.discard(start, length));
  }

  /** Everything written before is where a power cut does not reach it. */
  async flush({ signal } = {}) {
    signal?.throwIfAborted();
    const flushed = this.#changing(async () => {
      await this.#pump.run((session) => session.flush());
      for (const source of this.#pump.files) await typed(() => source.commit?.(), source.name, "could not be written");
    });
    await abortable(flushed, signal);
  }

  /** Changes the size of the disk; `shrink` allows it to lose its end. */
  async resize(size, { shrink = false } = {}) {
    const length = checkedNumber(size, "size");
    if (length < this.size && !shrink) {
      const message = `the disk would lose everything behind ${length} bytes; resize(size, { shrink: true }) allows that`;
      throw new RangeTooLargeError({ kind: "invalid", message, operation: "resize" });
    }
    await this.#change((session) => session.resize(length));
    this.measure();
  }

  /** Checks the metadata; `repair` puts right `"leaks"` or `"all"`. */
  async check({ signal, repair } = {}) {
    if (!REPAIRS.includes(repair)) {
      throw new UnsupportedError({ kind: "invalid", message: `repair is "leaks" or "all", not ${String(repair)}`, operation: "check" });
    }
    if (repair === undefined) return super.check({ signal });
    signal?.throwIfAborted();
    return this.#change((session) => session.repair(repair === "all"));
  }

  /** Waits for changes, writes everything back, and closes what was opened. */
  close() {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Closes what was opened without writing back: what was not flushed is lost, and may be left as leaks. */
  abandon() {
    this.#closing ??= this.#drop();
    return this.#closing;
  }

  async #close() {
    await Promise.allSettled(this.#changes);
    try {
      if (this.writable) await this.#pump.run((session) => session.closeImage());
    } catch (error) {
      await this.#drop().catch(() => {});
      throw error;
    }
    await super.close();
  }

  async #drop() {
    for (const source of this.#pump.files) {
      if (!source.abort) continue;
      const { abort } = source;
      source.close = () => abort().catch(() => {});
    }
    await super.close();
  }

  /** Makes a change that is one job of the core. */
  #change(start) {
    return this.#changing(() => this.#pump.run(start));
  }

  /** Makes a change piece by piece, as long as the signal does not say otherwise. */
  #changePieces(at, length, pieceBytes, signal, start) {
    const end = at + length;
    return this.#changing(async () => {
      do {
        signal?.throwIfAborted();
        const next = Math.min(end, (Math.floor(at / pieceBytes) + 1) * pieceBytes);
        await this.#pump.run((session) => start(session, at, next - at));
        at = next;
      } while (at < end);
    });
  }

  /** A change runs to its end, and a close waits for it. */
  async #changing(work) {
    if (this.#closing) throw closed();
    if (!this.writable) {
      const message = "the image was opened read-only; open(input, { writable: true }) opens it for writing";
      throw new ReadOnlyError({ kind: "read-only", message, path: this.files[0]?.name ?? null });
    }
    const change = work();
    this.#changes.add(change);
    try {
      return await change;
    } finally {
      this.#changes.delete(change);
    }
  }

  #within(offset, length, operation) {
    const at = checkedNumber(offset, "offset");
    if (at + length <= this.size) return at;
    const message = `${length} bytes at offset ${at} reach beyond the end: the size of the disk is ${this.size} bytes`;
    throw new RangeTooLargeError({ kind: "too-large", message, offset: at, operation });
  }
}

function seconds(date) {
  const milliseconds = date instanceof Date ? date.getTime() : NaN;
  if (Number.isFinite(milliseconds)) return milliseconds / 1000;
  throw new UnsupportedError({ kind: "invalid", message: `a snapshot is of a Date, not of ${String(date)}`, operation: "snapshot" });
}

function text(name, what, operation) {
  if (typeof name === "string" && name !== "") return name;
  throw new UnsupportedError({ kind: "invalid", message: `${what} is named by a text, not by ${String(name)}`, operation });
}
