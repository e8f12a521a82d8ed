// Changes of metadata that are first tried on a copy of what they touch, so that every byte of them can be shown and undone.

// @ts-expect-error the package's entry is plain JavaScript; its declarations are those of "diskette/full"
import { open as openImage } from "../../../pkg/src/full-web.js";
import type { Image, TargetObject, open as openType } from "diskette/full";

import type { Change, Edit, Ops, Plan } from "../protocol";
import { type Handlers, current } from "./state";

const open = openImage as typeof openType;

type Backed = Image & { setBacking(name: string | null, format: string | null): Promise<void> };

const BLOCK_BYTES = 4096;
/** An edit that touches more is for the command line. */
const MAX_BLOCKS = 16_384;
/** Changes closer than this are shown as one. */
const JOIN_BYTES = 8;

/** A file that keeps what is written to it apart. */
class Overlay implements TargetObject {
  readonly name: string;
  size: number;
  readonly #file: Blob;
  readonly #blocks = new Map<number, Uint8Array<ArrayBuffer>>();
  /** What is behind this in the file does not count: it was cut off once. */
  #valid: number;

  constructor(file: File) {
    this.#file = file;
    this.name = file.name;
    this.size = this.#valid = file.size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    const end = Math.min(offset + length, this.#valid);
    if (offset < end) bytes.set(new Uint8Array(await this.#file.slice(offset, end).arrayBuffer()));
    for (let number = Math.floor(offset / BLOCK_BYTES); number * BLOCK_BYTES < offset + length; number++) {
      const block = this.#blocks.get(number);
      if (!block) continue;
      const from = Math.max(offset, number * BLOCK_BYTES);
      const to = Math.min(offset + length, (number + 1) * BLOCK_BYTES);
      bytes.set(block.subarray(from - number * BLOCK_BYTES, to - number * BLOCK_BYTES), from - offset);
    }
    return bytes;
  }

  async #block(number: number): Promise<Uint8Array> {
    const known = this.#blocks.get(number);
    if (known) return known;
    if (this.#blocks.size === MAX_BLOCKS) {
      throw Object.assign(new Error("this changes more than can be shown; use the diskette command line"), { kind: "over-budget" });
    }
    const block = new Uint8Array(BLOCK_BYTES);
    block.set(await this.read(number * BLOCK_BYTES, BLOCK_BYTES));
    this.#blocks.set(number, block);
    return block;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done;
      const number = Math.floor(at / BLOCK_BYTES);
      const count = Math.min(bytes.length - done, (number + 1) * BLOCK_BYTES - at);
      (await this.#block(number)).set(bytes.subarray(done, done + count), at - number * BLOCK_BYTES);
      done += count;
    }
    this.size = Math.max(this.size, offset + bytes.length);
  }

  resize(length: number): void {
    if (length < this.size) {
      this.#valid = Math.min(this.#valid, length);
      for (const [number, block] of this.#blocks) {
        if (number * BLOCK_BYTES >= length) this.#blocks.delete(number);
        else if ((number + 1) * BLOCK_BYTES > length) block.fill(0, length - number * BLOCK_BYTES);
      }
    }
    this.size = length;
  }

  /** Every byte that is another one now, and those that are new or gone at the end. */
  async changes(): Promise<Change[]> {
    const found: Change[] = [];
    for (const number of [...this.#blocks.keys()].sort((one, two) => one - two)) {
      const start = number * BLOCK_BYTES;
      const after = (this.#blocks.get(number) as Uint8Array<ArrayBuffer>).subarray(0, Math.max(0, this.size - start));
      const before = new Uint8Array(await this.#file.slice(start, start + BLOCK_BYTES).arrayBuffer());
      for (let at = 0; at < after.length; at++) {
        // Behind the old end everything is new, zeroes excepted: a file that grows has them anyway.
        if (after[at] === (before[at] ?? 0)) continue;
        let end = at + 1;
        for (let next = end; next < Math.min(after.length, end + JOIN_BYTES); next++) if (after[next] !== (before[next] ?? 0)) end = next + 1;
        found.push({ offset: start + at, before: before.slice(at, end), after: after.slice(at, end) });
        at = end;
      }
    }
    return found;
  }

  /** What the file loses at its end. */
  async lost(): Promise<Change[]> {
    const from = Math.min(this.size, this.#file.size);
    if (this.#file.size - from > MAX_BLOCKS * BLOCK_BYTES) {
      throw Object.assign(new Error("this cuts off more than an undo file can keep; use the diskette command line"), { kind: "over-budget" });
    }
    const before = new Uint8Array(await this.#file.slice(from).arrayBuffer());
    return before.length > 0 ? [{ offset: from, before, after: new Uint8Array() }] : [];
  }
}

async function make(file: File, edit: Edit, format: string): Promise<Plan> {
  const overlay = new Overlay(file);
  const { passphrase } = current().opening.wish;
  const { corrupt, dirty } = current().image.info();
  if (edit.kind !== "repair-leaks" && (corrupt || dirty)) {
    const why = corrupt ? "it is marked corrupt" : "it was not closed cleanly";
    throw Object.assign(new Error(`${why}; repair it first (diskette check -r all)`), { kind: "denied" });
  }
  const how = edit.kind === "repair-leaks" ? { structureOnly: true } : { backing: null };
  const image = await open(overlay, { writable: true, format, ...how, ...(passphrase ? { passphrase } : {}) });
  try {
    if (edit.kind === "repair-leaks") await image.check({ repair: "leaks" });
    else if (edit.kind === "delete-snapshot") await image.snapshots.delete(edit.name);
    else await (image as Backed).setBacking(edit.name, edit.format);
    await image.close();
  } catch (error) {
    await image.abandon().catch(() => {});
    throw error;
  }
  const changes = [...(await overlay.changes()), ...(await overlay.lost())];
  return { name: file.name, sizeBefore: file.size, sizeAfter: overlay.size, modified: file.lastModified, changes };
}

const same = (one: Uint8Array, two: Uint8Array): boolean => one.length === two.length && one.every((byte, at) => byte === two[at]);

/** Writes a plan into the file, if that still is what the plan was made for. It changes all at once, when it is closed. */
async function apply({ handle, plan }: Ops["apply-edit"]["ask"]): Promise<null> {
  const file = await handle.getFile();
  const changed = (): Error => Object.assign(new Error(`${file.name} is not the file that was looked at, or was changed since; open it again`), { kind: "io" });
  if (file.size !== plan.sizeBefore || file.name !== plan.name) throw changed();
  for (const { offset, before } of plan.changes) {
    if (!same(new Uint8Array(await file.slice(offset, offset + before.length).arrayBuffer()), before)) throw changed();
  }
  const options = { keepExistingData: true, mode: "exclusive" };
  const writable = await handle.createWritable(options as FileSystemCreateWritableOptions);
  try {
    if (plan.sizeAfter !== plan.sizeBefore) await writable.truncate(plan.sizeAfter);
    for (const { offset, after } of plan.changes) {
      if (after.length > 0) await writable.write({ type: "write", position: offset, data: after });
    }
    await writable.close();
  } catch (error) {
    await writable.abort().catch(() => {});
    throw error;
  }
  return null;
}

export const editing: Pick<Handlers, "plan-edit" | "apply-edit"> = {
  async "plan-edit"({ edit }) {
    const { image, file } = current();
    if (!file) throw Object.assign(new Error("an image behind an address cannot be changed here"), { kind: "read-only" });
    return make(file, edit, image.info().format);
  },
  "apply-edit": apply,
};
