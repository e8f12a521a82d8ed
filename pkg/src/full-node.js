// Entry for reading and writing: Node.js.

import { readFileSync } from "node:fs";

import { Session, initSync } from "../dist/full.js";
import { full } from "./full.js";
import { once } from "./load.js";
import { openPath } from "./paths.js";

export * from "./error-classes.js";
export { MAP_COLUMNS } from "./image.js";
export { Memory } from "./memory.js";
export { WritableImage as Image } from "./writable.js";

/** Loads the module once. Everything else does it on its own. */
export const load = once(async (module) => {
  initSync({ module: module ?? readFileSync(new URL("../dist/full_bg.wasm", import.meta.url)) });
});

export const { open, create, convert, fromStream } = full(Session, load, openPath);
