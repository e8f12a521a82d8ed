// Targets that only browsers have, over memory.

import { Memory } from "../src/memory.js";

/** An OPFS handle for synchronous access over memory. */
export function syncHandle(memory) {
  return {
    getSize: () => memory.size,
    read(into, { at }) {
      const bytes = memory.read(at, into.length);
      into.set(bytes);
      return bytes.length;
    },
    write: (bytes, { at }) => (memory.write(at, bytes), bytes.length),
    truncate: (length) => memory.resize(length),
    flush() {},
  };
}

/** A FileSystemFileHandle over memory: what is written shows once its stream is closed. */
export function pickedHandle(bytes = new Uint8Array(), { quota = Infinity } = {}) {
  const handle = {
    name: "picked",
    bytes,
    closed: 0,
    getFile: async () => new Blob([handle.bytes]),
    async createWritable({ keepExistingData }) {
      const swap = new Memory(keepExistingData ? handle.bytes.slice() : undefined);
      return {
        async write({ position, data }) {
          if (position > swap.size) throw new DOMException("behind the end", "InvalidStateError");
          if (position + data.length > quota) throw new DOMException("the quota is used up", "QuotaExceededError");
          swap.write(position, data);
        },
        truncate: async (length) => swap.resize(length),
        abort: async () => {},
        async close() {
          handle.bytes = swap.bytes.slice();
          handle.closed++;
        },
      };
    },
  };
  return handle;
}
