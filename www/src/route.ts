// Places in the fragment of the address: `#view=data&space=disk&at=0x1000`, and `url=…` for an image behind an address.

import type { Place, ViewName } from "./app";
import { offset, wholeNumber } from "./format";

const VIEWS: ViewName[] = ["overview", "structure", "map", "data", "contents", "check", "snapshots", "compare", "convert", "edit"];

export interface Route {
  place: Place;
  url: string | undefined;
}

/** What an address asks for; what it says wrongly is left out. */
export function parseRoute(fragment: string): Route {
  const words = new URLSearchParams(fragment.replace(/^#/, ""));
  const view = VIEWS.find((name) => name === words.get("view")) ?? "overview";
  const place: Place = { view };
  const [space, path] = [words.get("space"), words.get("path")];
  const [at, length, file] = [wholeNumber(words.get("at")), wholeNumber(words.get("length")), wholeNumber(space)];
  if (space === "disk") place.space = "disk";
  else if (file !== undefined) place.space = file;
  if (at !== undefined) place.at = at;
  if (length !== undefined) place.length = length;
  if (path !== null) place.path = path;
  const url = words.get("url");
  return { place, url: url !== null && /^https?:\/\/./.test(url) ? url : undefined };
}

export function formatRoute({ view, space, at, length, path }: Place, url: string | undefined): string {
  const words = new URLSearchParams({ view });
  if (space !== undefined) words.set("space", String(space));
  if (at !== undefined) words.set("at", offset(at));
  if (length !== undefined) words.set("length", String(length));
  if (path !== undefined) words.set("path", path);
  if (url !== undefined) words.set("url", url);
  return `#${words}`;
}
