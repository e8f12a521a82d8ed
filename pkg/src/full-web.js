// Entry for reading and writing: browsers and workers.

import init, { Session } from "../dist/full.js";
import { full } from "./full.js";
import { once } from "./load.js";
import { noPaths } from "./options.js";

export * from "./error-classes.js";
export { MAP_COLUMNS } from "./image.js";
export { Memory } from "./memory.js";
export { WritableImage as Image } from "./writable.js";

/** Loads the module once. Everything else does it on its own; a failed attempt may be repeated. */
export const load = once((module) => init(module ? { module_or_path: module } : undefined));

export const { open, create, convert, fromStream } = full(Session, load, noPaths);
