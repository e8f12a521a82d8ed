// What the page and its worker say to each other.

import type { CheckReport, Extent, ImageInfo } from "diskette";

export type Ask =
  | { op: "open"; files: File[] }
  | { op: "open-url"; url: string }
  | { op: "map" }
  | { op: "check" }
  | { op: "read"; space: Space; offset: number; length: number };

/** The disk that the guest sees, or the file that holds it. */
export type Space = "guest" | "file";

export interface Opened {
  name: string;
  fileSize: number;
  info: ImageInfo;
  /** Files that the image names and that were not among those given. */
  missing: string[];
}

export interface Failure {
  message: string;
  kind: string;
}

export type Reply<A extends Ask> = A extends { op: "open" | "open-url" }
  ? Opened
  : A extends { op: "map" }
    ? Extent[]
    : A extends { op: "check" }
      ? CheckReport
      : Uint8Array;

export interface Envelope {
  id: number;
  ask: Ask;
}

export type Answer = { id: number; value: unknown } | { id: number; failure: Failure };
