// What the page and its worker say to each other.

import type { CheckReport, ImageInfo, MapPage } from "diskette";

export type Ask =
  /** `format`: taken as that, whatever it looks like. */
  | { op: "open"; files: File[]; format?: string }
  /** `follow`: files that the image names may be fetched, from the same server only. */
  | { op: "open-url"; url: string; follow: boolean; format?: string }
  | { op: "map" }
  | { op: "check" }
  | { op: "read"; space: Space; offset: number; length: number };

/** The disk that the guest sees, or one of the files that hold it. */
export type Space = "disk" | number;

/** A file that an image names and that was not opened. */
export interface Missing {
  name: string;
  role: string;
  /** It was given, but is of no use without another one that was not. */
  given: boolean;
}

export interface Opened {
  name: string;
  info: ImageInfo;
  /** The files that are open, the image's own first. */
  files: { name: string; size: number }[];
  missing: Missing[];
}

export interface Failure {
  message: string;
  kind: string;
  /** Byte offset in the file. */
  offset: number | null;
  /** What was being done: `fetch` where a server is to blame. */
  operation: string | null;
}

export type Reply<A extends Ask> = A extends { op: "open" | "open-url" }
  ? Opened
  : A extends { op: "map" }
    ? { complete: boolean }
    : A extends { op: "check" }
      ? CheckReport
      : Uint8Array;

export interface Envelope {
  id: number;
  ask: Ask;
}

/** A part of an answer, the answer, or why there is none. */
export type Answer = { id: number; part: MapPage } | { id: number; value: unknown } | { id: number; failure: Failure };
