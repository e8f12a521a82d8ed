// What the views have in common: the image that is open, and going from one place to another.

import type { LayerInfo } from "diskette";

import type { Opened, Opening, Space } from "./protocol";

export type ViewName = "overview" | "structure" | "map" | "data" | "contents" | "check" | "snapshots" | "compare" | "convert" | "edit";

/** A view, and what of it is to be seen: what a link to it says. Offsets are in bytes. */
export interface Place {
  view: ViewName;
  space?: Space;
  at?: number;
  length?: number;
  path?: string;
}

/** The image that is open. Another object means that another image was opened. */
export interface Current {
  readonly opening: Opening;
  readonly opened: Opened;
  /** Which image of the chain is looked at: an index in `opened.info.chain`. */
  layer: number;
}

export interface App {
  readonly current: Current | undefined;
  /** What `diskette serve` has, if the page is its. */
  readonly served: { name: string; opening: Opening }[];
  /** Shows a place. */
  go(place: Place): void;
  /** Says in the address where the user is, without moving. */
  mark(place: Place): void;
  /** Opens an image in place of the one that is open. */
  open(opening: Opening): Promise<void>;
  /** Looks at another image of the chain. */
  choose(layer: number): void;
  /** Shows what went wrong where everybody sees it. */
  complain(error: unknown): void;
}

export interface View {
  readonly name: ViewName;
  readonly title: string;
  /** What is shown; the view fills it. */
  readonly element: HTMLElement;
  /** Another image is open. */
  opened(current: Current): void;
  /** Another image of its chain is looked at: `current.layer`. */
  chosen?(current: Current): void;
  /** The view is seen, now or at another place of it. */
  shown?(place: Place, current: Current): void;
}

/** The image of the chain that is looked at. */
export function layerOf({ opened, layer }: Current): LayerInfo {
  return opened.info.chain[layer] ?? opened.info;
}

/** Index in `opened.files` of the file that an image of the chain is in. */
export function fileOf({ opened }: Current, layer: number): number {
  const found = opened.files.findIndex(({ name }) => name === opened.info.chain[layer]?.filename);
  return layer === 0 || found < 0 ? 0 : found;
}
