// Files and block devices of this machine, for Node.js.

import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, readSync, statSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { SourceError, UnsupportedError, kindOf, textOf } from "./errors.js";

const EXACT = { bigint: true };

/**
 * What this process has open, by the identity of the file: how many readers, and whether there is a writer. Node.js has no
 * locks, but at least one process does not work against itself.
 */
const inUse = new Map();

/** Opens a path; with `write` for changing, with `create` making it if it is not there. */
export function openPath(input, { write = false, create = false } = {}) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? pathOf(input, write) : input;
  let descriptor;
  try {
    // Without O_NONBLOCK opening a FIFO would wait for its writer.
    const flags = (write ? constants.O_RDWR : constants.O_RDONLY) | (create ? constants.O_CREAT : 0) | (constants.O_NONBLOCK ?? 0);
    descriptor = openSync(path, flags);
    const stat = fstatSync(descriptor, EXACT);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("it is not a regular file or block device");
    if (create && !stat.isFile()) throw new Error("a new image is made in a file, not in a device");
    const size = stat.isBlockDevice() ? deviceSize(Number(stat.rdev)) : Number(stat.size);
    const release = use(stat, write, create);
    const check = write || !stat.isFile() ? () => {} : () => checkSame(fstatSync(descriptor, EXACT), stat);
    const read = (offset, length) => {
      const bytes = readFully(descriptor, offset, length);
      // What was read is of the file that was opened only if that has not changed since.
      check();
      return bytes;
    };
    const close = () => (release(), closeSync(descriptor));
    const source = { name: path, located: true, size, read, close };
    return write ? Object.assign(source, changes(descriptor, path, stat)) : source;
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    throw new SourceError({ kind: kindOf(cause), message: `Could not open '${path}': ${cause.message}`, path }, { cause });
  }
}

function pathOf(address, write) {
  try {
    return fileURLToPath(address);
  } catch (cause) {
    const instead = write ? "a path or the address of a file of this machine" : "a path, the address of a file of this machine, or an http(s) address";
    const message = `'${address}' cannot be opened (${textOf(cause)}): give ${instead}`;
    throw new UnsupportedError({ kind: "unsupported", message, path: String(address), operation: "open" }, { cause });
  }
}

/** A file that is only read stays as it was when it was opened. */
function checkSame(now, then) {
  if (now.size === then.size && now.mtimeNs === then.mtimeNs) return;
  const how = now.size === then.size ? "was written to" : `has ${now.size} bytes instead of ${then.size}`;
  throw Object.assign(new Error(`the file ${how} since it was opened; open the image again`), { kind: "io" });
}

/** Linux tells the size of a block device in units of 512 bytes. */
function deviceSize(number) {
  const [major, minor] = [(number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00)];
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, "utf8")) * 512;
}

const identify = (stat) => (stat.isBlockDevice() ? `device ${stat.rdev}` : `${stat.dev}:${stat.ino}`);

function busy(message) {
  return Object.assign(new Error(message), { kind: "busy" });
}

/** Counts a user of a file, unless another one is in the way; answers with what ends the use. */
function use(stat, write, create) {
  const identity = identify(stat);
  const users = inUse.get(identity) ?? { readers: 0, writer: false };
  if (write && users.writer) throw busy("it is open for writing already; close that image first");
  if (create && users.readers > 0) throw busy("an image in it is being read; close that first");
  if (write) users.writer = true;
  else users.readers++;
  inUse.set(identity, users);
  let ended = false;
  return () => {
    if (ended) return;
    ended = true;
    if (write) users.writer = false;
    else users.readers--;
    if (!users.writer && users.readers === 0) inUse.delete(identity);
  };
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

/** Changes to a file, which stop when somebody else has changed it. */
function changes(descriptor, path, opened) {
  const isFile = opened.isFile();
  const identity = identify(opened);
  const look = () => fstatSync(descriptor, EXACT);
  let { size, mtimeNs } = opened;
  /** Whether something was written that may not have its place and time on the disk yet. */
  let dirty = false;

  const open = "open the image again, and check it";
  function checkSize(now) {
    if (now.size !== size) throw busy(`another program changed its length from ${size} to ${now.size} bytes; ${open}`);
  }

  /** Between a flush and the next change nothing changes but by others. Network file systems set times late, so not after. */
  function begin() {
    if (!isFile || dirty) return;
    const now = look();
    checkSize(now);
    if (now.mtimeNs !== mtimeNs) throw busy(`another program wrote to it; ${open}`);
    dirty = true;
  }

  /** What is written has to be where it will be looked for. */
  function checkPlace() {
    let there;
    try {
      there = statSync(path, EXACT);
    } catch (cause) {
      throw Object.assign(new Error(`its name has gone while it was open (${cause.message}), and with it what was written`), { kind: "not-found" });
    }
    if (identify(there) !== identity) throw busy("another file has taken its place while it was open; what was written is not in that");
  }

  return {
    write(offset, bytes) {
      begin();
      let done = 0;
      try {
        while (done < bytes.length) done += writeSync(descriptor, bytes, done, bytes.length - done, offset + done);
      } finally {
        const end = BigInt(offset + done);
        if (done > 0 && end > size) size = end;
      }
    },
    flush() {
      if (isFile && dirty) {
        checkPlace();
        checkSize(look());
      }
      fsyncSync(descriptor);
      if (dirty) ({ mtimeNs } = look());
      dirty = false;
    },
    resize(length) {
      if (!isFile) return;
      begin();
      ftruncateSync(descriptor, length);
      size = BigInt(length);
    },
  };
}
