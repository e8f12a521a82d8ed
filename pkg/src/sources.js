// Where bytes come from. A source has `name`, `size` and `read(offset, length)`, which answers with bytes at once or with
// a promise for them, and may have `close()`. It is `located` if its name tells it from every other.

import { cached } from "./cache.js";
import { UnsupportedError, typed } from "./errors.js";
import { fromUrl } from "./http.js";

/** Bytes in memory. */
function fromBytes(bytes) {
  const view = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return { name: "memory", size: view.length, read: (offset, length) => view.subarray(offset, offset + length) };
}

/** A File or Blob. A File whose name is a path, as in a folder that was chosen, is told from others by it. */
function fromBlob(blob) {
  const name = blob.name ?? "blob";
  return cached({
    name,
    located: name.includes("/"),
    size: blob.size,
    read: async (offset, length) => new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer().catch(lost)),
  });
}

/** A File stands for what it was when it was chosen; browsers say little of why it cannot be read any more. */
function lost(cause) {
  if (cause?.name !== "NotReadableError" && cause?.name !== "NotFoundError") throw cause;
  throw Object.assign(new Error("the file was changed, moved or removed since it was chosen; choose it again", { cause }), { kind: "io" });
}

/** An OPFS handle for synchronous access (in a worker). It stays open when the image is closed. */
export function fromSyncHandle(handle) {
  return {
    name: "handle",
    size: handle.getSize(),
    read(offset, length) {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, handle.read(bytes, { at: offset }));
    },
  };
}

/** A FileHandle of Node.js. It stays open when the image is closed. */
export async function fromFileHandle(handle) {
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

/** Makes a source of whatever the caller has; `openPath` handles strings that are not addresses. */
export async function toSource(input, options, openPath) {
  if (typeof input === "string" || input instanceof URL) {
    return /^https?:/i.test(String(input)) ? fromUrl(input, options) : openPath(input);
  }
  if (typeof Blob !== "undefined" && input instanceof Blob) return fromBlob(input);
  if (input instanceof ArrayBuffer || ArrayBuffer.isView(input)) return fromBytes(input);
  if (typeof input?.getSize === "function" && typeof input.read === "function") return typed(() => fromSyncHandle(input));
  if (typeof input?.getFile === "function") return fromBlob(await typed(() => input.getFile()));
  if (typeof input?.stat === "function" && typeof input.read === "function") return typed(() => fromFileHandle(input));
  if (typeof input?.read === "function" && input.size !== undefined) {
    const { name, size } = input;
    return { name: String(name ?? "source"), located: name !== undefined, size, read: input.read.bind(input), close: input.close?.bind(input) };
  }
  const message = "an image is opened from a File, Blob, Uint8Array, http(s) address, file handle, path or source";
  throw new UnsupportedError({ kind: "unsupported", message });
}
