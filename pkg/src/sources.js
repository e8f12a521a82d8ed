// Where bytes come from. A source has `name`, `size` and `read(offset, length)`, which answers with bytes at once or with
// a promise for them, and may have `close()`.

import { SourceError, UnsupportedError } from "./errors.js";

const BLOCK = 256 * 1024;
const MAX_AHEAD_BLOCKS = 4;
const MAX_CACHED_BLOCKS = 128;

/** Bytes in memory. */
export function fromBytes(bytes, name = "memory") {
  const view = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
  return { name, size: view.length, read: (offset, length) => view.subarray(offset, offset + length) };
}

/** A File or Blob. */
export function fromBlob(blob, name = blob.name ?? "blob") {
  return cached({
    name,
    size: blob.size,
    read: async (offset, length) => new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer()),
  });
}

/** An OPFS handle for synchronous access (in a worker). */
export function fromSyncHandle(handle, name = "handle") {
  return {
    name,
    size: handle.getSize(),
    read(offset, length) {
      const bytes = new Uint8Array(length);
      const count = handle.read(bytes, { at: offset });
      return bytes.subarray(0, count);
    },
  };
}

/** An http(s) address whose server answers range requests. */
export async function fromUrl(url, { fetch = globalThis.fetch, signal, headers = {} } = {}) {
  const name = String(url);
  const request = async (offset, length) => {
    let response;
    try {
      response = await fetch(name, { headers: { ...headers, Range: `bytes=${offset}-${offset + length - 1}` }, signal });
    } catch (cause) {
      if (cause?.name === "AbortError") throw cause;
      throw new SourceError({ kind: "io", message: `${name}: could not be fetched: ${cause.message}`, path: name, offset }, { cause });
    }
    if (response.status === 200) {
      await response.body?.cancel();
      throw new UnsupportedError({ kind: "unsupported", message: `${name}: the server does not answer range requests`, path: name });
    }
    if (response.status !== 206) {
      await response.body?.cancel();
      throw new SourceError({ kind: "io", message: `${name}: the server answered ${response.status} ${response.statusText}`, path: name, offset });
    }
    return response;
  };
  const first = await request(0, 1);
  await first.body?.cancel();
  const total = /\/(\d+)$/.exec(first.headers.get("content-range") ?? "")?.[1];
  if (total === undefined) {
    throw new UnsupportedError({ kind: "unsupported", message: `${name}: the server does not tell the size (Content-Range)`, path: name });
  }
  return cached({
    name,
    size: Number(total),
    read: async (offset, length) => new Uint8Array(await (await request(offset, length)).arrayBuffer()),
  });
}

/**
 * Puts a cache of blocks with read-ahead in front of a source where a read costs a millisecond or more. A miss next to
 * the one before fetches up to four blocks at once.
 */
export function cached(source) {
  const blocks = new Map();
  let expected = -1;
  const fetchRun = (first, count) => {
    const start = first * BLOCK;
    const length = Math.min(count * BLOCK, source.size - start);
    const run = Promise.resolve(source.read(start, length)).then((bytes) => {
      if (bytes.length !== length) {
        throw new SourceError({ kind: "io", message: `${source.name}: ${bytes.length} bytes where ${length} were expected; did the file change?`, path: source.name, offset: start });
      }
      return bytes;
    });
    for (let index = 0; index < count && (first + index) * BLOCK < source.size; index++) {
      const block = run.then((bytes) => bytes.subarray(index * BLOCK, (index + 1) * BLOCK));
      block.catch(() => blocks.delete(first + index));
      blocks.set(first + index, block);
    }
    while (blocks.size > MAX_CACHED_BLOCKS) blocks.delete(blocks.keys().next().value);
  };
  const read = async (offset, length) => {
    const first = Math.floor(offset / BLOCK);
    const last = Math.floor((offset + length - 1) / BLOCK);
    const wanted = [];
    for (let index = first; index <= last; ) {
      if (blocks.has(index)) {
        const block = blocks.get(index);
        // The most recently used come last.
        blocks.delete(index);
        blocks.set(index, block);
        wanted.push(block);
        index++;
        continue;
      }
      let count = 1;
      while (index + count <= last && !blocks.has(index + count) && count < 16) count++;
      if (index === expected) count = Math.max(count, MAX_AHEAD_BLOCKS);
      fetchRun(index, count);
      expected = index + count;
      for (let done = 0; done < count && index <= last; done++, index++) wanted.push(blocks.get(index));
    }
    const parts = await Promise.all(wanted);
    if (parts.length === 1) return parts[0].subarray(offset - first * BLOCK, offset - first * BLOCK + length);
    const bytes = new Uint8Array(length);
    let at = first * BLOCK;
    for (const part of parts) {
      const from = Math.max(offset, at);
      const to = Math.min(offset + length, at + part.length);
      if (to > from) bytes.set(part.subarray(from - at, to - at), from - offset);
      at += BLOCK;
    }
    return bytes;
  };
  return { ...source, read };
}

/** Makes a source of whatever the caller has; `openPath` handles strings that are not addresses. */
export async function toSource(input, options, openPath) {
  if (typeof input === "string" || input instanceof URL) {
    const text = String(input);
    if (/^https?:\/\//i.test(text)) return fromUrl(text, options);
    return openPath(input);
  }
  if (typeof Blob !== "undefined" && input instanceof Blob) return fromBlob(input);
  if (input instanceof Uint8Array || input instanceof ArrayBuffer) return fromBytes(input);
  if (typeof input?.getSize === "function" && typeof input.read === "function") return fromSyncHandle(input);
  if (typeof input?.getFile === "function") return fromBlob(await input.getFile());
  if (typeof input?.stat === "function" && typeof input.read === "function") return fromFileHandle(input);
  if (typeof input?.read === "function" && typeof input.size === "number") return { name: "source", ...input, read: input.read.bind(input) };
  throw new UnsupportedError({ kind: "unsupported", message: "an image is opened from a File, Blob, Uint8Array, http(s) URL, file handle, path or source" });
}

/** A FileHandle of Node.js. It stays open when the image is closed. */
async function fromFileHandle(handle) {
  const { size } = await handle.stat();
  return {
    name: "handle",
    size,
    async read(offset, length) {
      const bytes = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const { bytesRead } = await handle.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return bytes.subarray(0, done);
    },
  };
}
