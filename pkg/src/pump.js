// The host side of the core: takes every request that it has queued, answers them, and settles jobs.

import { checkedNumber, closed, fromCore, isBuffer, isBytes, kindOf, noBytes, shortRead, textOf } from "./errors.js";
import { forWantOfKey } from "./options.js";
import { breathe, isTired, rest } from "./rest.js";

/** The file that the caller gave; files that it names get higher numbers. */
const FIRST_FILE = 1;
/** Zeroes are written this many at a time. */
const ZEROES = 1024 * 1024;
/** Of what is read of the start of a file, so much is kept as its `head`. */
const HEAD_BYTES = 8;
/** Failures of sources that are remembered to explain the errors of the core. */
const MAX_CAUSES = 16;

export class Pump {
  #session;
  #sources = new Map();
  #jobs = new Set();
  #causes = [];
  #openReference;
  #turning = false;
  #again = false;
  #resting = false;

  /** `openReference` answers with a source for a file that the image names, or with nothing to refuse. */
  constructor(session, source, openReference) {
    this.#session = session;
    this.#sources.set(FIRST_FILE, source);
    this.#openReference = openReference;
  }

  /** Asks the core something that it answers at once. */
  call(question) {
    if (!this.#session) throw closed();
    try {
      return question(this.#session);
    } catch (error) {
      throw fromCore(error);
    }
  }

  /** Starts a job of the core; `take` gets its result, `undefined` while there is none. */
  run(start, signal, take = (session, id) => session.take(id)) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const job = { id: this.call(start), take, resolve, reject, signal };
      job.abort = () => {
        if (!this.#jobs.has(job)) return;
        this.#end(job);
        this.#session?.cancel(job.id);
        reject(signal.reason);
        this.#turn();
      };
      signal?.addEventListener("abort", job.abort, { once: true });
      this.#jobs.add(job);
      this.#turn();
    });
  }

  /** The files that are open, the caller's first. */
  get files() {
    return [...this.#sources.values()];
  }

  async close() {
    const session = this.#session;
    if (!session) return;
    this.#session = null;
    this.#rejectAll(closed());
    try {
      session.free();
    } catch {
      // A module that broke cannot give its memory back.
    }
    const sources = this.files;
    this.#sources.clear();
    const outcomes = await Promise.allSettled(sources.map(async (source) => source.close?.()));
    const failed = outcomes.find(({ status }) => status === "rejected");
    if (failed) throw failed.reason;
  }

  /** Lets go of the core and leaves the files open. */
  detach() {
    this.#session?.free();
    this.#session = null;
  }

  /** Runs the core, issues every request it has queued before any is waited for, and settles the jobs that have ended. */
  #turn() {
    this.#again = true;
    if (this.#turning || this.#resting) return;
    this.#turning = true;
    try {
      while (this.#again && this.#session) {
        if (isTired()) {
          this.#rest();
          break;
        }
        this.#again = false;
        this.#session.poll();
        const requests = [];
        for (let request = this.#session.next(); request !== undefined; request = this.#session.next()) requests.push(request);
        for (const request of requests) this.#answer(request);
        for (const job of [...this.#jobs]) this.#settle(job);
      }
    } catch (error) {
      // The core broke: nothing that it was asked will be answered.
      this.#rejectAll(fromCore(error));
    } finally {
      this.#turning = false;
    }
  }

  /** Lets the event loop have its turn; what is asked or answered meanwhile waits in the core. */
  #rest() {
    this.#resting = true;
    rest(() => {
      this.#resting = false;
      this.#turn();
    });
  }

  #settle(job) {
    if (!this.#session || !this.#jobs.has(job)) return;
    let value;
    try {
      value = job.take(this.#session, job.id);
    } catch (error) {
      this.#end(job);
      job.reject(this.#explained(error));
      return;
    }
    if (value === undefined) return;
    this.#end(job);
    job.resolve(value);
  }

  #end(job) {
    this.#jobs.delete(job);
    job.signal?.removeEventListener("abort", job.abort);
  }

  #rejectAll(error) {
    for (const job of [...this.#jobs]) {
      this.#end(job);
      job.reject(error);
    }
  }

  /** An error of the core with the source's failure behind it as its cause. */
  #explained(error) {
    const cause = this.#causes.findLast(({ text }) => typeof error?.message === "string" && error.message.includes(text));
    // No job goes on once the image is closed here. What the core took for closed meanwhile it found to be corrupt.
    const value = error?.kind === "closed" ? { ...error, kind: "corrupt" } : forWantOfKey(error);
    return fromCore(value, cause?.error);
  }

  #answer(request) {
    if (!this.#session) return;
    let answer;
    try {
      answer = this.#ask(request);
    } catch (error) {
      this.#fail(request, error);
      return;
    }
    if (typeof answer?.then !== "function") {
      this.#complete(request, answer);
      return;
    }
    const settled = Promise.resolve(answer).then(
      (value) => this.#complete(request, value),
      (error) => this.#fail(request, error),
    );
    settled.catch((error) => this.#rejectAll(fromCore(error)));
  }

  #ask(request) {
    if (request.kind === "open") return this.#open(request);
    const source = this.#sources.get(request.file);
    const { at, length } = request;
    switch (request.kind) {
      case "read":
        return source.read(at, length);
      case "write":
        return source.write(at, request.bytes);
      case "zero":
        return source.zero ? source.zero(at, length) : writeZeroes(source, at, length);
      case "discard":
        return source.discard?.(at, length);
      case "flush":
        return source.flush?.();
      default:
        return source.resize(length);
    }
  }

  /** What a change that is done made of a file's size. */
  #grow(source, { kind, at, length, bytes }) {
    if (kind === "resize") source.size = length;
    else if (kind === "write" || kind === "zero") source.size = Math.max(source.size, at + (bytes?.length ?? length));
  }

  #complete(request, value) {
    if (!this.#session) {
      return request.kind === "open" ? value.close?.() : undefined;
    }
    if (request.kind === "open") {
      const file = FIRST_FILE + this.#sources.size;
      this.#sources.set(file, value);
      this.#session.completeOpen(request.id, file, value.name, value.size);
    } else if (request.kind !== "read") {
      this.#grow(this.#sources.get(request.file), request);
      this.#session.completeDone(request.id);
    } else {
      const source = this.#sources.get(request.file);
      const bytes = isBuffer(value) ? new Uint8Array(value) : value;
      if (!isBytes(bytes)) return this.#fail(request, noBytes(source.name, request.at, value));
      if (bytes.length !== request.length) return this.#fail(request, shortRead(source.name, request.at, request.length, bytes.length));
      if (request.at === 0) source.head ??= bytes.slice(0, HEAD_BYTES);
      this.#session.completeRead(request.id, bytes);
    }
    this.#turn();
  }

  #fail(request, error) {
    if (!this.#session) return;
    // The core puts the file's name in front, and where it was read behind.
    const text = textOf(error);
    this.#causes.push({ text, error });
    if (this.#causes.length > MAX_CAUSES) this.#causes.shift();
    this.#session.fail(request.id, kindOf(error), text);
    this.#turn();
  }

  async #open(reference) {
    const { name, format, role, from, writable = false } = reference;
    if (format !== null && !this.#session.knows(format)) {
      throw Object.assign(new Error(`'${name}' (${role}) has the format '${format}', which is not known here`), { kind: "unsupported" });
    }
    const source = await this.#openReference({ name, format, role, from }, writable);
    if (!source) throw Object.assign(new Error(`'${name}' (${role}) was not opened: onOpen did not allow it`), { kind: "denied" });
    let size;
    try {
      size = checkedNumber(source.size, `the size of '${name}'`);
    } catch (error) {
      await source.close?.();
      throw error;
    }
    // A path or address says more than the image's spelling, which may be relative; a File says less.
    return { ...source, name: source.located ? source.name : name, size, probed: format === null };
  }
}

/** For targets that have no better way. */
async function writeZeroes(source, at, length) {
  for (let done = 0; done < length; done += ZEROES) {
    await source.write(at + done, new Uint8Array(Math.min(ZEROES, length - done)));
    await breathe();
  }
}
