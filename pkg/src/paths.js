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
export function openPath(input, { write = false, create = false, ...how } = {}) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? pathOf(input, write) : input;
  try {
    return create ? openNew(path, how) : openThere(path, write);
  } catch (cause) {
    throw new SourceError({ kind: kindOf(cause), message: `Could not open '${path}': ${cause.message}`, path }, { cause });
  }
}

function openThere(path, write) {
  const place = resolve(path);
  // Without O_NONBLOCK opening a FIFO would wait for its writer.
  const file = handle(openSync(path, (write ? constants.O_RDWR : constants.O_RDONLY) | (constants.O_NONBLOCK ?? 0)));
  let own;
  const close = () => {
    own?.end();
    file.close();
  };
  try {
    const stat = fstatSync(file.number, EXACT);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("it is not a regular file or block device");
    own = use(identify(stat), { write });
    if (!write) {
      const check = stat.isFile() ? () => checkSame(fstatSync(file.number, EXACT), stat) : () => {};
      return { ...source(path, file, stat, check), close };
    }
    const { check, checkPlace, ...verbs } = changes(file, () => place, stat);
    return { ...source(path, file, stat, check), ...verbs, close: () => file.isOpen && closeWith(path, checkPlace, close), abort: async () => close() };
  } catch (error) {
    close();
    throw error;
  }
}

/** An open file by its number, which is not used any more once it was closed: it may be another file's then. */
function handle(number) {
  let isOpen = true;
  return {
    get isOpen() {
      return isOpen;
    },
    get number() {
      if (!isOpen) throw Object.assign(new Error("it was closed"), { kind: "closed" });
      return number;
    },
    close() {
      if (!isOpen) return;
      isOpen = false;
      closeSync(number);
    },
  };
}

/** What is read of an open file; `check` says afterwards whether it still is what was opened. */
function source(path, file, stat, check) {
  const size = stat.isBlockDevice() ? deviceSize(Number(stat.rdev)) : Number(stat.size);
  const read = (offset, length) => {
    const bytes = readFully(file.number, offset, length);
    check();
    return bytes;
  };
  return { name: path, located: true, size, read };
}

/** Closes a file, and says afterwards what was wrong with it before. */
function closeWith(path, check, close) {
  try {
    try {
      check();
    } finally {
      close();
    }
  } catch (cause) {
    throw new SourceError({ kind: kindOf(cause), message: cause.message, path, operation: "close" }, { cause });
  }
}

/**
 * A new file for an image, which takes the place of what has its name when it is shown or closed. Until then, and when it is
 * aborted or closed after the signal came, that is as it was, unless the image has to be made in the file that is there. With
 * `careful` that is refused where there is something in it.
 */
function openNew(path, { signal, careful }) {
  const old = lookAt(path);
  const place = old ? realpathSync(path) : resolve(path);
  const uses = [];
  const reserve = (identity) => {
    const own = use(identity, { write: true, create: true });
    uses.push(own);
    return own;
  };
  let part;
  let file;
  const end = () => {
    for (const { end } of uses) end();
    file?.close();
  };
  try {
    reserve(place);
    const before = old && reserve(identify(old));
    part = openPart(place, old);
    file = handle(part.descriptor);
    const { name, show, drop, keep } = part;
    const isApart = name() !== place;
    if (careful && !isApart && old?.size > 0n) {
      throw new Error("what is in it would be lost if the backing file cannot be opened, for no file can be made beside it; empty it first");
    }
    const stat = fstatSync(file.number, EXACT);
    if (isApart || !old) reserve(identify(stat));
    const { check, checkPlace, ...verbs } = changes(file, name, stat);
    const finish = () => {
      show();
      for (const { made } of uses) made();
      // What was there has gone, and another file may be given its identity.
      if (isApart) before?.end();
    };
    const close = () => {
      if (name() !== place && signal?.aborted) return drop();
      try {
        finish();
      } catch (cause) {
        // It is whole, and perhaps all that there is of it.
        keep();
        const error = new Error(`what was written is in '${name()}': it could not take its place (${cause.message})`, { cause });
        throw Object.assign(error, { kind: kindOf(cause) });
      }
      checkPlace();
    };
    return {
      ...source(path, file, stat, check),
      ...verbs,
      show: finish,
      close: () => file.isOpen && closeWith(path, close, end),
      async abort() {
        if (!file.isOpen) return;
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
  if (/[/\\]$/.test(path)) throw new Error("it is the name of a folder");
  const there = statSync(path, { ...EXACT, throwIfNoEntry: false });
  if (!there) return null;
  if (!there.isFile()) throw new Error("it is not a regular file, and a new image is made in one");
  const descriptor = openSync(path, constants.O_RDWR | (constants.O_NONBLOCK ?? 0));
  try {
    return fstatSync(descriptor, EXACT);
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

/**
 * Counts a user of a file, unless another one is in the way. `end()` ends the use; while an image is made in it (`create`),
 * nobody reads it before `made()`.
 */
function use(identity, { write = false, create = false }) {
  const users = inUse.get(identity) ?? { readers: 0, writer: false, isMade: false };
  if (write && users.writer) throw busy("it is open for writing already; close that image first");
  if (create && users.readers > 0) throw busy("an image in it is being read; close that first");
  if (!write && users.isMade) throw busy("an image is being made in its place; wait for that");
  if (write) users.writer = true;
  else users.readers++;
  users.isMade = create;
  inUse.set(identity, users);
  let ended = false;
  return {
    made: () => void (ended || (users.isMade = false)),
    end() {
      if (ended) return;
      ended = true;
      if (write) [users.writer, users.isMade] = [false, false];
      else users.readers--;
      if (!users.writer && users.readers === 0) inUse.delete(identity);
    },
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
function changes(file, path, opened) {
  const isFile = opened.isFile();
  const isPrompt = isFile && setsTimesAtOnce(path());
  const identity = identify(opened);
  const look = () => fstatSync(file.number, EXACT);
  let { size, mtimeNs } = opened;
  /** Whether something was written that may not have its place and time on the disk yet. */
  let dirty = false;
  /** Whether anything was. */
  let written = false;

  /** What lies between our changes is the work of others. Network file systems set times late: there only a flush settles it. */
  function checkOthers() {
    const open = "open the image again, and check it";
    const now = look();
    if (now.size !== size) throw busy(`another program changed its length from ${size} to ${now.size} bytes; ${open}`);
    if (now.mtimeNs !== mtimeNs && (isPrompt || !dirty)) throw busy(`another program wrote to it; ${open}`);
  }

  function check() {
    if (isFile && (isPrompt || !dirty)) checkOthers();
  }

  function change(work) {
    if (!isFile) return work();
    check();
    dirty = true;
    written = true;
    try {
      return work();
    } finally {
      if (isPrompt) ({ mtimeNs } = look());
    }
  }

  /** What has the name of this file, as far as that can be told. */
  function there() {
    try {
      return statSync(path(), EXACT);
    } catch (error) {
      return error.code === "ENOENT" || error.code === "ENOTDIR" ? null : opened;
    }
  }

  /** What is written to a file without a name goes with it. */
  function checkNamed() {
    if (opened.nlink === 0n || look().nlink > 0n) return;
    if (there()) throw busy("another file has taken its place while it was open; what was written is not in that");
    throw Object.assign(new Error("it was removed while it was open, and with it what was written"), { kind: "not-found" });
  }

  /** What was written has to be where it will be looked for. */
  function checkPlace() {
    if (!isFile || !written) return;
    checkNamed();
    const now = there();
    if (now && identify(now) === identity) return;
    const message = `it was given another name while it was open, and what was written is in it there${now ? ", not in the file that has its name now" : ""}`;
    throw Object.assign(new Error(message), { kind: now ? "busy" : "not-found" });
  }

  return {
    check,
    checkPlace,
    write: (offset, bytes) =>
      change(() => {
        let done = 0;
        try {
          while (done < bytes.length) done += writeSync(file.number, bytes, done, bytes.length - done, offset + done);
        } finally {
          const end = BigInt(offset + done);
          if (done > 0 && end > size) size = end;
        }
      }),
    flush() {
      if (isFile) {
        if (dirty) checkNamed();
        checkOthers();
      }
      fsyncSync(file.number);
      if (!isPrompt) ({ mtimeNs } = look());
      dirty = false;
    },
    resize(length) {
      if (!isFile) return;
      change(() => ftruncateSync(file.number, length));
      size = BigInt(length);
    },
  };
}
