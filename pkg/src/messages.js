// What both sides of a worker know: how errors cross, and where they are.

import * as classes from "./error-classes.js";
import { DisketteError, textOf } from "./errors.js";

/** Node.js and what does as it does, also where there are workers as in browsers. */
export const hasThreads = typeof globalThis.process?.versions?.node === "string";

/** Errors behind an error that are sent along. */
const MOST_CAUSES = 8;

/** What is sent of an error: what it says, and what the errors behind it say. */
export function packError(error, before = []) {
  const sent = error instanceof DisketteError ? ours(error) : { name: nameOf(error), message: textOf(error) };
  const cause = causeOf(error);
  const all = [...before, error];
  if (cause === undefined || all.includes(cause) || all.length > MOST_CAUSES) return sent;
  return { ...sent, cause: packError(cause, all) };
}

/** The error that was sent. */
export function unpackError({ cause, name, ...value }) {
  const behind = cause === undefined ? undefined : unpackError(cause);
  const options = behind && { cause: behind };
  if (value.class !== undefined) return new classes[value.class](value, options);
  return Object.assign(new Error(value.message, options), { name });
}

/** Errors of one kind are of several classes; what a class is called where it is exported is the same on both sides. */
function ours(error) {
  const { kind, message, path, offset, operation } = error;
  const known = Object.keys(classes).find((name) => error.constructor === classes[name]);
  return { class: known ?? "DisketteError", kind, message, path, offset, operation };
}

/** Anything may be thrown, also what throws when it is looked at. */
function nameOf(thrown) {
  try {
    return String(thrown?.name ?? "Error");
  } catch {
    return "Error";
  }
}

function causeOf(thrown) {
  try {
    return thrown?.cause;
  } catch {
    return undefined;
  }
}
