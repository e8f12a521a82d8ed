// The same interface, run by a pool of workers: calls are messages, bytes are transferred.

import { forAWhile } from "./abortable.js";
import { SourceError, UnsupportedError, checkedRange, closed, isBytes, textOf } from "./errors.js";
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
  images = 0;

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
  #hands = [];
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
    this.#closing ??= Promise.all(this.#hands.splice(0)).then(async (hands) => {
      await Promise.all(hands.map((hand) => hand.stop()));
    });
    return this.#closing;
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  async #start(verb, input, { onOpen, signal, ...options }) {
    if (this.#stopped) throw closed();
    const hand = await this.#freest();
    // Closed meanwhile: then that has stopped the worker.
    if (this.#stopped) throw closed();
    const callbacks = { onOpen: onOpen && (async (reference) => postable(await onOpen(reference))) };
    try {
      // What an image names is asked for while it is opened, and only then.
      const about = await hand.ask(verb, [postable(input), options, Boolean(onOpen)], { signal, callbacks });
      return new WorkerImage(hand, about);
    } catch (error) {
      hand.images--;
      throw error;
    }
  }

  /** The worker for one more image, which counts from now on, so that the next in line sees it. */
  async #freest() {
    const hands = await Promise.all(this.#hands);
    // A worker that is started now would be stopped by nobody.
    if (this.#stopped) throw closed();
    const alive = hands.filter((hand) => hand.alive);
    if (alive.length < hands.length) this.#hands = alive.map((hand) => Promise.resolve(hand));
    const freest = alive.sort((a, b) => a.images - b.images)[0];
    if (freest && (freest.images === 0 || this.#hands.length >= this.#size)) {
      freest.images++;
      return freest;
    }
    const started = Hand.start().then((hand) => {
      hand.images++;
      return hand;
    });
    this.#hands.push(started);
    // One that cannot be started is not waited for again.
    started.catch(() => (this.#hands = this.#hands.filter((hand) => hand !== started)));
    return started;
  }
}

/** An image that a worker has open. What the other `Image` answers at once, this one promises. */
export class WorkerImage {
  #hand;
  #image;
  #size;
  #closing;
  writable;

  constructor(hand, { image, size, writable }) {
    this.#hand = hand;
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
    if (!isBytes(into)) {
      throw new UnsupportedError({ kind: "unsupported", message: "readInto fills a Uint8Array and nothing else", operation: "read" });
    }
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
    this.#closing ??= this.#hand.ask(verb, [this.#image]).finally(() => this.#hand.images--);
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
