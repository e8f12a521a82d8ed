// Reasons to trust an image, or not to: what it would make a program do that opens it, and whether it is complete.

import type { LayerInfo } from "diskette";

import type { Current } from "../app";
import { element, size } from "../format";

/** A disk of this size, and this many times its file, is more often an attack or an error than a disk. */
const VAST_BYTES = 16 * 1024 ** 4;
const VAST_RATIO = 100_000;

type Judgement = "good" | "warn" | "bad";

function reason(judgement: Judgement, title: string, why: string): HTMLElement {
  const sign = { good: "✓", warn: "!", bad: "✗" }[judgement];
  const word = { good: "fine", warn: "look", bad: "problem" }[judgement];
  const mark = element("span", { class: `sign ${judgement}`, text: sign });
  mark.setAttribute("role", "img");
  mark.ariaLabel = word;
  return element("li", { class: "reason" }, mark, element("span", {}, element("strong", { text: title }), ` ${why}`));
}

/** What a program would open besides the file itself. */
function references(layer: LayerInfo): HTMLElement[] {
  const found: HTMLElement[] = [];
  const all = [
    { role: "backing file", reference: layer.backingFile },
    { role: "data file", reference: layer.dataFile },
  ];
  for (const { role, reference } of all) {
    if (!reference) continue;
    const { name, format } = reference;
    if (/^[a-z][a-z0-9+.-]+:/i.test(name)) {
      found.push(reason("bad", `Its ${role} is not a plain file.`, `“${name}” would make other programs use a driver or the network.`));
    } else if (/^([\\/]|[a-z]:[\\/])/i.test(name) || name.split(/[\\/]/).includes("..")) {
      found.push(reason("warn", `Its ${role} is at a place of the machine.`, `“${name}”: whoever opens the image elsewhere reads what is there.`));
    } else found.push(reason("good", `Its ${role} is beside it.`, `“${name}”.`));
    if (role === "backing file" && format === null) {
      found.push(reason("warn", "The format of its backing file is not recorded.", "Programs guess it from contents that a guest may have written."));
    }
  }
  return found;
}

/** The reasons that are known when an image opens; the check adds its own. */
export function reasons({ opened, opening }: Current): HTMLElement[] {
  const { info, missing, files } = opened;
  const found = info.chain.flatMap(references);
  if (!info.backingFile && !info.dataFile) found.push(reason("good", "It stands alone.", "It names no other file."));
  if (missing.length > 0) found.push(reason("warn", "It is not complete here.", "Files that it names are not open."));
  const claims = info.formats.filter(({ score }) => score > 1);
  if (claims.length > 1) found.push(reason("bad", "It is ambiguous.", `${claims.map(({ format }) => format).join(" and ")} both claim it.`));
  else if (info.format === "raw" && opening.wish.format === undefined) {
    found.push(reason("warn", "Nothing says what it is.", "It has no signature of a known image format and is taken as raw: each byte of the file is one of the disk."));
  } else if (claims.length === 1) found.push(reason("good", `It is ${info.format} and nothing else.`, claims[0]?.evidence ?? ""));
  const unknown = info.chain.flatMap(({ features }) => features.filter(({ known }) => !known));
  if (unknown.length > 0) found.push(reason("warn", "It has features that this program does not know.", unknown.map(({ name }) => name).join(", ")));
  if (info.chain.some(({ corrupt }) => corrupt)) found.push(reason("bad", "It is marked corrupt.", "A writer found a contradiction in it."));
  if (info.chain.some(({ dirty }) => dirty)) found.push(reason("warn", "It was not closed cleanly.", "Its refcounts may be wrong."));
  const stored = files[0]?.size ?? 0;
  if (info.virtualSize > VAST_BYTES && info.virtualSize > VAST_RATIO * stored) {
    found.push(reason("warn", "It claims to be very large.", `${size(info.virtualSize)} from a file of ${size(stored)}: a copy that is not sparse fills a disk.`));
  }
  return found;
}
