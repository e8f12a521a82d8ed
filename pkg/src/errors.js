// Typed errors. `kind` is stable and meant for programs; `message` is meant for people.

export class DisketteError extends Error {
  constructor({ kind, message, path = null, offset = null, operation = null }, options) {
    super(message, options);
    this.name = new.target.name;
    this.kind = kind;
    this.path = path;
    this.offset = offset;
    this.operation = operation;
  }
}

export class CorruptImageError extends DisketteError {}
export class UnsupportedError extends DisketteError {}
export class ReferenceDeniedError extends DisketteError {}
export class RangeTooLargeError extends DisketteError {}
export class SourceError extends DisketteError {}
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
  closed: ClosedError,
};

/** Makes an error of the class that fits its kind. */
export function fromCore(value, cause) {
  if (value instanceof Error) return value;
  const Kind = CLASSES[value?.kind] ?? DisketteError;
  return new Kind(value?.kind ? value : { kind: "unknown", message: String(value) }, cause ? { cause } : undefined);
}

/** A size or offset as a number that counts exactly. */
export function checkedNumber(value, what) {
  const number = typeof value === "bigint" ? Number(value) : value;
  const exact = typeof value === "bigint" ? value >= 0n && value <= BigInt(Number.MAX_SAFE_INTEGER) : Number.isSafeInteger(value) && value >= 0;
  if (!exact) {
    throw new RangeTooLargeError({ kind: "too-large", message: `${what} must be a whole number from 0 to 2^53 - 1, not ${String(value)}` });
  }
  return number;
}
