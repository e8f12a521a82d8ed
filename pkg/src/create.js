// Making new images.

import { CorruptImageError, UnsupportedError, checkedNumber } from "./errors.js";
import { createOptions, ourNames } from "./options.js";
import { Pump } from "./pump.js";

/** Makes an image in a target, whatever that held before. */
export async function createImage(Session, target, options) {
  const { format = "qcow2", size, passphrase, signal } = options;
  const name = String(target.name);
  const pump = new Pump(new Session(), Object.assign(target, { name }), () => undefined);
  try {
    const bytes = checkedNumber(size, "size");
    const pairs = createOptions({ ...options, format });
    if (typeof format !== "string" || !pump.call((session) => session.knows(format))) {
      throw new UnsupportedError({ kind: "unsupported", message: `the format '${String(format)}' is not known here`, path: name, operation: "create" });
    }
    if (format === "luks" && passphrase === undefined) {
      throw new UnsupportedError({ kind: "invalid", message: "a LUKS image is made with a passphrase", path: name, operation: "create" });
    }
    checkedNumber(target.size, `the size of '${name}'`);
    // The core finds out what is wrong with the options before it asks for a change, and the first change is this one.
    const resize = target.resize;
    let emptied = false;
    for (const verb of ["write", "zero", "resize"]) {
      const change = target[verb];
      if (change) target[verb] = async (...args) => (await empty(), change.apply(target, args));
    }
    async function empty() {
      if (emptied) return;
      if (target.size > 0) await resize.call(target, 0);
      target.size = 0;
      emptied = true;
    }
    await pump.run((session) => session.create(name, 0, format, bytes, pairs, passphrase), signal);
    if (!emptied) await empty();
  } catch (error) {
    await target.abort?.().catch(() => {});
    if (!target.abort) await target.close?.();
    // There is no image yet that could be corrupt: it is the options that make none.
    if (!(error instanceof CorruptImageError)) throw error;
    throw new UnsupportedError({ ...error, message: ourNames(error.message), operation: "create" }, { cause: error.cause });
  } finally {
    pump.detach();
  }
}
