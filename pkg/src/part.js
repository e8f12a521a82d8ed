// A file beside another one, which is to take its place.

import { randomBytes } from "node:crypto";
import {
  closeSync, constants, fchmodSync, fchownSync, fstatSync, fsyncSync, linkSync, lstatSync, openSync, readFileSync, realpathSync, renameSync,
  statSync, unlinkSync,
} from "node:fs";
import { dirname, join } from "node:path";

const EXACT = { bigint: true };
/** What a system answers where no file can be made, or not one like the other. */
const CANNOT = ["EACCES", "EPERM", "EROFS", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"];

/** Those that are there. Who ends takes them along. */
const parts = new Set();
let watching = false;

/**
 * Makes a file beside a place, with the owner and mode of the file that is there, if one is (`old`). `name()` is what it is
 * called: the place once `show()` has put it there; `drop()` removes it if it is not, and `keep()` leaves it where it is for
 * good. Where none can be made, or would not be what the old one was, the file is the one that is there.
 */
export function openPart(place, old) {
  // A file of several names keeps them all, one that others mounted there stays there, and a link to nothing leads to a file.
  if (old ? old.nlink > 1n || isMounted(place) : lstatSync(place, { throwIfNoEntry: false })?.isSymbolicLink()) return inPlace(place, old);
  let name = join(dirname(place), `.diskette-${randomBytes(6).toString("hex")}.part`);
  let descriptor;
  const drop = () => {
    if (name !== place) remove(name);
  };
  try {
    // Nobody gets to read it who could not read the old one.
    descriptor = openSync(name, "wx+", old ? 0o600 : 0o666);
    if (!watching) process.once("exit", () => parts.forEach(remove));
    watching = true;
    parts.add(name);
    if (old) beLike(descriptor, old);
  } catch (error) {
    if (descriptor !== undefined) {
      closeSync(descriptor);
      drop();
    }
    if (CANNOT.includes(error.code)) return inPlace(place, old);
    throw Object.assign(new Error(error.message.replaceAll(name, place), { cause: error }), { code: error.code });
  }
  return {
    descriptor,
    name: () => name,
    show() {
      if (name === place) return;
      if (old) replace(name, place, old);
      else putWhereNothingIs(name, place);
      parts.delete(name);
      name = place;
      syncFolder(dirname(place));
    },
    drop,
    keep: () => void parts.delete(name),
  };
}

/** The file that is there, or one that is made where a link leads to. */
function inPlace(place, old) {
  const descriptor = openSync(place, constants.O_RDWR | constants.O_CREAT | (constants.O_NONBLOCK ?? 0));
  const stat = fstatSync(descriptor, EXACT);
  let isNew = !old && stat.size === 0n;
  const stay = () => void (isNew = false);
  return {
    descriptor,
    name: () => place,
    show: stay,
    drop() {
      // Others may have put something there meanwhile.
      const now = statSync(place, { ...EXACT, throwIfNoEntry: false });
      if (isNew && now?.dev === stat.dev && now.ino === stat.ino) remove(realpathSync(place));
    },
    keep: stay,
  };
}

/** Takes the place of a file that still is what it was. */
function replace(name, place, old) {
  const now = statSync(place, { ...EXACT, throwIfNoEntry: false });
  const same = now && ["dev", "ino", "size", "mtimeNs"].every((key) => now[key] === old[key]);
  if (!same) throw taken(now ? "another program changed what is there, or put another file in its place" : "what was there has gone");
  renameSync(name, place);
}

function putWhereNothingIs(name, place) {
  try {
    linkSync(name, place);
  } catch {
    // Not every file system has files of two names.
    if (lstatSync(place, { throwIfNoEntry: false })) throw taken("something is there now that was not when it was begun");
    return renameSync(name, place);
  }
  remove(name);
}

const taken = (message) => Object.assign(new Error(message), { kind: "busy" });

/** Gives a file the owner and mode of another. */
function beLike(descriptor, { uid, gid, mode }) {
  const own = fstatSync(descriptor, EXACT);
  if (own.uid !== uid || own.gid !== gid) fchownSync(descriptor, Number(uid), Number(gid));
  if (own.mode !== mode) fchmodSync(descriptor, Number(mode & 0o7777n));
}

/** Whether a file is mounted by itself, as in containers. */
function isMounted(place) {
  let table;
  try {
    table = readFileSync("/proc/self/mountinfo", "utf8");
  } catch {
    return false;
  }
  const decoded = (text) => text.replaceAll(/\\(\d{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)));
  return table.split("\n").some((line) => decoded(line.split(" ")[4] ?? "") === place);
}

function remove(part) {
  parts.delete(part);
  try {
    unlinkSync(part);
  } catch {
    // It has gone already, or will stay.
  }
}

/** Puts a name where a power cut does not reach it, on systems that do that for folders. */
function syncFolder(folder) {
  let descriptor;
  try {
    descriptor = openSync(folder, constants.O_RDONLY);
    fsyncSync(descriptor);
  } catch {
    // It comes with the system's next flush.
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}
