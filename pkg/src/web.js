// Entry for browsers and workers.

import init, { Session } from "../dist/diskette.js";
import { abortable } from "./abortable.js";
import { Image } from "./image.js";
import { once } from "./load.js";
import { noPaths, refuseFull } from "./options.js";
import { toSource } from "./sources.js";

export * from "./error-classes.js";
export { Image, MAP_COLUMNS } from "./image.js";

/** Loads the module once. `open` does it on its own; a failed attempt may be repeated. */
export const load = once((module) => init(module ? { module_or_path: module } : undefined));

/** Opens an image. */
export async function open(input, options = {}) {
  options.signal?.throwIfAborted();
  refuseFull(options);
  const [source, loaded] = await Promise.allSettled([abortable(toSource(input, options, noPaths), options.signal, (late) => late.close?.()), load()]);
  if (source.status === "rejected") throw source.reason;
  if (loaded.status === "rejected") {
    await source.value.close?.();
    throw loaded.reason;
  }
  return Image.open(Session, source.value, options, (answer) => toSource(answer, options, noPaths));
}
