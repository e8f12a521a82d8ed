// The host pump: takes all requests that the core has queued, answers them, and settles jobs.

import { ClosedError, SourceError, checkedNumber, fromCore } from "./errors.js";

const STREAM_CHUNK = 1024 * 1024;

/** An open image. */
export class Image {
  #session;
  #sources = new Map();
  #jobs = new Set();
  #onOpen;
  #toSource;
  #nextFile = 2;
  #turning = false;
  #turnAgain = false;

  constructor(session, source, onOpen, toSource) {
    this.#session = session;
    this.#sources.set(1, source);
    this.#onOpen = onOpen;
    this.#toSource = toSource;
  }

  static async open(Session, source, { format, onOpen, signal } = {}, toSource) {
    signal?.throwIfAborted();
    const image = new Image(new Session(), source, onOpen, toSource);
    const size = checkedNumber(source.size, "the size of the source");
    try {
      await image.#job(() => image.#session.open(source.name, size, format, !onOpen), signal);
      return image;
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  info() {
    return this.#call(() => this.#session.info());
  }

  get size() {
    return this.info().virtualSize;
  }

  async map({ offset = 0, length, signal } = {}) {
    const start = checkedNumber(offset, "offset");
    const len = length === undefined ? this.size - start : checkedNumber(length, "length");
    const numbers = await this.#job(() => this.#session.map(start, len), signal);
    const extents = [];
    for (let at = 0; at < numbers.length; at += 5) {
      const flags = numbers[at + 3];
      extents.push({
        start: numbers[at],
        length: numbers[at + 1],
        depth: numbers[at + 2],
        present: (flags & 1) !== 0,
        zero: (flags & 2) !== 0,
        data: (flags & 4) !== 0,
        compressed: (flags & 8) !== 0,
        offset: numbers[at + 4] < 0 ? null : numbers[at + 4],
      });
    }
    return extents;
  }

  check({ signal } = {}) {
    return this.#job(() => this.#session.check(), signal);
  }

  async read(offset, length, { signal } = {}) {
    const at = checkedNumber(offset, "offset");
    const len = checkedNumber(length, "length");
    return this.#job(() => this.#session.read(at, len), signal);
  }

  async readInto(offset, into, { signal } = {}) {
    const at = checkedNumber(offset, "offset");
    await this.#job(() => this.#session.read(at, into.length), signal, (job) => this.#session.takeInto(job, into) || undefined);
    return into;
  }

  /** Bytes of the file itself, not of the disk in it. */
  async readFile(offset, length) {
    const at = checkedNumber(offset, "offset");
    const source = this.#source(1);
    return source.read(at, Math.max(0, Math.min(checkedNumber(length, "length"), source.size - at)));
  }

  get fileSize() {
    return this.#source(1).size;
  }

  stream({ offset = 0, length, signal } = {}) {
    let at = checkedNumber(offset, "offset");
    const end = length === undefined ? this.size : at + checkedNumber(length, "length");
    return new ReadableStream(
      {
        pull: async (controller) => {
          if (at >= end) return controller.close();
          const len = Math.min(STREAM_CHUNK, end - at);
          controller.enqueue(await this.read(at, len, { signal }));
          at += len;
        },
      },
      { highWaterMark: 1 },
    );
  }

  async close() {
    const session = this.#session;
    if (!session) return;
    this.#session = null;
    const closed = new ClosedError({ kind: "closed", message: "the image was closed" });
    for (const job of this.#jobs) job.reject(closed);
    this.#jobs.clear();
    session.free();
    for (const source of this.#sources.values()) await source.close?.();
    this.#sources.clear();
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  #source(file) {
    const source = this.#sources.get(file);
    if (!source) throw new ClosedError({ kind: "closed", message: "the image was closed" });
    return source;
  }

  #call(work) {
    if (!this.#session) throw new ClosedError({ kind: "closed", message: "the image was closed" });
    try {
      return work();
    } catch (error) {
      throw fromCore(error);
    }
  }

  /** Starts a job of the core and gives a promise for its result. */
  #job(start, signal, take = (job) => this.#session.take(job)) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const job = { id: this.#call(start), take, resolve, reject };
      const abort = () => job.reject(signal.reason);
      job.resolve = (value) => (signal?.removeEventListener("abort", abort), resolve(value));
      job.reject = (error) => (signal?.removeEventListener("abort", abort), reject(error));
      signal?.addEventListener("abort", abort, { once: true });
      this.#jobs.add(job);
      this.#turn();
    });
  }

  /** Runs the core, issues every request it has queued, and settles the jobs that have ended. */
  #turn() {
    if (this.#turning) {
      this.#turnAgain = true;
      return;
    }
    this.#turning = true;
    do {
      this.#turnAgain = false;
      if (!this.#session) break;
      this.#session.poll();
      const requests = [];
      for (let request = this.#session.next(); request !== undefined; request = this.#session.next()) requests.push(request);
      for (const request of requests) this.#answer(request);
      for (const job of [...this.#jobs]) this.#settle(job);
    } while (this.#turnAgain);
    this.#turning = false;
  }

  #settle(job) {
    try {
      const value = job.take(job.id);
      if (value === undefined) return;
      this.#jobs.delete(job);
      job.resolve(value);
    } catch (error) {
      this.#jobs.delete(job);
      job.reject(fromCore(error, job.cause));
    }
  }

  #answer(request) {
    let answer;
    try {
      answer = request.kind === "read" ? this.#source(request.file).read(request.at, request.length) : this.#openReference(request);
    } catch (error) {
      return this.#fail(request, error);
    }
    if (answer instanceof Promise) {
      answer.then(
        (value) => this.#complete(request, value),
        (error) => this.#fail(request, error),
      );
    } else {
      this.#complete(request, answer);
    }
  }

  #complete(request, value) {
    if (!this.#session) return;
    if (request.kind === "read") {
      if (value.length !== request.length) {
        const name = this.#source(request.file).name;
        const message = `${value.length} bytes where ${request.length} were expected; did the file change?`;
        return this.#fail(request, new SourceError({ kind: "io", message, path: name, offset: request.at }));
      }
      this.#session.completeRead(request.id, value);
    } else {
      const file = this.#nextFile++;
      this.#sources.set(file, value);
      this.#session.completeOpen(request.id, file, value.name, value.size);
    }
    this.#turn();
  }

  #fail(request, error) {
    if (!this.#session) return;
    this.#session.fail(request.id, error?.kind ?? (error?.name === "AbortError" ? "cancelled" : "io"), error?.message ?? String(error));
    this.#turn();
  }

  async #openReference({ name, format, role, from }) {
    const answer = await this.#onOpen?.({ name, format, role, from });
    if (answer === null || answer === undefined || answer === false) {
      throw Object.assign(new Error(`'${name}' (${role}) was not opened: onOpen did not allow it`), { kind: "denied" });
    }
    const source = await this.#toSource(answer);
    return { ...source, read: source.read.bind(source), name };
  }
}
