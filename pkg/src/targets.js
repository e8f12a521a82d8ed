// Where bytes go. A target is a source that also has `write(offset, bytes)` and `resize(length)`, and may have `flush()`,
// `discard(offset, length)`, `zero(offset, length)`, and for what only shows once it is closed `commit()`, `show()` or `abort()`.

import { ReadOnlyError, UnsupportedError, typed } from "./errors.js";
import { fromFileHandle, fromSyncHandle } from "./sources.js";

/** An OPFS handle for synchronous access (in a worker). It stays open when the image is closed. */
function toSyncHandle(handle) {
  return {
    ...fromSyncHandle(handle),
    write(offset, bytes) {
      for (let done = 0; done < bytes.length; ) {
        const count = handle.write(bytes.subarray(done), { at: offset + done });
        if (!(count > 0)) throw Object.assign(new Error("the file takes no more bytes"), { kind: "no-space" });
        done += count;
      }
    },
    flush: () => handle.flush(),
    resize: (length) => handle.truncate(length),
  };
}

/** Writes up to this size, or in a file's first bytes, are remembered so that they can be read back. */
const REMEMBERED_WRITE = 512 * 1024;
const REMEMBERED_START = 16 * 1024 * 1024;
const REMEMBERED_BYTES = 32 * 1024 * 1024;

/**
 * A handle of the file picker or of OPFS. What is written goes to a copy that takes the file's place when it is closed, and
 * can be read only then. Small writes are remembered; a read of others closes the copy and opens another, as `commit` does.
 */
async function toFileSystemHandle(handle) {
  // Where browsers know modes, whoever comes second is refused rather than overwritten.
  const start = () => handle.createWritable({ keepExistingData: true, mode: "exclusive" });
  let file = await handle.getFile();
  let writable = await start();
  let length = file.size;
  /** How much of the start of `file` still counts. */
  let valid = length;
  /** Writes in their order, and ranges of those that are not remembered. */
  let remembered = [];
  let bytesRemembered = 0;
  let forgotten = [];
  let turn = Promise.resolve();
  let aborted = false;

  /** One after the other: a stream that is being closed takes no more. */
  const next = (work) => {
    const result = turn.then(work);
    turn = result.catch(() => {});
    return result;
  };

  async function commit() {
    await writable.close();
    file = await handle.getFile();
    valid = file.size;
    [remembered, bytesRemembered, forgotten] = [[], 0, []];
    writable = await start();
  }

  function forget(start, end) {
    const touches = (range) => range.end >= start && range.start <= end;
    for (const range of forgotten.filter(touches)) [start, end] = [Math.min(start, range.start), Math.max(end, range.end)];
    forgotten = [...forgotten.filter((range) => !touches(range)), { start, end }];
  }

  function remember(start, bytes) {
    const end = start + bytes.length;
    if (bytes.length > REMEMBERED_WRITE && end > REMEMBERED_START) return forget(start, end);
    remembered.push({ start, end, bytes });
    bytesRemembered += bytes.length;
    while (bytesRemembered > REMEMBERED_BYTES) {
      const oldest = remembered.shift();
      bytesRemembered -= oldest.bytes.length;
      forget(oldest.start, oldest.end);
    }
  }

  async function read(start, wanted) {
    const end = start + wanted;
    if (forgotten.some((range) => range.start < end && range.end > start)) await commit();
    const bytes = new Uint8Array(wanted);
    if (start < valid) bytes.set(new Uint8Array(await file.slice(start, Math.min(end, valid)).arrayBuffer()));
    for (const write of remembered) {
      const [from, to] = [Math.max(start, write.start), Math.min(end, write.end)];
      if (from < to) bytes.set(write.bytes.subarray(from - write.start, to - write.start), from - start);
    }
    return bytes;
  }

  async function resize(size) {
    await writable.truncate(size);
    if (size < length) {
      valid = Math.min(valid, size);
      remembered = remembered.map(({ start, end, bytes }) => ({ start, end: Math.min(end, size), bytes })).filter(({ start, end }) => start < end);
      forgotten = forgotten.map(({ start, end }) => ({ start, end: Math.min(end, size) })).filter(({ start, end }) => start < end);
    }
    length = size;
  }

  return {
    name: handle.name ?? "handle",
    size: length,
    read: (offset, wanted) => next(() => read(offset, wanted)),
    write: (offset, bytes) =>
      next(async () => {
        // A stream may not be written behind its end.
        if (offset > length) await resize(offset);
        await writable.write({ type: "write", position: offset, data: bytes });
        length = Math.max(length, offset + bytes.length);
        remember(offset, bytes);
      }),
    resize: (size) => next(() => resize(size)),
    commit: () => next(commit),
    abort: () =>
      next(() => {
        aborted = true;
        return writable.abort();
      }),
    close: () => next(() => (aborted ? undefined : writable.close())),
  };
}

/** A FileHandle of Node.js. It stays open when the image is closed. */
async function toFileHandle(handle) {
  return {
    ...(await fromFileHandle(handle)),
    async write(offset, bytes) {
      for (let done = 0; done < bytes.length; ) done += (await handle.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
    },
    flush: () => handle.sync(),
    resize: (length) => handle.truncate(length),
  };
}

/** An object of the caller that can be read and written. */
function toObject(object) {
  const bound = (name) => (typeof object[name] === "function" ? object[name].bind(object) : undefined);
  const target = { name: String(object.name ?? "target"), located: object.name !== undefined, size: object.size };
  for (const name of ["read", "write", "zero", "discard", "flush", "close"]) target[name] = bound(name);
  target.resize = bound("resize") ?? refuseResize;
  return target;
}

function refuseResize() {
  throw new UnsupportedError({ kind: "unsupported", message: "the target has a fixed length: it has no resize(length)", operation: "resize" });
}

function refuse(what) {
  throw new ReadOnlyError({ kind: "read-only", message: what, operation: "open" });
}

/** Makes a target of whatever the caller has; `openPath` handles paths. `create` is for a new image, `how` it is made in a path. */
export async function toTarget(input, { create = false, ...how } = {}, openPath) {
  if (typeof input === "string" || input instanceof URL) {
    if (/^https?:/i.test(String(input))) refuse(`'${input}' cannot be written: http(s) addresses are only read; copy the image into a file or Memory`);
    return openPath(input, { write: true, create, ...how });
  }
  if (typeof Blob !== "undefined" && input instanceof Blob) {
    refuse("a File or Blob never changes: open the FileSystemFileHandle it came from, or copy the image into a new target");
  }
  if (input instanceof ArrayBuffer || ArrayBuffer.isView(input)) refuse("an array of bytes cannot grow: wrap it, as in new Memory(bytes)");
  const has = (...names) => names.every((name) => typeof input?.[name] === "function");
  if (has("getSize", "read", "write", "truncate")) return typed(() => toSyncHandle(input), null, "could not be opened for writing");
  if (has("getFile", "createWritable")) return typed(() => toFileSystemHandle(input), input.name ?? null, "could not be opened for writing");
  if (has("stat", "read", "write", "truncate")) return typed(() => toFileHandle(input), null, "could not be opened for writing");
  if (has("read", "write") && input.size !== undefined) return toObject(input);
  return refuse("this cannot be written: give a path, file handle, OPFS handle, Memory, or an object with size, read, write and resize");
}
