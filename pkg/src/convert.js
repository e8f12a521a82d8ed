// Copying a disk into a new image, with constant memory.

import { abortable, forAWhile } from "./abortable.js";
import { RangeTooLargeError, SourceError, UnsupportedError, checkedNumber, isBytes } from "./errors.js";
import { breathe } from "./rest.js";

/** A multiple of every cluster size up to it, and what is read and written at a time. */
const PIECE_BYTES = 2 * 1024 * 1024;
/** Zeroes are left out in units of this, or of the target's clusters. */
const HOLE_BYTES = 64 * 1024;

/** `create` makes and opens the target. */
export function converters(create) {
  /** Copies an image into a new one. */
  async function convert(image, target, options = {}) {
    const { format = "qcow2", compressed = false, onProgress, signal } = options;
    signal?.throwIfAborted();
    refuseCompressed({ format, compressed, ...options });
    const total = image.size;
    const made = await create(target, { ...options, format, size: total, onOpen: undefined });
    return finish(made, signal, async () => {
      const whole = startsUndefined(format);
      for await (const [at, length] of whole ? allPieces(total) : pieces(image, signal)) {
        const bytes = await image.read(at, length, { signal });
        await writeData(made, at, bytes, { compressed, signal, whole });
        await tell(onProgress, { done: at + length, total }, signal);
      }
      await tell(onProgress, { done: total, total }, signal);
    });
  }

  /** Fills a new image from a stream of the disk's bytes. */
  async function fromStream(readable, target, options = {}) {
    const { format = "qcow2", compressed = false, onProgress, signal } = options;
    signal?.throwIfAborted();
    refuseCompressed({ format, compressed, ...options });
    if (typeof readable?.getReader !== "function") {
      const message = "a ReadableStream is copied; of a stream of Node.js Readable.toWeb(stream) makes one";
      throw new UnsupportedError({ kind: "unsupported", message, operation: "convert" });
    }
    const total = checkedNumber(options.size, "size");
    const reader = readable.getReader();
    const made = await create(target, { ...options, format, size: total }).catch((error) => {
      // A stream that is not wanted any more ends; one that nothing was taken of can be used otherwise.
      if (signal?.aborted) reader.cancel(error).catch(() => {});
      reader.releaseLock();
      throw error;
    });
    return finish(made, signal, async () => {
      let at = 0;
      let piece = new Uint8Array(Math.min(PIECE_BYTES, total));
      let filled = 0;
      const store = async () => {
        await writeData(made, at, piece.subarray(0, filled), { compressed, signal, whole: startsUndefined(format) });
        at += filled;
        filled = 0;
        await tell(onProgress, { done: at, total }, signal);
      };
      try {
        for (;;) {
          const { value, done } = await abortable(reader.read(), signal);
          if (done) break;
          // Zeroes that are answered at once reach no core.
          await breathe();
          if (!isBytes(value)) throw new UnsupportedError({ kind: "unsupported", message: "a stream of a disk gives Uint8Arrays", operation: "read" });
          for (let used = 0; used < value.length; ) {
            if (at + filled === total) {
              const message = `the stream goes on after the ${total} bytes that the disk has`;
              throw new RangeTooLargeError({ kind: "too-large", message, offset: total, operation: "read" });
            }
            const count = Math.min(value.length - used, piece.length - filled, total - at - filled);
            piece.set(value.subarray(used, used + count), filled);
            used += count;
            filled += count;
            if (filled === piece.length) await store();
          }
        }
        if (filled > 0) await store();
        if (at !== total) {
          throw new SourceError({ kind: "io", message: `the stream ended after ${at} of ${total} bytes`, offset: at, operation: "read" });
        }
      } catch (error) {
        reader.cancel(error).catch(() => {});
        throw error;
      } finally {
        reader.releaseLock();
      }
    });
  }

  return { convert, fromStream };
}

/** A target has so long to let go of what it got before a copy was stopped. */
const FAREWELL_MILLISECONDS = 1000;

/** Closes the target: with what it has, or as it is when something failed. One that never answers is not waited for once the copy is to stop. */
async function finish(made, signal, work) {
  try {
    await work();
    signal?.throwIfAborted();
    await abortable(made.close(), signal);
  } catch (error) {
    const ended = made.abandon().catch(() => {});
    await (signal?.aborted ? forAWhile(ended, FAREWELL_MILLISECONDS) : ended);
    throw error;
  }
}

/** Tells how far a copy is. What that throws, be it later, stops the copy. */
async function tell(onProgress, progress, signal) {
  const answer = onProgress?.(progress);
  if (typeof answer?.then === "function") await abortable(Promise.resolve(answer), signal);
}

/** Says what cannot be compressed before the target is touched. */
function refuseCompressed({ format, compressed, compressionType }) {
  if (!compressed) return;
  const refuse = (message) => {
    throw new UnsupportedError({ kind: "unsupported", message, operation: "convert" });
  };
  if (format !== "qcow2") refuse(`the format '${String(format)}' has no compressed clusters`);
  if (compressionType === "zstd") refuse("clusters are compressed with zlib here, not with zstd");
}

/** Offsets and lengths of what is not all zeroes by the map, in order. */
async function* pieces(image, signal) {
  let from = 0;
  for await (const { columns } of image.mapPages({ signal })) {
    for (let at = 0; at < columns.length; at += 6) {
      const [start, length, , flags] = columns.subarray(at, at + 4);
      const end = start + length;
      // Zeroes; and what no image of the chain holds.
      if ((flags & 2) !== 0 && (flags & 4) === 0) continue;
      while (from < end) {
        const first = Math.max(from, Math.floor(start / PIECE_BYTES) * PIECE_BYTES);
        if (first >= end) break;
        const next = Math.min(image.size, (Math.floor(first / PIECE_BYTES) + 1) * PIECE_BYTES);
        yield [first, next - first];
        from = next;
      }
    }
  }
}

/** Whether what was never written to a new image is anything: zeroes that are decrypted are noise. */
const startsUndefined = (format) => format === "luks";

/** Offsets and lengths of the whole disk, in order. */
function* allPieces(total) {
  for (let at = 0; at < total; at += PIECE_BYTES) yield [at, Math.min(PIECE_BYTES, total - at)];
}

/** Writes what is not zero, for the rest of a new target is zero already; or else the `whole`. */
async function writeData(made, at, bytes, { whole, ...options }) {
  // A target that never answers is not waited for once the copy is to stop.
  const put = (start, end) => abortable(made.write(at + start, bytes.subarray(start, end), options), options.signal);
  if (whole) return put(0, bytes.length);
  const unit = Math.max(HOLE_BYTES, made.info().clusterSize ?? 0);
  let start = -1;
  for (let offset = 0; offset < bytes.length; offset += unit) {
    if (!isZero(bytes, offset, Math.min(offset + unit, bytes.length))) {
      if (start < 0) start = offset;
    } else if (start >= 0) {
      await put(start, offset);
      start = -1;
    }
  }
  if (start >= 0) await put(start, bytes.length);
}

function isZero(bytes, start, end) {
  const place = bytes.byteOffset + start;
  if (place % 4 !== 0 || (end - start) % 4 !== 0) return !bytes.subarray(start, end).some((byte) => byte !== 0);
  const words = new Uint32Array(bytes.buffer, place, (end - start) / 4);
  for (let index = 0; index < words.length; index++) if (words[index] !== 0) return false;
  return true;
}
