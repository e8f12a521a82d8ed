// The same interface, run by a pool of workers: calls are messages, bytes are transferred.

import { forAWhile } from "./abortable.js";
import { SourceError, UnsupportedError, checkBytes, checkedRange, closed, textOf } from "./errors.js";
import { hasThreads, packError, unpackError } from "./messages.js";

/** A thread has so long to end by itself. */
const FAREWELL_MILLISECONDS = 500;
const STREAM_CHUNK_BYTES = 1024 * 1024;

/** An address is handed over as text. */
const postable = (input) => (input instanceof URL ? String(input) : input);

/** Browsers say nothing when a worker ends, but the lock that it holds is free then. */
function watch(life, gone) {
  navigator.locks.request(life, () => gone("it ended")).catch(() => {});
}

async function startWorker() {
  if (!hasThreads) {
    const worker = new Worker(new URL("./worker-main.js", import.meta.url), { type: "module" });
    return {
      post: (message, transfer) => worker.postMessage(message, transfer),
      listen(message, gone) {
        worker.onmessage = ({ data }) => (data.life === undefined ? message(data) : watch(data.life, gone));
        worker.onerror = (event) => {
          worker.terminate();
          gone(event.message ?? "it failed");
        };
      },
      rest() {},
      stop: () => worker.terminate(),
    };
  }
  const { Worker: Thread } = await import("node:worker_threads");
  const thread = new Thread(new URL("./worker-main.js", import.meta.url));
  return {
    post: (message, transfer) => thread.postMessage(message, transfer),
    listen(message, gone) {
      thread.on("message", message);
      thread.on("error", (error) => gone(textOf(error)));
      thread.on("exit", () => gone("it ended"));
    },
    // Nothing to wait for keeps no process alive.
    rest: (idle) => (idle ? thread.unref() : thread.ref()),
    // One that can ends by itself, and takes along what it has begun.
    async stop() {
      const ended = new Promise((resolve) => thread.once("exit", resolve));
      if (thread.threadId === -1) return;
      thread.ref();
      thread.postMessage({ end: true });
      await forAWhile(ended, FAREWELL_MILLISECONDS);
      await thread.terminate();
    },
  };
}

/** One worker and what it was asked. */
class Hand {
  #port;
  #waiting = new Map();
  #next = 0;
  #gone = null;
  #callbacks = new Map();

  static async start() {
    const hand = new Hand();
    hand.#port = await startWorker();
    hand.#port.listen((message) => hand.#receive(message), (reason) => hand.#end(reason));
    hand.#port.rest(true);
    return hand;
  }

  get alive() {
    return this.#gone === null;
  }

  /** Asks for something; `callbacks` are what the worker may ask back. */
  ask(verb, args, { signal, callbacks = {}, transfer = [] } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      if (this.#gone) throw this.#gone;
      const id = ++this.#next;
      const abort = () => this.#port.post({ abort: id });
      const settle = (outcome) => (value) => {
        signal?.removeEventListener("abort", abort);
        this.#waiting.delete(id);
        this.#callbacks.delete(id);
        if (this.#waiting.size === 0) this.#port.rest(true);
        outcome(value);
      };
      const refuse = (error) => reject(signal?.aborted ? signal.reason : error);
      this.#waiting.set(id, { resolve: settle(resolve), reject: settle(refuse) });
      this.#callbacks.set(id, callbacks);
      this.#port.rest(false);
      try {
        this.#port.post({ id, verb, args }, transfer);
      } catch (cause) {
        const hint = ["open", "create", "convert"].includes(verb) ? "; give a path, address, File, FileSystemFileHandle or bytes" : "";
        const message = `this cannot be handed to a worker: ${textOf(cause)}${hint}`;
        this.#waiting.get(id).reject(new UnsupportedError({ kind: "unsupported", message, operation: verb }, { cause }));
        return;
      }
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  stop() {
    this.#end("it was stopped");
    return this.#port.stop();
  }

  #receive({ id, value, error, call, name, args }) {
    if (call !== undefined) {
      const answer = async () => this.#callbacks.get(id)?.[name]?.(...args);
      answer().then(
        (value) => this.#port.post({ call, value: value ?? null }),
        (error) => this.#port.post({ call, error: packError(error) }),
      ).catch((error) => this.#port.post({ call, error: packError(error) }));
      return;
    }
    const waiting = this.#waiting.get(id);
    if (error) waiting?.reject(unpackError(error));
    else waiting?.resolve(value);
  }

  #end(reason) {
    this.#gone ??= new SourceError({ kind: "io", message: `the worker is gone: ${reason}; open the image again`, operation: "worker" });
    for (const { reject } of [...this.#waiting.values()]) reject(this.#gone);
  }
}

/** Workers that share the images that are opened. */
export class Pool {
  #size;
  /** Workers that are there or about to be: how many images each has or is to get. */
  #places = [];
  #stopped = false;
  #closing;

  constructor({ size = Math.min(4, globalThis.navigator?.hardwareConcurrency ?? 2) } = {}) {
    this.#size = size;
  }

  /** Opens an image in the worker that has the fewest. */
  open(input, options = {}) {
    return this.#start("open", input, options);
  }

  /** Makes an image and opens it for writing. */
  create(target, options = {}) {
    return this.#start("create", target, options);
  }

  /** Ends all workers, with whatever they are doing. */
  close() {
    this.#stopped = true;
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  async #end() {
    const started = await Promise.allSettled(this.#places.splice(0).map(({ started }) => started));
    await Promise.all(started.map(({ value: hand }) => hand?.stop()));
  }

  async #start(verb, input, { onOpen, signal, ...options }) {
    if (this.#stopped) throw closed();
    const place = this.#freest();
    try {
      const hand = await place.started;
      // Closed meanwhile: then that stops the worker.
      if (this.#stopped) throw closed();
      const callbacks = { onOpen: onOpen && (async (reference) => postable(await onOpen(reference))) };
      // What an image names is asked for while it is opened, and only then.
      const about = await hand.ask(verb, [postable(input), options, Boolean(onOpen)], { signal, callbacks });
      return new WorkerImage(hand, about, () => place.images--);
    } catch (error) {
      place.images--;
      throw error;
    }
  }

  /** The place for one more image, which counts from now on, so that the next in line sees it. */
  #freest() {
    this.#places = this.#places.filter(({ hand }) => hand?.alive !== false);
    const freest = this.#places.reduce((one, other) => (one && one.images <= other.images ? one : other), undefined);
    if (freest && (freest.images === 0 || this.#places.length >= this.#size)) {
      freest.images++;
      return freest;
    }
    const place = { started: Hand.start(), hand: undefined, images: 1 };
    this.#places.push(place);
    place.started.then(
      (hand) => (place.hand = hand),
      // One that cannot be started is not waited for again.
      () => (this.#places = this.#places.filter((other) => other !== place)),
    );
    return place;
  }
}

/** An image that a worker has open. What the other `Image` answers at once, this one promises. */
export class WorkerImage {
  #hand;
  /** Says that the worker has one image less. */
  #left;
  #image;
  #size;
  #closing;
  writable;

  constructor(hand, { image, size, writable }, left) {
    this.#hand = hand;
    this.#left = left;
    this.#image = image;
    this.#size = size;
    this.writable = writable;
  }

  get size() {
    return this.#size;
  }

  info() {
    return this.#ask("info", []);
  }

  files() {
    return this.#ask("files", []);
  }

  map(options) {
    return this.#askUntil("map", [], options);
  }

  async *mapPages({ offset = 0, length, signal } = {}) {
    let [at, end] = checkedRange(this.#size, offset, length, "map");
    while (at < end) {
      const page = await this.#askUntil("mapPage", [], { offset: at, length: end - at, signal });
      yield page;
      at = page.end;
    }
  }

  check(options) {
    return this.#askUntil("check", [], options);
  }

  read(offset, length, options) {
    return this.#askUntil("read", [offset, length], options);
  }

  async readInto(offset, into, options) {
    checkBytes(into, "readInto fills", "read");
    into.set(await this.read(offset, into.length, options));
    return into;
  }

  readFile(offset, length, options) {
    return this.#askUntil("readFile", [offset, length], options);
  }

  stream({ offset = 0, length, signal } = {}) {
    let [at, end] = checkedRange(this.#size, offset, length, "read");
    const pull = async (controller) => {
      if (at >= end) return controller.close();
      const count = Math.min(STREAM_CHUNK_BYTES, end - at);
      controller.enqueue(await this.read(at, count, { signal }));
      at += count;
    };
    return new ReadableStream({ pull }, { highWaterMark: 1 });
  }

  write(offset, bytes, options) {
    return this.#askUntil("write", [offset, bytes], options);
  }

  zero(offset, length, options) {
    return this.#askUntil("zero", [offset, length], options);
  }

  discard(offset, length, options) {
    return this.#askUntil("discard", [offset, length], options);
  }

  flush(options) {
    return this.#askUntil("flush", [], options);
  }

  async resize(size, { shrink } = {}) {
    this.#size = await this.#ask("resize", [size, { shrink }]);
  }

  setBacking(name, format) {
    return this.#ask("setBacking", [name, format]);
  }

  readBitmap(name, options) {
    return this.#askUntil("readBitmap", [name], options);
  }

  get snapshots() {
    const ask = (verb) => (...args) => this.#ask(`snapshots.${verb}`, args);
    const apply = async (name) => {
      this.#size = await this.#ask("snapshots.apply", [name]);
    };
    const create = (name, { date } = {}) => this.#ask("snapshots.create", [name, { date }]);
    return { list: ask("list"), create, apply, delete: ask("delete") };
  }

  /** Copies the disk into a new image, within the worker. */
  convert(target, { signal, onProgress, ...options } = {}) {
    const callbacks = { onProgress };
    return this.#ask("convert", [postable(target), options], { signal, callbacks });
  }

  close() {
    return this.#end("close");
  }

  abandon() {
    return this.#end("abandon");
  }

  #end(verb) {
    this.#closing ??= this.#hand.ask(verb, [this.#image]).finally(this.#left);
    return this.#closing;
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  /** Asks for what a signal may stop; that stays here, and the worker has one of its own among the last of what it is given. */
  #askUntil(verb, args, { signal, ...options } = {}) {
    return this.#ask(verb, [...args, options], { signal });
  }

  #ask(verb, args, options) {
    if (this.#closing) return Promise.reject(closed());
    return this.#hand.ask(verb, [this.#image, ...args], options);
  }
}

let pool;

/** Opens an image in a worker of a common pool. */
export function open(input, options) {
  pool ??= new Pool();
  return pool.open(input, options);
}

/** Makes an image in a worker of a common pool. */
export function create(target, options) {
  pool ??= new Pool();
  return pool.create(target, options);
}

export * from "./error-classes.js";
