// An open image: what the callers of this package hold.

import { abortable } from "./abortable.js";
import { RangeTooLargeError, UnsupportedError, checkBytes, checkedNumber, checkedRange, closed, isBuffer, isBytes, noBytes, typed } from "./errors.js";
import { bounds } from "./options.js";
import { Pump } from "./pump.js";

/** Reads are cut at multiples of this, so that the core never holds more than a few pieces. */
const PIECE_BYTES = 4 * 1024 * 1024;
const PIECES_IN_FLIGHT = 4;
const STREAM_CHUNK_BYTES = 1024 * 1024;
const STREAM_CHUNKS_AHEAD = 4;
/** Numbers per extent in a page of a map. */
export const MAP_COLUMNS = 6;
const MAX_EXTENTS = 4_000_000;
/** `LUKS`, 0xba, 0xbe: what every version of it begins with (LUKS On-Disk Format Specification). */
const LUKS_MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe];

/** An open image. */
export class Image {
  #pump;
  #size;

  constructor(pump) {
    this.#pump = pump;
    this.measure();
  }

  /** Asks the core how large the disk is. */
  measure() {
    this.#size = this.#pump.call((session) => session.length());
  }

  /** Opens a source; `toSource` makes sources of what `onOpen` answers. */
  static async open(Session, source, options, toSource) {
    const { format, onOpen, signal, budgets } = options;
    const openReference = async (reference, writable) => {
      const answer = await onOpen(reference);
      return answer === null || answer === undefined || answer === false ? undefined : toSource(answer, writable);
    };
    const name = String(source.name);
    const top = { ...source, name, probed: format === undefined };
    const pump = new Pump(new Session(), top, openReference);
    try {
      if (format !== undefined && !pump.call((session) => typeof format === "string" && session.knows(format))) {
        throw new UnsupportedError({ kind: "unsupported", message: `the format '${String(format)}' is not known here`, path: name });
      }
      top.size = checkedNumber(source.size, `the size of '${name}'`);
      pump.call((session) => session.setBudgets(...bounds(budgets)));
      await pump.run((session) => this.begin(session, name, top.size, options), signal);
      if (!pump.call((session) => session.knows("luks"))) refuseLuks(pump.files);
      return new this(pump, options);
    } catch (error) {
      // A target that only shows what was written once it is closed stays as it was.
      await top.abort?.().catch(() => {});
      await pump.close().catch(() => {});
      throw error;
    }
  }

  /** Starts the job that opens the image. */
  static begin(session, name, size, { format, onOpen, snapshot }) {
    return session.open(name, size, format, !onOpen, snapshot === undefined ? undefined : String(snapshot));
  }

  /** Size of the disk in bytes. */
  get size() {
    return this.#size;
  }

  /** The files that are open: the image's own first, then those that it names. */
  get files() {
    return this.#pump.files.map(({ name, size }) => ({ name, size }));
  }

  info() {
    return this.#pump.call((session) => session.info());
  }

  check({ signal } = {}) {
    return this.#pump.run((session) => session.check(), signal);
  }

  /** The map in pages, as numbers: see `MapPage` in the declarations. */
  async *mapPages({ offset = 0, length, signal } = {}) {
    let [at, end] = checkedRange(this.#size, offset, length, "map");
    while (at < end) {
      const page = await this.#pump.run((session) => session.map(at, end - at), signal);
      yield page;
      at = page.end;
      signal?.throwIfAborted();
    }
  }

  async map(options = {}) {
    const extents = [];
    for await (const page of this.mapPages(options)) {
      for (const extent of decode(page)) {
        const last = extents.at(-1);
        if (last && continues(last, extent)) last.length += extent.length;
        else extents.push(extent);
      }
      if (extents.length > MAX_EXTENTS) {
        const message = `the map has more than ${MAX_EXTENTS} extents; ask for parts of the disk, or use mapPages()`;
        throw new RangeTooLargeError({ kind: "over-budget", message, operation: "map" });
      }
    }
    return extents;
  }

  async read(offset, length, { signal } = {}) {
    const [at, end] = checkedRange(this.#size, offset, checkedNumber(length, "length"), "read");
    let bytes;
    try {
      bytes = new Uint8Array(end - at);
    } catch (cause) {
      const message = `there is no room for ${end - at} bytes; use stream(), or read fewer at a time`;
      throw new RangeTooLargeError({ kind: "over-budget", message, operation: "read" }, { cause });
    }
    return this.#fill(at, bytes, signal);
  }

  async readInto(offset, into, { signal } = {}) {
    checkBytes(into, "readInto fills", "read");
    const [at] = checkedRange(this.#size, offset, into.length, "read");
    return this.#fill(at, into, signal);
  }

  /** Bytes of a file itself, not of the disk in it. */
  async readFile(offset, length, { file = 0, signal } = {}) {
    const { files } = this.#pump;
    if (files.length === 0) throw closed();
    const source = files[file];
    if (!source) throw new RangeTooLargeError({ kind: "too-large", message: `there is no file ${file}; ${files.length} are open` });
    const at = Math.min(checkedNumber(offset, "offset"), source.size);
    const wanted = Math.min(checkedNumber(length, "length"), source.size - at);
    signal?.throwIfAborted();
    const bytes = await abortable(typed(() => source.read(at, wanted), source.name), signal);
    if (isBytes(bytes)) return bytes;
    if (isBuffer(bytes)) return new Uint8Array(bytes);
    throw noBytes(source.name, at, bytes);
  }

  stream({ offset = 0, length, signal } = {}) {
    let [at, end] = checkedRange(this.#size, offset, length, "read");
    const stop = new AbortController();
    const either = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
    const ahead = [];
    return new ReadableStream(
      {
        pull: async (controller) => {
          // Where nothing else holds on to a signal with a timer, it is forgotten, and `either` with it.
          signal?.throwIfAborted();
          while (at < end && ahead.length < STREAM_CHUNKS_AHEAD) {
            const chunk = this.read(at, Math.min(STREAM_CHUNK_BYTES, end - at), { signal: either });
            // One that fails is reported when its turn comes.
            chunk.catch(() => {});
            ahead.push(chunk);
            at += STREAM_CHUNK_BYTES;
          }
          const chunk = ahead.shift();
          if (chunk === undefined) return controller.close();
          controller.enqueue(await chunk);
        },
        cancel: (reason) => stop.abort(reason),
      },
      { highWaterMark: 1 },
    );
  }

  async close() {
    await this.#pump.close();
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  /** Reads into `into`, piece by piece with several in flight. */
  async #fill(at, into, signal) {
    const end = at + into.length;
    const stop = new AbortController();
    const either = into.length <= PIECE_BYTES ? signal : signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
    const worker = async () => {
      while (at < end) {
        const start = at;
        const next = Math.min(end, (Math.floor(start / PIECE_BYTES) + 1) * PIECE_BYTES);
        at = next;
        const part = into.subarray(start - end + into.length, next - end + into.length);
        const take = (session, id) => session.takeInto(id, part) || undefined;
        await this.#pump.run((session) => session.read(start, part.length), either, take);
      }
    };
    try {
      await Promise.all(Array.from({ length: PIECES_IN_FLIGHT }, worker));
    } catch (error) {
      stop.abort();
      throw error;
    }
    if (into.length === 0) signal?.throwIfAborted();
    return into;
  }
}

/** Where nothing is decrypted, what is encrypted is taken for raw only when that was said. */
function refuseLuks([top, ...others]) {
  const isLuks = ({ probed, head }) => probed && LUKS_MAGIC.every((byte, at) => head?.[at] === byte);
  const refuse = (message, path) => {
    throw new UnsupportedError({ kind: "unsupported", message, path, operation: "open" });
  };
  const what = "the data is encrypted (LUKS), and no key is used by this entry";
  if (isLuks(top)) refuse(`${what}: import diskette/full and give its passphrase, or format: "raw" to see the encrypted bytes`, top.name);
  const other = others.find(isLuks);
  if (other) refuse(`'${other.name}' cannot be read: ${what}`, other.name);
}

function* decode({ columns, files }) {
  for (let at = 0; at < columns.length; at += MAP_COLUMNS) {
    const [start, length, depth, flags, offset, file] = columns.subarray(at, at + MAP_COLUMNS);
    yield {
      start,
      length,
      depth,
      present: (flags & 1) !== 0,
      zero: (flags & 2) !== 0,
      data: (flags & 4) !== 0,
      compressed: (flags & 8) !== 0,
      offset: offset < 0 ? null : offset,
      file: file < 0 ? null : files[file],
    };
  }
}

/** Whether `next` differs from the extent before it in nothing but place. */
function continues(last, next) {
  const alike = ["depth", "present", "zero", "data", "compressed", "file"].every((key) => last[key] === next[key]);
  return alike && (last.offset === null ? next.offset === null : last.offset + last.length === next.offset);
}
