// Everything that reads an image runs here, away from the page.

import type { Failure, FromWorker, Op, ToWorker } from "../protocol";
import { comparing } from "./compare";
import { containing } from "./contents";
import { converting } from "./convert";
import { editing } from "./edit";
import { layout } from "./layout";
import { opening } from "./opening";
import { reading } from "./reading";
import { type Call, type Handlers, scope } from "./state";

const handlers: Handlers = { ...opening, ...reading, ...comparing, ...converting, ...editing, ...layout, ...containing };

/** Questions that are being answered. */
const running = new Map<number, AbortController>();

function failure(error: unknown): Failure {
  // A module that ended in the middle of its work cannot be asked again.
  const trap = [error, (error as Error | undefined)?.cause].find((reason) => reason instanceof WebAssembly.RuntimeError);
  if (trap) {
    return { message: `the part that reads images has failed (${trap.message}); open the image again`, kind: "crashed", offset: null, operation: null };
  }
  const { name, message = String(error), kind, offset = null, operation = null } = error as Partial<Failure & Error>;
  return { message, kind: kind ?? (name === "AbortError" ? "cancelled" : "unknown"), offset, operation };
}

async function answer(id: number, op: Op, ask: unknown): Promise<void> {
  const controller = new AbortController();
  running.set(id, controller);
  const reply = (message: FromWorker, transfer: Transferable[] = []): void => scope.postMessage(message, transfer);
  const call: Call<unknown> = { signal: controller.signal, part: (part, transfer) => reply({ id, part }, transfer) };
  try {
    const value = await (handlers[op] as (ask: unknown, call: Call<unknown>) => Promise<unknown>)(ask, call);
    reply({ id, value }, value instanceof Uint8Array ? [value.buffer] : []);
  } catch (error) {
    reply({ id, failure: failure(error) });
  } finally {
    running.delete(id);
  }
}

scope.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  if ("cancel" in data) running.get(data.id)?.abort();
  else void answer(data.id, data.op, data.ask);
};

// Browsers say nothing when a worker ends, but the lock that it holds is free then. Only secure pages have locks.
const life = `diskette-inspector ${globalThis.crypto.randomUUID?.()}`;
void navigator.locks?.request(life, () => {
  scope.postMessage({ life } satisfies FromWorker);
  return new Promise(() => {});
}).catch(() => {});
