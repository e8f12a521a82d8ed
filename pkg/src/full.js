// What the entries for reading and writing have in common.

import { abortable } from "./abortable.js";
import { converters } from "./convert.js";
import { createImage } from "./create.js";
import { ReferenceDeniedError, typed } from "./errors.js";
import { checkPassphrase } from "./options.js";
import { toSource } from "./sources.js";
import { toTarget } from "./targets.js";
import { WritableImage } from "./writable.js";

/** `load` gets the module ready; `openPath` opens paths; images are of the class `Opened`. */
export function full(Session, load, openPath, Opened = WritableImage) {
  const make = (options) => (input, writable) =>
    writable ? toTarget(input, {}, openPath) : toSource(input, options, openPath);

  /** Opens an image, with `writable` for changing. */
  async function open(input, options = {}) {
    options.signal?.throwIfAborted();
    checkPassphrase(options.passphrase, "open");
    await load();
    const source = make(options);
    const file = await abortable(source(input, options.writable), options.signal, (late) => late.close?.());
    return Opened.open(Session, file, options, source);
  }

  /** Makes an image in a target and opens it for writing. */
  const create = (target, options = {}) => createWith(target, options, (file) => file.show?.());

  /** `made` gets the target once there is an image in it; where it shows nothing, that shows when it is closed. */
  async function createWith(target, options, made = () => {}) {
    options.signal?.throwIfAborted();
    checkPassphrase(options.passphrase, "create");
    await load();
    if (options.backingFile && !options.onOpen) {
      const message = `'${options.backingFile}' (backing) was not opened: an image over another one is made with an onOpen that opens that`;
      throw new ReferenceDeniedError({ kind: "denied", message, operation: "create" });
    }
    // A target that never answers is not waited for once nobody wants the image.
    return abortable(makeIn(target, options, made), options.signal, (image) => image.abandon());
  }

  async function makeIn(target, options, made) {
    const file = await toTarget(target, { create: true, signal: options.signal, careful: Boolean(options.backingFile) }, openPath);
    await createImage(Session, file, options);
    const { format = "qcow2", passphrase, budgets, signal } = options;
    // What a new image is based on is opened by whoever opens it again.
    const based = options.backingFile ? { onOpen: options.onOpen } : {};
    const image = await Opened.open(Session, file, { format, passphrase, budgets, signal, writable: true, ...based }, make(options));
    try {
      signal?.throwIfAborted();
      await typed(() => made(file), String(file.name), "could not be written");
    } catch (error) {
      await image.abandon().catch(() => {});
      throw error;
    }
    return image;
  }

  return { open, create, ...converters(createWith) };
}
