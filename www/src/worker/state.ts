// What the parts of the worker share: the image that is open.

import type { InspectedImage as Image } from "diskette/inspector";

import type { Op, Opening, Ops } from "../protocol";

export const scope = self as unknown as DedicatedWorkerGlobalScope;

/** A question while it is answered. */
export interface Call<Part> {
  signal: AbortSignal;
  part(part: Part, transfer?: Transferable[]): void;
}

export type Handler<K extends Op> = (ask: Ops[K]["ask"], call: Call<Ops[K]["part"]>) => Promise<Ops[K]["reply"]>;
export type Handlers = { [K in Op]: Handler<K> };

export interface OpenImage {
  image: Image;
  opening: Opening;
  /** The image's own file, or its address. */
  input: File | string;
}

let open: OpenImage | undefined;

/** The image that is open. */
export function current(): OpenImage {
  if (!open) throw Object.assign(new Error("no image is open"), { kind: "closed" });
  return open;
}

const followers: (() => unknown)[] = [];

/** Calls a function when the image that is open is left, so that what belongs to it is let go of. */
export function whenReplaced(follower: () => unknown): void {
  followers.push(follower);
}

/** Leaves the image that is open, and takes another. */
export async function replace(next: OpenImage | undefined): Promise<void> {
  const before = open;
  open = next;
  if (!before) return;
  await Promise.allSettled(followers.map((follower) => follower()));
  await before.image.close();
}
