// Asking the worker.

import type { Failure, FromWorker, Op, Ops, ToWorker } from "./protocol";

export class InspectorError extends Error {
  readonly kind: string;
  readonly offset: number | null;
  readonly operation: string | null;
  constructor({ message, kind, offset, operation }: Failure) {
    super(message);
    this.kind = kind;
    this.offset = offset;
    this.operation = operation;
  }
}

interface Job {
  resolve(value: unknown): void;
  reject(error: Error): void;
  part: ((part: never) => void) | undefined;
}

export interface Asking<K extends Op> {
  /** Gets what comes before the answer. */
  part?: (part: Ops[K]["part"]) => void;
  /** Stops the work. */
  signal?: AbortSignal;
}

const waiting = new Map<number, Job>();
let next = 0;
/** Made for the first question, and again for the next one after it failed as a whole. */
let worker: Worker | undefined;

function start(): Worker {
  const made = new Worker(new URL("./worker/main.ts", import.meta.url), { type: "module" });
  made.onmessage = ({ data }: MessageEvent<FromWorker>) => {
    if ("life" in data) {
      const ended = (): void => void (worker === made && replace("the part that reads images has ended"));
      return void navigator.locks.request(data.life, ended).catch(() => {});
    }
    const job = waiting.get(data.id);
    if ("part" in data) return job?.part?.(data.part as never);
    waiting.delete(data.id);
    if (!("failure" in data)) return job?.resolve(data.value);
    job?.reject(new InspectorError(data.failure));
    if (data.failure.kind === "crashed") replace(data.failure.message);
  };
  made.onerror = (event) => replace(event.message || "the inspector's worker could not start");
  return made;
}

let told: (error: InspectorError) => void = () => {};

/** Calls a function when the worker failed as a whole, and with it the image that is open. */
export function onCrash(handler: (error: InspectorError) => void): void {
  told = handler;
}

/** A worker that failed as a whole is of no more use; whoever waits for it hears of it, and the next question finds a new one. */
function replace(message: string): void {
  worker?.terminate();
  worker = undefined;
  told(new InspectorError({ message, kind: "crashed", offset: null, operation: null }));
  for (const job of waiting.values()) job.reject(new InspectorError({ message, kind: "crashed", offset: null, operation: null }));
  waiting.clear();
}

export function ask<K extends Op>(op: K, question: Ops[K]["ask"], { part, signal }: Asking<K> = {}): Promise<Ops[K]["reply"]> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const id = ++next;
    waiting.set(id, { resolve: resolve as (value: unknown) => void, reject, part: part as Job["part"] });
    const to = (worker ??= start());
    signal?.addEventListener("abort", () => waiting.has(id) && to.postMessage({ id, cancel: true } satisfies ToWorker), { once: true });
    to.postMessage({ id, op, ask: question } satisfies ToWorker);
  });
}
