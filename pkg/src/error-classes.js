// The error classes, as every entry exports them.

export {
  ClosedError,
  CorruptImageError,
  DisketteError,
  RangeTooLargeError,
  ReadOnlyError,
  ReferenceDeniedError,
  SourceError,
  UnsupportedError,
} from "./errors.js";
