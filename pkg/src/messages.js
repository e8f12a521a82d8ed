// What both sides of a worker know: how errors cross, and where they are.

import { DisketteError, fromCore, textOf } from "./errors.js";

/** Node.js and what does as it does, also where there are workers as in browsers. */
export const hasThreads = typeof globalThis.process?.versions?.node === "string";

/** What is sent of an error. */
export function packError(error) {
  if (!(error instanceof DisketteError)) return { name: String(error?.name ?? "Error"), message: textOf(error) };
  const { kind, message, path, offset, operation } = error;
  return { kind, message, path, offset, operation };
}

/** The error that was sent. */
export function unpackError(value) {
  if (value.kind !== undefined) return fromCore(value);
  return Object.assign(new Error(value.message), { name: value.name });
}
