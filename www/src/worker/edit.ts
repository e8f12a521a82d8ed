// Changes of metadata that are first tried on a copy of what they touch, so that every byte of them can be shown and undone.

import { open } from "../../../pkg/inspector/index.js";
import type { TargetObject } from "diskette/inspector";

import { baseName } from "../paths";
import type { Edit, PlanInfo, Side } from "../protocol";
import { Overlay, type Original } from "./overlay";
import { type Handlers, current, whenReplaced } from "./state";
import { type Change, MAX_UNDO_BYTES, type Plan, fromUndoFile, toUndoFile } from "./undo";

/** Works out what an edit changes in a file. */
async function work(edit: Edit, file: Original): Promise<Plan> {
  const { image: looked, opening } = current();
  const overlay = new Overlay(file);
  const { passphrase } = opening.wish;
  const how = edit.kind === "repair-leaks" ? { structureOnly: true } : { noBacking: true };
  const image = await open(overlay, { writable: true, format: looked.info().format, ...how, ...(passphrase ? { passphrase } : {}) });
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

async function make(edit: Edit): Promise<Plan> {
  const { image: looked, opening } = current();
  const { name: address = "image", size = 0 } = looked.files[0] ?? {};
  const name = (opening.from === "url" && opening.served?.name) || address;
  const { corrupt, dirty } = looked.info();
  if (edit.kind !== "repair-leaks" && (corrupt || dirty)) {
    const why = corrupt ? "it is marked corrupt" : "it was not closed cleanly";
    throw Object.assign(new Error(`${why}; repair it first (diskette check -r all)`), { kind: "denied" });
  }
  return work(edit, { name: baseName(name), size, read: async (offset, length) => (await looked.readFile(offset, length)).slice() });
}

const same = (one: Uint8Array, two: Uint8Array): boolean => one.length === two.length && one.every((byte, at) => byte === two[at]);

function changed(name: string): Error {
  return Object.assign(new Error(`${name} is not the file that was looked at, or was changed since; open it again`), { kind: "io" });
}

/** Whether each place of a plan holds what it held before, or, to undo a change that was interrupted, after. */
async function confirm(plan: Plan, file: Original): Promise<void> {
  const { size } = file;
  if (size !== plan.sizeBefore && !(plan.undo && size === plan.sizeAfter)) throw changed(plan.name);
  for (const { offset, before, after } of plan.changes) {
    const holds = async (bytes: Uint8Array): Promise<boolean> => {
      const length = Math.max(0, Math.min(bytes.length, size - offset));
      return length === 0 || same(await file.read(offset, length), bytes.subarray(0, length));
    };
    if (!(await holds(before)) && !(plan.undo && (await holds(after)))) throw changed(plan.name);
  }
}

/** How much of an image contradicts itself, leaks aside; nothing if that cannot be found out. */
async function contradictions(file: TargetObject): Promise<number | undefined> {
  const { format } = current().image.info();
  const image = await open(file, { format }).catch(() => undefined);
  if (!image) return undefined;
  try {
    const { corruptions, checkErrors } = await image.check();
    return corruptions + checkErrors;
  } finally {
    await image.close();
  }
}

/**
 * Whether a plan still is right for a file. The places that change can be as they were although others, which it depends on,
 * are not. So an edit is worked out once more, and has to come to the same; and what an undo file puts back may not make an
 * image that contradicts itself more than it does.
 */
async function confirmAnew({ plan, edit }: Prepared, file: Original): Promise<void> {
  await confirm(plan, file);
  if (edit) {
    const again = await work(edit, file).catch(() => undefined);
    const alike =
      again?.sizeAfter === plan.sizeAfter &&
      again.changes.length === plan.changes.length &&
      again.changes.every(({ offset, before, after }, index) => {
        const planned = plan.changes[index] as Change;
        return offset === planned.offset && same(before, planned.before) && same(after, planned.after);
      });
    if (!alike) throw changed(plan.name);
    return;
  }
  const now = await contradictions(new Overlay(file));
  const undone = new Overlay(file);
  undone.resize(plan.sizeAfter);
  for (const { offset, after } of plan.changes) await undone.write(offset, after);
  const then = await contradictions(undone);
  if (then === undefined ? now !== undefined : then > (now ?? Infinity)) {
    throw Object.assign(new Error(`${plan.name} was changed since the undo file was saved: it would contradict itself`), { kind: "denied" });
  }
}

/** Writes a plan into a file that was picked. It changes all at once, when it is closed. */
async function applyToHandle(handle: FileSystemFileHandle, prepared: Prepared): Promise<void> {
  const { plan } = prepared;
  const file = await handle.getFile();
  const { name, size } = file;
  if (name !== plan.name) throw changed(name);
  await confirmAnew(prepared, { name, size, read: async (offset, length) => new Uint8Array(await file.slice(offset, offset + length).arrayBuffer()) });
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
  throw Object.assign(new Error((await response.text()).trim() || `diskette serve answered ${response.status}`), { kind, status: response.status });
}

/** Writes a plan into a file that `diskette serve` has. If that fails half way, what was written is put back. */
async function applyToServer(url: string, prepared: Prepared): Promise<void> {
  const { plan } = prepared;
  const { writer } = (await (await request(`${url}/writer`, { method: "POST" })).json()) as { writer: string };
  const headers: Record<string, string> = { "Diskette-Writer": writer };
  let expected: Record<string, string> = {};
  let touched = false;
  /** Makes a change. The first one is made only to the file that was looked at. */
  const change = async (url: string, options: RequestInit): Promise<Response> => {
    const sent = { ...headers, ...(options.headers as Record<string, string>), ...expected };
    expected = {};
    try {
      const response = await request(url, { ...options, headers: sent });
      touched = true;
      return response;
    } catch (error) {
      // What is refused was not done; what failed may have been.
      const { status = 500 } = error as { status?: number };
      touched ||= status >= 500 && status !== 503;
      throw error;
    }
  };
  const write = async (offset: number, bytes: Uint8Array<ArrayBuffer>): Promise<void> => {
    for (let at = 0; at < bytes.length; at += MAX_SENT) {
      const part = bytes.subarray(at, at + MAX_SENT);
      const range = `bytes ${offset + at}-${offset + at + part.length - 1}/*`;
      await change(url, { method: "PATCH", headers: { "Content-Range": range }, body: part });
    }
  };
  const resize = (length: number): Promise<Response> => change(`${url}/length`, { method: "PUT", body: String(length) });
  const read = async (offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> =>
    new Uint8Array(await (await request(url, { headers: { Range: `bytes=${offset}-${offset + length - 1}` } })).arrayBuffer());
  try {
    const { headers: now } = await request(url, { method: "HEAD" });
    const size = Number(now.get("Content-Length"));
    await confirmAnew(prepared, { name: plan.name, size, read });
    expected = { "If-Match": now.get("ETag") ?? "*" };
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
      if (!touched) throw (error as { status?: number }).status === 412 ? changed(plan.name) : error;
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

interface Prepared {
  number: number;
  plan: Plan;
  /** What the plan is for, unless it comes from an undo file. */
  edit?: Edit;
}

let plans = 0;
/** What is previewed: it can be applied, and no other. */
let prepared: Prepared | undefined;

whenReplaced(() => (prepared = undefined));

function keep(plan: Plan, edit?: Edit): PlanInfo {
  prepared = { number: ++plans, plan, ...(edit ? { edit } : {}) };
  const { undo, name, sizeBefore, sizeAfter, changes } = plan;
  const bytes = changes.reduce((sum, { before, after }) => sum + Math.max(before.length, after.length), 0);
  return { plan: plans, undo, name, sizeBefore, sizeAfter, places: changes.length, bytes };
}

function previewed(number: number): Prepared {
  if (prepared?.number !== number) throw Object.assign(new Error("what was previewed is not the last that was worked out; preview it again"), { kind: "closed" });
  return prepared;
}

/** The plan that an undo file holds, if it is one of the image that is open. */
async function takeBack(file: File): Promise<Plan> {
  if (file.size > MAX_UNDO_BYTES) throw new Error("it is too large for an undo file");
  const plan = fromUndoFile(await file.text());
  const { image } = current();
  await confirm(plan, { name: plan.name, size: image.files[0]?.size ?? 0, read: async (offset, length) => (await image.readFile(offset, length)).slice() });
  return plan;
}

/** Writes an undo file to a place that was picked, and is sure of it; else gives it as something to download. */
async function saveUndo(plan: Plan, handle: FileSystemFileHandle | null): Promise<Blob | null> {
  const file = toUndoFile(plan);
  if (file.size > MAX_UNDO_BYTES) throw Object.assign(new Error("its undo file would be larger than what is taken back; use the diskette command line"), { kind: "over-budget" });
  if (!handle) return file;
  const writable = await handle.createWritable();
  await file.stream().pipeTo(writable);
  const { size } = await handle.getFile();
  if (size !== file.size) throw new Error(`of the undo file ${size} bytes were stored instead of ${file.size}`);
  return null;
}

const part = (bytes: Uint8Array<ArrayBuffer>, from: number, count: number): Side => ({ bytes: bytes.slice(from, from + count), length: bytes.length });

export const editing: Pick<Handlers, "plan-edit" | "plan-undo" | "plan-places" | "save-undo" | "apply-edit"> = {
  "plan-edit": async ({ edit }) => keep(await make(edit), edit),
  "plan-undo": async ({ file }) => keep(await takeBack(file)),
  async "plan-places"({ plan, from, count, skip, bytes }) {
    const some = previewed(plan).plan.changes.slice(from, from + count);
    return some.map(({ offset, before, after }) => ({ offset, before: part(before, skip, bytes), after: part(after, skip, bytes) }));
  },
  "save-undo": ({ plan, handle }) => saveUndo(previewed(plan).plan, handle),
  async "apply-edit"({ to, plan: number }) {
    const chosen = previewed(number);
    await ("handle" in to ? applyToHandle(to.handle, chosen) : applyToServer(to.url, chosen));
    return null;
  },
};
