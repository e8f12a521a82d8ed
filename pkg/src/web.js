// Entry for browsers and workers.

import init, { Session } from "../dist/diskette.js";
import { UnsupportedError } from "./errors.js";
import { Image } from "./image.js";
import { toSource } from "./sources.js";

export * from "./errors.js";
export { Image };

let loading;

/** Loads the module once. `open` does it on its own. */
export function load(module) {
  loading ??= init(module ? { module_or_path: module } : undefined);
  return loading;
}

function openPath(path) {
  throw new UnsupportedError({ kind: "unsupported", message: `'${path}' is not an http(s) address; a browser cannot open paths` });
}

/** Opens an image. */
export async function open(input, options = {}) {
  await load();
  const make = (source) => toSource(source, options, openPath);
  return Image.open(Session, await make(input), options, make);
}
