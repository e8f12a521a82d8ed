// Entry for Node.js.

import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { Session, initSync } from "../dist/diskette.js";
import { SourceError } from "./errors.js";
import { Image } from "./image.js";
import { toSource } from "./sources.js";

export { ClosedError, CorruptImageError, DisketteError, RangeTooLargeError, ReferenceDeniedError, SourceError, UnsupportedError } from "./errors.js";
export { Image, MAP_COLUMNS } from "./image.js";

let loaded = false;

/** Loads the module once. `open` does it on its own. */
export async function load(module) {
  if (loaded) return;
  initSync({ module: module ?? readFileSync(new URL("../dist/diskette_bg.wasm", import.meta.url)) });
  loaded = true;
}

const KINDS = { ENOENT: "not-found", ENOTDIR: "not-found", EACCES: "permission-denied", EPERM: "permission-denied" };

/** A file or block device of this machine. */
function openPath(input) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? fileURLToPath(input) : input;
  let descriptor;
  try {
    // Without O_NONBLOCK opening a FIFO would wait for its writer.
    descriptor = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    const stat = fstatSync(descriptor);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("it is not a regular file or block device");
    const size = stat.isBlockDevice() ? deviceSize(stat.rdev) : stat.size;
    const read = (offset, length) => readFully(descriptor, offset, length);
    return { name: path, located: true, size, read, close: () => closeSync(descriptor) };
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    throw new SourceError({ kind: KINDS[cause.code] ?? "io", message: `Could not open '${path}': ${cause.message}`, path }, { cause });
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

/** Opens an image. */
export async function open(input, options = {}) {
  options.signal?.throwIfAborted();
  await load();
  const make = (input) => toSource(input, options, openPath);
  return Image.open(Session, await make(input), options, make);
}
