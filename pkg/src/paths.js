// Files and block devices of this machine, for Node.js.

import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { SourceError, kindOf } from "./errors.js";

/** Opens a path; with `write` for changing, with `create` making it if it is not there. */
export function openPath(input, { write = false, create = false } = {}) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? fileURLToPath(input) : input;
  let descriptor;
  try {
    // Without O_NONBLOCK opening a FIFO would wait for its writer.
    const flags = (write ? constants.O_RDWR : constants.O_RDONLY) | (create ? constants.O_CREAT : 0) | (constants.O_NONBLOCK ?? 0);
    descriptor = openSync(path, flags);
    const stat = fstatSync(descriptor);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("it is not a regular file or block device");
    if (create && !stat.isFile()) throw new Error("a new image is made in a file, not in a device");
    const size = stat.isBlockDevice() ? deviceSize(stat.rdev) : stat.size;
    const read = (offset, length) => readFully(descriptor, offset, length);
    const source = { name: path, located: true, size, read, close: () => closeSync(descriptor) };
    return write ? Object.assign(source, changes(descriptor, stat.isFile())) : source;
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    throw new SourceError({ kind: kindOf(cause), message: `Could not open '${path}': ${cause.message}`, path }, { cause });
  }
}

/** Linux tells the size of a block device in units of 512 bytes. */
function deviceSize(number) {
  const [major, minor] = [(number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00)];
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, "utf8")) * 512;
}

function readFully(descriptor, offset, length) {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const count = readSync(descriptor, bytes, done, length - done, offset + done);
    if (count === 0) break;
    done += count;
  }
  return bytes.subarray(0, done);
}

function changes(descriptor, isFile) {
  return {
    write(offset, bytes) {
      for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done, bytes.length - done, offset + done);
    },
    flush: () => fsyncSync(descriptor),
    resize(length) {
      if (isFile) ftruncateSync(descriptor, length);
    },
  };
}
