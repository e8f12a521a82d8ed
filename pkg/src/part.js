// A file beside another one, which is to take its place.

import { randomBytes } from "node:crypto";
import { closeSync, constants, fchmodSync, fchownSync, fstatSync, fsyncSync, lstatSync, openSync, readFileSync, renameSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";

/** Those that are there. Who ends takes them along. */
const parts = new Set();
let watching = false;

/**
 * Makes a file beside a place, with the owner and mode of the file that is there, if one is (`old`). `name()` is what it is
 * called: the place once `show()` has put it there; `drop()` removes it if it is not, and `keep()` leaves it where it is for
 * good. Where none can be made, or would not be what the old one was, the file is the one that is there.
 */
export function openPart(place, old) {
  const there = () => ({
    descriptor: openSync(place, constants.O_RDWR | constants.O_CREAT | (constants.O_NONBLOCK ?? 0)),
    name: () => place,
    show() {},
    drop() {},
    keep() {},
  });
  // A file of several names keeps them all, one that others mounted there stays there, and a link to nothing leads to a file.
  if (old ? old.nlink > 1n || isMounted(place) : lstatSync(place, { throwIfNoEntry: false })) return there();
  let name = join(dirname(place), `.diskette-${randomBytes(6).toString("hex")}.part`);
  let descriptor;
  const drop = () => {
    if (name !== place) remove(name);
  };
  try {
    descriptor = openSync(name, "wx+");
    if (!watching) process.once("exit", () => parts.forEach(remove));
    watching = true;
    parts.add(name);
    if (old) beLike(descriptor, old);
  } catch (error) {
    if (descriptor !== undefined) {
      closeSync(descriptor);
      drop();
    }
    if (!["EACCES", "EPERM", "EROFS"].includes(error.code)) throw error;
    return there();
  }
  return {
    descriptor,
    name: () => name,
    show() {
      if (name === place) return;
      renameSync(name, place);
      parts.delete(name);
      name = place;
      syncFolder(dirname(place));
    },
    drop,
    keep: () => void parts.delete(name),
  };
}

/** Gives a file the owner and mode of another. */
function beLike(descriptor, { uid, gid, mode }) {
  const own = fstatSync(descriptor, { bigint: true });
  if (own.uid !== uid || own.gid !== gid) fchownSync(descriptor, Number(uid), Number(gid));
  fchmodSync(descriptor, Number(mode & 0o7777n));
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
