// Files and block devices of this machine, for Node.js.

import fs, { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, readSync, realpathSync, statSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { SourceError, UnsupportedError, kindOf, textOf } from "./errors.js";
import { openPart } from "./part.js";

const EXACT = { bigint: true };

/**
 * What this thread has open, by the identity of the file: how many readers, and whether there is a writer. Node.js has no
 * locks, but at least one thread does not work against itself.
 */
const inUse = new Map();

/** Opens a path; with `write` for changing, with `create` for a new image in place of what is there, if anything is. */
export function openPath(input, { write = false, create = false } = {}) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? pathOf(input, write) : input;
  try {
    return create ? openNew(path) : openThere(path, write);
  } catch (cause) {
    throw new SourceError({ kind: kindOf(cause), message: `Could not open '${path}': ${cause.message}`, path }, { cause });
  }
}

function openThere(path, write) {
  // Without O_NONBLOCK opening a FIFO would wait for its writer.
  const descriptor = openSync(path, (write ? constants.O_RDWR : constants.O_RDONLY) | (constants.O_NONBLOCK ?? 0));
  try {
    const stat = fstatSync(descriptor, EXACT);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("it is not a regular file or block device");
    const release = use(identify(stat), { write });
    const close = () => (release(), closeSync(descriptor));
    if (write) return { ...source(path, descriptor, stat), ...changes(descriptor, () => path, stat), close };
    const check = stat.isFile() ? () => checkSame(fstatSync(descriptor, EXACT), stat) : undefined;
    return { ...source(path, descriptor, stat, check), close };
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

/** What is read of an open file; `check` says afterwards whether it still is what was opened. */
function source(path, descriptor, stat, check = () => {}) {
  const size = stat.isBlockDevice() ? deviceSize(Number(stat.rdev)) : Number(stat.size);
  const read = (offset, length) => {
    const bytes = readFully(descriptor, offset, length);
    check();
    return bytes;
  };
  return { name: path, located: true, size, read };
}

/**
 * A new file for an image, which takes the place of what has its name when it is shown or closed. Until then, and when it is
 * aborted, that is as it was, unless the image has to be made in the file that is there.
 */
function openNew(path) {
  const old = lookAt(path);
  const place = old ? realpathSync(path) : resolve(path);
  const releases = [use(place, { write: true, create: true })];
  let part;
  let isOpen = true;
  const end = () => {
    isOpen = false;
    for (const release of releases) release();
    if (part) closeSync(part.descriptor);
  };
  try {
    if (old) releases.push(use(identify(old), { write: true, create: true }));
    part = openPart(place, old);
    const { descriptor, name, show, drop, keep } = part;
    const stat = fstatSync(descriptor, EXACT);
    if (name() !== place) releases.push(use(identify(stat), { write: true }));
    return {
      ...source(path, descriptor, stat),
      ...changes(descriptor, name, stat),
      show,
      close() {
        if (!isOpen) return;
        try {
          show();
        } catch (cause) {
          // It is whole, and perhaps all that there is of it.
          keep();
          const message = `what was written is in '${name()}': it could not take its place (${cause.message})`;
          throw new SourceError({ kind: kindOf(cause), message, path, operation: "close" }, { cause });
        } finally {
          end();
        }
      },
      async abort() {
        if (!isOpen) return;
        drop();
        end();
      },
    };
  } catch (error) {
    part?.drop();
    end();
    throw error;
  }
}

/** What is at a path and can be written, if there is anything. */
function lookAt(path) {
  let descriptor;
  try {
    descriptor = openSync(path, constants.O_RDWR | (constants.O_NONBLOCK ?? 0));
  } catch (error) {
    if (error.code === "ENOENT") return null;
    throw error;
  }
  try {
    const stat = fstatSync(descriptor, EXACT);
    if (!stat.isFile()) throw new Error("it is not a regular file, and a new image is made in one");
    return stat;
  } finally {
    closeSync(descriptor);
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
function use(identity, { write = false, create = false }) {
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

/** File systems (`man 2 statfs`) that set the time of a file before a write to it ends: ext4, XFS, Btrfs, F2FS, tmpfs, overlayfs. */
const PROMPT = [0xef53, 0x58465342, 0x9123683e, 0xf2f52010, 0x01021994, 0x794c7630];

function setsTimesAtOnce(path) {
  try {
    return PROMPT.includes(fs.statfsSync(path).type);
  } catch {
    // Not every host tells, and some do not have the function.
    return false;
  }
}

/** Changes to a file, which stop when somebody else has changed it. `path` answers with the name that it has. */
function changes(descriptor, path, opened) {
  const isFile = opened.isFile();
  const isPrompt = isFile && setsTimesAtOnce(path());
  const identity = identify(opened);
  const look = () => fstatSync(descriptor, EXACT);
  let { size, mtimeNs } = opened;
  /** Whether something was written that may not have its place and time on the disk yet. */
  let dirty = false;

  /** What lies between our changes is the work of others. Network file systems set times late: there only a flush settles it. */
  function checkOthers() {
    const open = "open the image again, and check it";
    const now = look();
    if (now.size !== size) throw busy(`another program changed its length from ${size} to ${now.size} bytes; ${open}`);
    if (now.mtimeNs !== mtimeNs && (isPrompt || !dirty)) throw busy(`another program wrote to it; ${open}`);
  }

  function change(work) {
    if (!isFile) return work();
    if (isPrompt || !dirty) checkOthers();
    dirty = true;
    try {
      return work();
    } finally {
      if (isPrompt) ({ mtimeNs } = look());
    }
  }

  /** What is written has to be where it will be looked for. */
  function checkPlace() {
    let there;
    try {
      there = statSync(path(), EXACT);
    } catch (cause) {
      throw Object.assign(new Error(`its name has gone while it was open (${cause.message}), and with it what was written`), { kind: "not-found" });
    }
    if (identify(there) !== identity) throw busy("another file has taken its place while it was open; what was written is not in that");
  }

  return {
    write: (offset, bytes) =>
      change(() => {
        let done = 0;
        try {
          while (done < bytes.length) done += writeSync(descriptor, bytes, done, bytes.length - done, offset + done);
        } finally {
          const end = BigInt(offset + done);
          if (done > 0 && end > size) size = end;
        }
      }),
    flush() {
      if (isFile && dirty) {
        checkPlace();
        checkOthers();
      }
      fsyncSync(descriptor);
      if (dirty) ({ mtimeNs } = look());
      dirty = false;
    },
    resize(length) {
      if (!isFile) return;
      change(() => ftruncateSync(descriptor, length));
      size = BigInt(length);
    },
  };
}
