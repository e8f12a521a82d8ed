// Entry for Node.js.

import { readFileSync } from "node:fs";

import { Session, initSync } from "../dist/diskette.js";
import { abortable } from "./abortable.js";
import { Image } from "./image.js";
import { once } from "./load.js";
import { refuseFull } from "./options.js";
import { openPath } from "./paths.js";
import { toSource } from "./sources.js";

export * from "./error-classes.js";
export { Image, MAP_COLUMNS } from "./image.js";

/** Loads the module once. `open` does it on its own. */
export const load = once(async (module) => {
  initSync({ module: module ?? readFileSync(new URL("../dist/diskette_bg.wasm", import.meta.url)) });
});

/** Opens an image. */
export async function open(input, options = {}) {
  options.signal?.throwIfAborted();
  refuseFull(options);
  await load();
  const make = (input) => toSource(input, options, openPath);
  const source = await abortable(make(input), options.signal, (late) => late.close?.());
  return Image.open(Session, source, options, make);
}
