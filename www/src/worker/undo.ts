// Undo files: what an edit replaced, so that it can be put back. JSON, bytes in base64.

/** Bytes of a file that become others. At its end there may be fewer after, or before. */
export interface Change {
  offset: number;
  before: Uint8Array<ArrayBuffer>;
  after: Uint8Array<ArrayBuffer>;
}

/** What an edit does to a file. */
export interface Plan {
  /** It puts back what an undo file kept. A file that was changed only in part will do for that. */
  undo: boolean;
  name: string;
  sizeBefore: number;
  sizeAfter: number;
  /** In order, and apart from each other. */
  changes: Change[];
}

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

function fromBase64(text: unknown): Uint8Array<ArrayBuffer> {
  if (typeof text !== "string") throw new Error("it is not an undo file, or is damaged: bytes in it are none");
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** How much of a range lies before the end of a file. */
const within = (offset: number, length: number, size: number): number => Math.max(0, Math.min(length, size - offset));

/** Undo files are read whole, so they are bounded. */
export const MAX_UNDO_BYTES = 384 << 20;

/** The undo file of a plan. */
export function toUndoFile({ name, sizeBefore, sizeAfter, changes }: Plan): Blob {
  const head: Omit<Stored, "changes"> = { "diskette-undo": 1, name, sizeBefore, sizeAfter };
  const parts = [`${JSON.stringify(head).slice(0, -1)},"changes":[`];
  changes.forEach(({ offset, before, after }, index) => {
    parts.push(`${index === 0 ? "" : ","}\n${JSON.stringify({ offset, before: toBase64(before), after: toBase64(after) })}`);
  });
  return new Blob([...parts, "\n]}\n"], { type: "application/json" });
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
  const [sizeBefore, sizeAfter] = [whole(stored.sizeAfter), whole(stored.sizeBefore)];
  let end = 0;
  const changes = stored.changes.map((change: unknown): Change => {
    const { offset: at, before: old, after: fresh } = (change ?? {}) as Record<string, unknown>;
    const [offset, before, after] = [whole(at), fromBase64(fresh), fromBase64(old)];
    const length = Math.max(before.length, after.length);
    // A place has all its bytes on both sides, but for those that lie behind an end of the file.
    const sound = offset >= end && length > 0 && before.length === within(offset, length, sizeBefore) && after.length === within(offset, length, sizeAfter);
    if (!sound) throw new Error(`it is not an undo file, or is damaged: the place at ${offset} does not fit the others or the file`);
    end = offset + length;
    return { offset, before, after };
  });
  return { undo: true, name: stored.name, sizeBefore, sizeAfter, changes };
}
