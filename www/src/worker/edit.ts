// Changes of metadata that are first tried on a copy of what they touch, so that every byte of them can be shown and undone.

import { open } from "../../../pkg/inspector/index.js";
import type { TargetObject } from "diskette/inspector";

import { baseName } from "../paths";
import type { Change, Edit, Plan } from "../protocol";
import { type Handlers, current } from "./state";

const BLOCK_BYTES = 4096;
/** An edit that touches more is for the command line. */
const MAX_BLOCKS = 16_384;
/** Changes closer than this are shown as one. */
const JOIN_BYTES = 8;

/** A file that is read, whatever it is in. */
interface Original {
  readonly name: string;
  readonly size: number;
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
}

/** A file that keeps what is written to it apart. */
class Overlay implements TargetObject {
  readonly name: string;
  size: number;
  readonly #file: Original;
  readonly #blocks = new Map<number, Uint8Array<ArrayBuffer>>();
  /** What is behind this in the file does not count: it was cut off once. */
  #valid: number;

  constructor(file: Original) {
    this.#file = file;
    this.name = file.name;
    this.size = this.#valid = file.size;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    const end = Math.min(offset + length, this.#valid);
    if (offset < end) bytes.set(await this.#file.read(offset, end - offset));
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
      const before = await this.#old(start, start + BLOCK_BYTES);
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

  /** Bytes of the file as it is, as far as there are any. */
  async #old(start: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    const length = Math.min(end, this.#file.size) - start;
    return length > 0 ? this.#file.read(start, length) : new Uint8Array();
  }

  /** What the file loses at its end. */
  async lost(): Promise<Change[]> {
    const from = Math.min(this.size, this.#file.size);
    if (this.#file.size - from > MAX_BLOCKS * BLOCK_BYTES) {
      throw Object.assign(new Error("this cuts off more than an undo file can keep; use the diskette command line"), { kind: "over-budget" });
    }
    const before = await this.#old(from, this.#file.size);
    return before.length > 0 ? [{ offset: from, before, after: new Uint8Array() }] : [];
  }
}

async function make(edit: Edit): Promise<Plan> {
  const { image: looked, opening } = current();
  const { name: address = "image", size = 0 } = looked.files[0] ?? {};
  const name = (opening.from === "url" && opening.served?.name) || address;
  const file: Original = { name: baseName(name), size, read: async (offset, length) => (await looked.readFile(offset, length)).slice() };
  const overlay = new Overlay(file);
  const { corrupt, dirty, format } = looked.info();
  if (edit.kind !== "repair-leaks" && (corrupt || dirty)) {
    const why = corrupt ? "it is marked corrupt" : "it was not closed cleanly";
    throw Object.assign(new Error(`${why}; repair it first (diskette check -r all)`), { kind: "denied" });
  }
  const { passphrase } = opening.wish;
  const how = edit.kind === "repair-leaks" ? { structureOnly: true } : { noBacking: true };
  const image = await open(overlay, { writable: true, format, ...how, ...(passphrase ? { passphrase } : {}) });
  try {
    if (edit.kind === "repair-leaks") await image.check({ repair: "leaks" });
    else if (edit.kind === "delete-snapshot") await image.snapshots.delete(edit.name);
    else await image.setBacking(edit.name, edit.format);
    await image.close();
  } catch (error) {
    await image.abandon().catch(() => {});
    throw error;
  }
  const changes = [...(await overlay.changes()), ...(await overlay.lost())];
  return { undo: false, name: file.name, sizeBefore: file.size, sizeAfter: overlay.size, changes };
}

const same = (one: Uint8Array, two: Uint8Array): boolean => one.length === two.length && one.every((byte, at) => byte === two[at]);

function changed(name: string): Error {
  return Object.assign(new Error(`${name} is not the file that was looked at, or was changed since; open it again`), { kind: "io" });
}

/**
 * Whether the file still is what the plan was made for. To undo a change that was interrupted, each place may hold what it
 * held before that or after.
 */
async function confirm(plan: Plan, size: number, read: (offset: number, length: number) => Promise<Uint8Array>): Promise<void> {
  if (size !== plan.sizeBefore && !(plan.undo && size === plan.sizeAfter)) throw changed(plan.name);
  for (const { offset, before, after } of plan.changes) {
    const holds = async (bytes: Uint8Array): Promise<boolean> => {
      const length = Math.max(0, Math.min(bytes.length, size - offset));
      return length === 0 || same(await read(offset, length), bytes.subarray(0, length));
    };
    if (!(await holds(before)) && !(plan.undo && (await holds(after)))) throw changed(plan.name);
  }
}

/** Writes a plan into a file that was picked. It changes all at once, when it is closed. */
async function applyToHandle(handle: FileSystemFileHandle, plan: Plan): Promise<void> {
  const file = await handle.getFile();
  if (file.name !== plan.name) throw changed(file.name);
  await confirm(plan, file.size, async (offset, length) => new Uint8Array(await file.slice(offset, offset + length).arrayBuffer()));
  const options = { keepExistingData: true, mode: "exclusive" };
  const writable = await handle.createWritable(options as FileSystemCreateWritableOptions);
  try {
    await writable.truncate(plan.sizeAfter);
    for (const { offset, after } of plan.changes) {
      if (after.length > 0) await writable.write({ type: "write", position: offset, data: after });
    }
    await writable.close();
  } catch (error) {
    await writable.abort().catch(() => {});
    throw error;
  }
}

/** `diskette serve` takes no more at once. */
const MAX_SENT = 8 << 20;

/** Asks `diskette serve`; an answer that is none is an error with what it says. */
async function request(url: string, options: RequestInit): Promise<Response> {
  const response = await fetch(url, options);
  if (response.ok) return response;
  const kind = response.headers.get("Diskette-Error") ?? "io";
  throw Object.assign(new Error((await response.text()).trim() || `diskette serve answered ${response.status}`), { kind });
}

/** Writes a plan into a file that `diskette serve` has. If that fails half way, what was written is put back. */
async function applyToServer(url: string, plan: Plan): Promise<void> {
  const { writer } = (await (await request(`${url}/writer`, { method: "POST" })).json()) as { writer: string };
  const headers = { "Diskette-Writer": writer };
  const write = async (offset: number, bytes: Uint8Array<ArrayBuffer>): Promise<void> => {
    for (let at = 0; at < bytes.length; at += MAX_SENT) {
      const part = bytes.subarray(at, at + MAX_SENT);
      const range = `bytes ${offset + at}-${offset + at + part.length - 1}/*`;
      await request(url, { method: "PATCH", headers: { ...headers, "Content-Range": range }, body: part });
    }
  };
  const resize = (length: number): Promise<Response> => request(`${url}/length`, { method: "PUT", headers, body: String(length) });
  const read = async (offset: number, length: number): Promise<Uint8Array> =>
    new Uint8Array(await (await request(url, { headers: { Range: `bytes=${offset}-${offset + length - 1}` } })).arrayBuffer());
  try {
    const size = Number((await request(url, { method: "HEAD" })).headers.get("Content-Length"));
    await confirm(plan, size, read);
    const done: Change[] = [];
    try {
      if (plan.sizeAfter > size) await resize(plan.sizeAfter);
      for (const change of plan.changes) {
        done.push(change);
        if (change.after.length > 0) await write(change.offset, change.after);
      }
      if (plan.sizeAfter < size) await resize(plan.sizeAfter);
      await request(`${url}/flush`, { method: "POST", headers });
    } catch (error) {
      // Everything is put back that can be, whatever becomes of the rest.
      const steps: (() => Promise<unknown>)[] = done.reverse().map(({ offset, before }) => () => write(offset, before));
      if (plan.sizeAfter !== size) steps.unshift(() => resize(size));
      steps.push(() => request(`${url}/flush`, { method: "POST", headers }));
      let failed = 0;
      for (const step of steps) await step().catch(() => failed++);
      if (failed > 0) throw Object.assign(new Error((error as Error).message), { kind: "half-changed" });
      throw error;
    }
  } finally {
    await request(`${url}/writer`, { method: "DELETE", headers }).catch(() => {
      // The server lets go by itself after a while.
    });
  }
}

export const editing: Pick<Handlers, "plan-edit" | "check-plan" | "apply-edit"> = {
  "plan-edit": ({ edit }) => make(edit),
  async "check-plan"({ plan }) {
    const { image } = current();
    await confirm(plan, image.files[0]?.size ?? 0, (offset, length) => image.readFile(offset, length));
    return null;
  },
  async "apply-edit"({ to, plan }) {
    await ("handle" in to ? applyToHandle(to.handle, plan) : applyToServer(to.url, plan));
    return null;
  },
};
