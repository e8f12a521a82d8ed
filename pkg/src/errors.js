// Typed errors. `kind` and `code` are stable and meant for programs; `message` is meant for people.

/** Every error of this package. */
export class DisketteError extends Error {
  constructor({ kind, message, path = null, offset = null, operation = null }, options) {
    super(message, options);
    this.name = new.target.name;
    this.kind = kind;
    this.path = path;
    this.offset = offset;
    this.operation = operation;
  }

  /** `kind` in the spelling of Node.js: `DISKETTE_NO_SPACE`. */
  get code() {
    return `DISKETTE_${this.kind.toUpperCase().replaceAll("-", "_")}`;
  }
}

/** The image contradicts itself or has a value that is not allowed. */
export class CorruptImageError extends DisketteError {}
/** The image, the source or the server does not support what is needed. */
export class UnsupportedError extends DisketteError {}
/** The bytes are in a file that the image names and that was not opened, or behind a key that was not given. */
export class ReferenceDeniedError extends DisketteError {}
/** A number beyond 2^53 - 1, or more than a budget allows. */
export class RangeTooLargeError extends DisketteError {}
/** The source could not be read, or the target not be written. */
export class SourceError extends DisketteError {}
/** The image or the target was not opened for writing, or cannot be written at all. */
export class ReadOnlyError extends DisketteError {}
/** The image was closed. */
export class ClosedError extends DisketteError {}

const CLASSES = {
  corrupt: CorruptImageError,
  invalid: CorruptImageError,
  unsupported: UnsupportedError,
  denied: ReferenceDeniedError,
  "too-large": RangeTooLargeError,
  "over-budget": RangeTooLargeError,
  io: SourceError,
  "not-found": SourceError,
  "permission-denied": SourceError,
  "no-space": SourceError,
  exists: SourceError,
  busy: SourceError,
  "read-only": ReadOnlyError,
  closed: ClosedError,
};

/** Makes an error of the class that fits its kind. */
export function fromCore(value, cause) {
  if (value instanceof DisketteError) return value;
  const options = cause === undefined ? undefined : { cause };
  if (typeof value?.kind === "string") {
    const { kind, message, path, offset } = value;
    // A server that is to blame stays so, whatever it was asked for.
    const operation = cause instanceof DisketteError && cause.operation === "fetch" ? "fetch" : value.operation;
    return new (CLASSES[kind] ?? DisketteError)({ kind, message, path, offset, operation }, options);
  }
  const message = `the image library failed: ${value?.message ?? String(value)}`;
  return new DisketteError({ kind: "internal", message }, { cause: value });
}

/** A size or offset as a number that counts exactly. */
export function checkedNumber(value, what) {
  const exact =
    typeof value === "bigint" ? value >= 0n && value <= BigInt(Number.MAX_SAFE_INTEGER) : Number.isSafeInteger(value) && value >= 0;
  if (!exact) {
    throw new RangeTooLargeError({ kind: "too-large", message: `${what} must be a whole number from 0 to 2^53 - 1, not ${String(value)}` });
  }
  return Number(value);
}

/** Start and end of a range, which has to lie within a disk of `size` bytes; without a length it goes up to its end. */
export function checkedRange(size, offset, length, operation) {
  const at = checkedNumber(offset, "offset");
  const count = length === undefined ? Math.max(0, size - at) : checkedNumber(length, "length");
  if (at + count <= size) return [at, at + count];
  const message = `${count} bytes at offset ${at} reach beyond the end: the size of the disk is ${size} bytes`;
  throw new SourceError({ kind: "io", message, offset: at, operation });
}

/** The error for an image that was closed. */
export function closed() {
  return new ClosedError({ kind: "closed", message: "the image was closed" });
}

/** The error for a source that gave fewer bytes than it promised. */
export function shortRead(name, offset, expected, found) {
  const message = `${found} bytes where ${expected} were expected; did the file change?`;
  return new SourceError({ kind: "io", message, path: name, offset });
}

/** Refuses what is no array of bytes; `what` says who takes one. */
export function checkBytes(value, what, operation) {
  if (isBytes(value)) return;
  throw new UnsupportedError({ kind: "unsupported", message: `${what} a Uint8Array and nothing else`, operation });
}

/** Whether a value is an array of bytes, of whatever realm. */
export const isBytes = (value) => ArrayBuffer.isView(value) && value[Symbol.toStringTag] === "Uint8Array";
export const isBuffer = (value) => value?.[Symbol.toStringTag] === "ArrayBuffer";

/** What a thrown value says; anything may be thrown. */
export function textOf(thrown) {
  try {
    return String(thrown?.message ?? thrown) || "it failed and did not say why";
  } catch {
    return "it failed with something that is no error";
  }
}

/** The error for a source that answered with something else than bytes. */
export function noBytes(name, offset, found) {
  const what = found?.constructor?.name ?? String(found);
  return new SourceError({ kind: "io", message: `a read answers with a Uint8Array, not with ${what}`, path: name, offset });
}

const KINDS = {
  NotFoundError: "not-found",
  NotAllowedError: "permission-denied",
  NoModificationAllowedError: "busy",
  QuotaExceededError: "no-space",
  ENOENT: "not-found",
  ENOTDIR: "not-found",
  EACCES: "permission-denied",
  EPERM: "permission-denied",
  ENOSPC: "no-space",
  EDQUOT: "no-space",
  EROFS: "read-only",
};

/** The kind of a failure of the host. */
export function kindOf(thrown) {
  if (typeof thrown?.kind === "string") return thrown.kind;
  if (thrown?.name === "AbortError") return "cancelled";
  return KINDS[thrown?.name] ?? KINDS[thrown?.code] ?? "io";
}

/** Runs what belongs to the caller or the browser; what it throws becomes typed, with what was thrown as the cause. */
export async function typed(work, path = null, what = "could not be read") {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof DisketteError || cause?.name === "AbortError") throw cause;
    const kind = kindOf(cause);
    throw new (CLASSES[kind] ?? SourceError)({ kind, message: `${what}: ${textOf(cause)}`, path }, { cause });
  }
}
