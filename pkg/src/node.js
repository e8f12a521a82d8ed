// Entry for Node.js.

import { closeSync, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { Session, initSync } from "../dist/diskette.js";
import { SourceError } from "./errors.js";
import { Image } from "./image.js";
import { toSource } from "./sources.js";

export * from "./errors.js";
export { Image };

let loaded = false;

/** Loads the module once. `open` does it on its own. */
export async function load() {
  if (!loaded) initSync({ module: readFileSync(new URL("../dist/diskette_bg.wasm", import.meta.url)) });
  loaded = true;
}

function openPath(input) {
  const path = input instanceof URL || /^file:\/\//.test(input) ? fileURLToPath(input) : input;
  let descriptor;
  try {
    descriptor = openSync(path, "r");
    const stat = fstatSync(descriptor);
    if (!stat.isFile() && !stat.isBlockDevice()) throw new Error("not a regular file or block device");
    return {
      name: path,
      size: stat.size,
      read(offset, length) {
        const bytes = new Uint8Array(length);
        let done = 0;
        while (done < length) {
          const count = readSync(descriptor, bytes, done, length - done, offset + done);
          if (count === 0) break;
          done += count;
        }
        return bytes.subarray(0, done);
      },
      close: () => closeSync(descriptor),
    };
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    const kind = cause.code === "ENOENT" ? "not-found" : "io";
    throw new SourceError({ kind, message: `Could not open '${path}': ${cause.message}`, path }, { cause });
  }
}

/** Opens an image. */
export async function open(input, options = {}) {
  await load();
  const make = async (source) => toSource(source, options, openPath);
  return Image.open(Session, await make(input), options, make);
}
