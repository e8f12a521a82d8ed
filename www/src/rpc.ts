// Asking the worker.

import type { MapPage } from "diskette";

import type { Answer, Ask, Envelope, Failure, Reply } from "./protocol";

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
  part?: (part: MapPage) => void;
}

const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
const waiting = new Map<number, Job>();
let next = 0;

worker.onmessage = ({ data }: MessageEvent<Answer>) => {
  const job = waiting.get(data.id);
  if ("part" in data) {
    job?.part?.(data.part);
    return;
  }
  waiting.delete(data.id);
  if ("failure" in data) job?.reject(new InspectorError(data.failure));
  else job?.resolve(data.value);
};
worker.onerror = (event) => {
  for (const job of waiting.values()) job.reject(new Error(event.message || "the inspector's worker could not start"));
  waiting.clear();
};

/** Asks; `part` gets what comes before the answer is complete. */
export function ask<A extends Ask>(question: A, part?: (part: MapPage) => void): Promise<Reply<A>> {
  return new Promise((resolve, reject) => {
    const envelope: Envelope = { id: ++next, ask: question };
    waiting.set(envelope.id, { resolve: resolve as (value: unknown) => void, reject, ...(part ? { part } : {}) });
    worker.postMessage(envelope);
  });
}
