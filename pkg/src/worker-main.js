// What runs in a worker: the package, called by messages.

import { hasThreads, packError, unpackError } from "./messages.js";

const ready = hasThreads ? import("./full-node.js") : import("./full-web.js");

/** What takes a signal, among the options that come last. */
const STOPPABLE = ["check", "discard", "flush", "map", "read", "readBitmap", "readFile", "write", "zero"];

const images = new Map();
const running = new Map();
const calls = new Map();
let next = 0;
let post;

/** Asks the page's side something, on behalf of request `id`. */
function callBack(id, name, ...args) {
  return new Promise((resolve, reject) => {
    const call = ++next;
    calls.set(call, { resolve, reject });
    post({ id, call, name, args });
  });
}

async function perform(id, verb, [first, ...args], signal) {
  const { open, create, convert } = await ready;
  if (verb === "open" || verb === "create") {
    const [options, asks] = args;
    const onOpen = asks ? (reference) => callBack(id, "onOpen", reference) : undefined;
    const made = await (verb === "open" ? open : create)(first, { ...options, onOpen, signal });
    const image = ++next;
    images.set(image, made);
    return { image, size: made.size, writable: made.writable };
  }
  const image = images.get(first);
  switch (verb) {
    case "close":
    case "abandon":
      images.delete(first);
      return image?.[verb]();
    case "files":
      return image.files;
    case "mapPage":
      return (await image.mapPages({ ...args[0], signal }).next()).value;
    case "resize":
      await image.resize(...args);
      return image.size;
    case "snapshots.apply":
      await image.snapshots.apply(...args);
      return image.size;
    case "convert":
      return convert(image, args[0], { ...args[1], signal, onProgress: (progress) => callBack(id, "onProgress", progress) });
    default: {
      if (STOPPABLE.includes(verb)) return image[verb](...args.slice(0, -1), { ...args.at(-1), signal });
      const [scope, name] = verb.split(".");
      return name ? image.snapshots[name](...args) : image[scope](...args);
    }
  }
}

async function receive({ id, verb, args, abort, call, value, error, end }) {
  if (end) return process.exit();
  if (abort !== undefined) return running.get(abort)?.abort();
  if (call !== undefined) {
    const waiting = calls.get(call);
    calls.delete(call);
    return error ? waiting?.reject(unpackError(error)) : waiting?.resolve(value);
  }
  const stop = new AbortController();
  running.set(id, stop);
  try {
    let value = await perform(id, verb, args, stop.signal);
    // Bytes of a file may be a part of what others see; those that were read of the disk belong to nobody else.
    if (verb === "readFile") value = value.slice();
    post({ id, value }, ["read", "readFile"].includes(verb) ? [value.buffer] : []);
  } catch (error) {
    post({ id, error: packError(error) });
  } finally {
    running.delete(id);
  }
}

/** Holds a lock for life, so that the page's side notices the end. Only secure pages have locks. */
function live() {
  const life = `diskette ${globalThis.crypto?.randomUUID?.()}`;
  const held = globalThis.navigator?.locks?.request(life, () => {
    post({ life });
    return new Promise(() => {});
  });
  held?.catch(() => {});
}

if (!hasThreads) {
  post = (message, transfer) => globalThis.postMessage(message, transfer);
  globalThis.onmessage = ({ data }) => receive(data);
  live();
} else {
  const { parentPort } = await import("node:worker_threads");
  post = (message, transfer) => parentPort.postMessage(message, transfer);
  parentPort.on("message", receive);
}
