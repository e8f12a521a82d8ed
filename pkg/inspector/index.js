// Entry of the browser inspector: reading and writing, and images taken apart. It is not in the package.

import init, { Session } from "../dist/inspector.js";
import { checkedNumber, closed } from "../src/errors.js";
import { full } from "../src/full.js";
import { once } from "../src/load.js";
import { noPaths } from "../src/options.js";
import { Pump } from "../src/pump.js";
import { toSource } from "../src/sources.js";
import { WritableImage } from "../src/writable.js";

export * from "../src/error-classes.js";
export { MAP_COLUMNS } from "../src/image.js";
export { Memory } from "../src/memory.js";

/** Numbers per region in a page. */
export const REGION_COLUMNS = 3;
const PARTS = 256;
const REGIONS_PER_PAGE = 65_536;

/** Loads the module once. Everything else does it on its own; a failed attempt may be repeated. */
export const load = once((module) => init(module ? { module_or_path: module } : undefined));

/** An open image that can be taken apart. */
export class InspectedImage extends WritableImage {
  #pump;

  constructor(pump, options) {
    super(pump, options);
    this.#pump = pump;
  }

  /** The parts of the part at `path`: `count` of them from `from` on. */
  structure(path = [], { from = 0, count = PARTS, signal } = {}) {
    return this.#pump.run((session) => session.structure(Float64Array.from(path), from, count), signal);
  }

  /** What is where in the image's file, in pages. */
  async *regions({ signal } = {}) {
    await this.#pump.run((session) => session.regions(), signal);
    const kinds = Session.regionKinds();
    for (let at = 0; ; ) {
      signal?.throwIfAborted();
      const columns = this.#pump.call((session) => session.regionRuns(at, REGIONS_PER_PAGE));
      if (columns.length === 0) return;
      at = columns.at(-3) + columns.at(-2);
      yield { columns, kinds, end: at };
    }
  }
}

/** The bytes of an image that need not be good enough to be opened. */
class InspectedFile extends InspectedImage {
  #pump;
  #format;

  constructor(pump, { format }) {
    super(pump, {});
    this.#pump = pump;
    this.#format = format;
  }

  /** There is no disk. */
  measure() {}

  async structure(path = [], { from = 0, count = PARTS, signal } = {}) {
    const [file] = this.files;
    if (!file) throw closed();
    const { name, size } = file;
    const start = (session) => session.structureOf(name, size, this.#format, Float64Array.from(path), from, count);
    return this.#pump.run(start, signal);
  }
}

/** Takes a file apart without opening it as an image. */
export async function look(input, { format, ...options } = {}) {
  options.signal?.throwIfAborted();
  await load();
  const source = await toSource(input, options, noPaths);
  const pump = new Pump(new Session(), { ...source, name: String(source.name), size: checkedNumber(source.size, `the size of ${source.name}`) }, () => undefined);
  return new InspectedFile(pump, { format });
}

export const { open, create, convert, fromStream } = full(Session, load, noPaths, InspectedImage);
