// Undo files: what an edit replaced, so that it can be put back. JSON, bytes in base64.

import type { Change, Plan } from "./protocol";

interface Stored {
  "diskette-undo": 1;
  name: string;
  sizeBefore: number;
  sizeAfter: number;
  changes: { offset: number; before: string; after: string }[];
}

function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

const fromBase64 = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** The undo file of a plan. */
export function toUndoFile(plan: Plan): Blob {
  const changes = plan.changes.map(({ offset, before, after }) => ({ offset, before: toBase64(before), after: toBase64(after) }));
  const stored: Stored = { "diskette-undo": 1, ...plan, changes };
  return new Blob([JSON.stringify(stored, null, 1)], { type: "application/json" });
}

const whole = (number: unknown): number => {
  if (typeof number !== "number" || !Number.isSafeInteger(number) || number < 0) throw new Error("it is not an undo file, or is damaged: a number in it is none");
  return number;
};

/** The plan that puts back what an undo file kept. */
export function fromUndoFile(text: string): Plan {
  let stored: Partial<Stored>;
  try {
    stored = JSON.parse(text) as Partial<Stored>;
  } catch {
    throw new Error("it is not an undo file: it is no JSON");
  }
  if (stored?.["diskette-undo"] !== 1 || typeof stored.name !== "string" || !Array.isArray(stored.changes)) throw new Error("it is not an undo file of this inspector");
  const changes = stored.changes.map(({ offset, before, after }): Change => ({ offset: whole(offset), before: fromBase64(after), after: fromBase64(before) }));
  return { name: stored.name, sizeBefore: whole(stored.sizeAfter), sizeAfter: whole(stored.sizeBefore), changes };
}
