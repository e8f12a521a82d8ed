// A cache of blocks with read-ahead, for sources where every read costs a millisecond or more (Blob, HTTP).

import { shortRead } from "./errors.js";

export const BLOCK_BYTES = 256 * 1024;
/** A miss right behind the one before fetches up to this much at once. */
const READ_AHEAD_BLOCKS = 4;
/** Larger reads are data rather than metadata: they go past the cache and do not push anything out of it. */
const LARGEST_CACHED_READ = BLOCK_BYTES * READ_AHEAD_BLOCKS;
const MAX_BLOCKS = 128;
const MAX_IN_FLIGHT = 16;

/** Puts a cache in front of a source. `head` are bytes from its start that are known already. */
export function cached(source, head) {
  /** Block number to its bytes, or to a promise for them. The most recently used come last. */
  const blocks = new Map();
  let expected = -1;
  let inFlight = 0;
  const waiting = [];

  if (head && head.length === Math.min(BLOCK_BYTES, source.size)) blocks.set(0, head);

  async function fetch(offset, length) {
    if (inFlight >= MAX_IN_FLIGHT) await new Promise((resolve) => waiting.push(resolve));
    else inFlight++;
    try {
      const bytes = await source.read(offset, length);
      if (bytes.length !== length) throw shortRead(source.name, offset, length, bytes.length);
      return bytes;
    } finally {
      // The place goes to the next in line.
      const next = waiting.shift();
      if (next) next();
      else inFlight--;
    }
  }

  function fetchRun(first, count) {
    const start = first * BLOCK_BYTES;
    const run = fetch(start, Math.min(count * BLOCK_BYTES, source.size - start));
    for (let index = 0; index < count; index++) {
      const number = first + index;
      const block = run.then(
        (bytes) => {
          // A copy, so that a block that stays does not keep the whole run in memory.
          const part = count === 1 ? bytes : bytes.slice(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);
          if (blocks.get(number) === block) blocks.set(number, part);
          return part;
        },
        (error) => {
          if (blocks.get(number) === block) blocks.delete(number);
          throw error;
        },
      );
      // Read-ahead that nobody asked for may fail unseen.
      block.catch(() => {});
      blocks.set(number, block);
    }
    while (blocks.size > MAX_BLOCKS) blocks.delete(blocks.keys().next().value);
  }

  function missingRun(first, last) {
    let count = 1;
    while (first + count <= last && !blocks.has(first + count)) count++;
    if (first === expected) {
      const end = Math.ceil(source.size / BLOCK_BYTES);
      while (count < READ_AHEAD_BLOCKS && first + count < end && !blocks.has(first + count)) count++;
    }
    expected = first + count;
    return count;
  }

  function assemble(parts, first, offset, length) {
    const skip = offset - first * BLOCK_BYTES;
    if (parts.length === 1) return parts[0].subarray(skip, skip + length);
    const bytes = new Uint8Array(length);
    let at = -skip;
    for (const part of parts) {
      bytes.set(part.subarray(Math.max(0, -at), Math.min(part.length, length - at)), Math.max(0, at));
      at += part.length;
    }
    return bytes;
  }

  function read(offset, length) {
    if (length === 0) return new Uint8Array();
    if (length > LARGEST_CACHED_READ) return fetch(offset, length);
    const first = Math.floor(offset / BLOCK_BYTES);
    const last = Math.floor((offset + length - 1) / BLOCK_BYTES);
    const parts = [];
    for (let index = first; index <= last; index++) {
      if (!blocks.has(index)) fetchRun(index, missingRun(index, last));
      const block = blocks.get(index);
      blocks.delete(index);
      blocks.set(index, block);
      parts.push(block);
    }
    // What is known is answered at once.
    if (parts.every((part) => part instanceof Uint8Array)) return assemble(parts, first, offset, length);
    return Promise.all(parts).then((parts) => assemble(parts, first, offset, length));
  }

  return { ...source, read };
}
