// Partitions and files of a disk of which only bytes are known: asks the module, fetches what it lacks, and asks again.

import start, { Contents as Module, __wbg_reset_state as startAfresh } from "../contents/contents.js";

/** What was recognised in a volume. */
export interface Found {
  name: string;
  label: string | null;
  uuid: string | null;
}

export type Table = "none" | "gpt" | "mbr" | "apm";

/** A partition, or a disk that is not divided. */
export interface Volume {
  /** From 1 on as the table counts; 0 for the whole disk. */
  number: number;
  start: number;
  length: number;
  table: Table;
  typeId: string;
  typeName: string | null;
  label: string | null;
  guid: string | null;
  flags: string[];
  found: Found | null;
  /** Whether its files can be looked at. */
  readable: boolean;
}

/** How a disk is divided. */
export interface Layout {
  table: Table;
  sectorSize: number;
  diskId: string | null;
  /** What is wrong or remarkable, for a person. */
  notes: string[];
  volumes: Volume[];
}

export interface Entry {
  /** The name to show. */
  name: string;
  /** The name as it is on the disk, for paths. */
  bytes: Uint8Array;
  kind: "file" | "directory" | "link" | "other";
  size: number;
  /** Seconds since 1970; of FAT as if its local time were UTC. */
  modified: number | null;
  mode: number | null;
  /** Where a link leads to. */
  target: string | null;
}

export interface Page {
  entries: Entry[];
  more: boolean;
}

/** The names on the way from the root, as `Entry.bytes` has them. */
export type Path = readonly Uint8Array[];

/** Reads from the disk; the answer has all the bytes. */
export type Read = (offset: number, length: number, signal: AbortSignal | undefined) => Promise<Uint8Array>;

/** Why there is no answer. `kind` is `not-found`, `corrupt`, `unsupported`, `over-budget` or `invalid`. */
export class ContentsError extends Error {
  readonly kind: string;
  readonly offset: number | null;
  constructor(kind: string, message: string, offset: number | null = null, options?: ErrorOptions) {
    super(message, options);
    this.name = "ContentsError";
    this.kind = kind;
    this.offset = offset;
  }
}

type Answer<T> = { value: T } | { needs: { offset: number; length: number }[] };

/** Reads that are under way at the same time. */
const READS = 16;

const DAMAGED = "this file system is damaged in a way that its reader cannot cope with";

/** Counts the instances of the module: a trap ends one, and with it everything that lives in it. */
let instance = 0;

function isError(value: unknown): value is { kind: string; message: string; offset: number | null } {
  return typeof value === "object" && value !== null && !(value instanceof Error) && "kind" in value;
}

function joined(path: Path): Uint8Array {
  const bytes = new Uint8Array(path.reduce((length, part) => length + 1 + part.length, 0));
  let at = 0;
  for (const part of path) {
    bytes[at] = 0x2f;
    bytes.set(part, at + 1);
    at += 1 + part.length;
  }
  return bytes;
}

/** A disk whose contents are looked at. Calls are answered one after the other. */
export class DiskContents {
  readonly #read: Read;
  readonly #size: number;
  readonly #sectorSize: number;
  #module: Module | undefined;
  #instance = -1;
  #last: Promise<unknown> = Promise.resolve();

  constructor(read: Read, size: number, sectorSize = 512) {
    this.#read = read;
    this.#size = size;
    this.#sectorSize = sectorSize;
  }

  layout(signal?: AbortSignal): Promise<Layout> {
    return this.#ask((module) => module.layout(), signal);
  }

  /** At most `count` entries of a directory, from number `from` on. `volume` is an index of `Layout.volumes`. */
  list(volume: number, path: Path, from: number, count: number, signal?: AbortSignal): Promise<Page> {
    const bytes = joined(path);
    return this.#ask((module) => module.list(volume, bytes, from, count), signal);
  }

  /** Part of a file; fewer bytes only at its end, and never more than 16 MiB. */
  read(volume: number, path: Path, offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array> {
    const bytes = joined(path);
    return this.#ask((module) => module.read(volume, bytes, offset, length), signal);
  }

  /** Lets go of the memory; the disk can be asked again, and then begins anew. */
  close(): void {
    if (this.#instance === instance) this.#module?.free();
    this.#module = undefined;
  }

  #ask<T>(call: (module: Module) => Answer<T>, signal: AbortSignal | undefined): Promise<T> {
    const answer = this.#last.then(() => this.#answer(call, signal));
    this.#last = answer.catch(() => {});
    return answer;
  }

  async #answer<T>(call: (module: Module) => Answer<T>, signal: AbortSignal | undefined): Promise<T> {
    await start();
    for (;;) {
      signal?.throwIfAborted();
      const answer = this.#run(call);
      if ("value" in answer) return answer.value;
      const asked = instance;
      const fetched = await this.#fetch(answer.needs, signal);
      // Meanwhile another disk may have ended the instance; then everything is asked for again.
      if (asked !== instance) continue;
      this.#run((module) => {
        for (const { offset, bytes } of fetched) module.give(offset, bytes);
        return { value: undefined };
      });
    }
  }

  /** Calls the module, whatever it throws. */
  #run<T>(call: (module: Module) => T): T {
    try {
      if (this.#instance !== instance || !this.#module) {
        this.#module = new Module(this.#size, this.#sectorSize);
        this.#instance = instance;
      }
      return call(this.#module);
    } catch (cause) {
      if (isError(cause)) throw new ContentsError(cause.kind, cause.message, cause.offset);
      // A trap, or no more stack or memory: nothing in this instance can be relied on.
      instance += 1;
      this.#module = undefined;
      startAfresh();
      throw new ContentsError("corrupt", DAMAGED, null, { cause });
    }
  }

  async #fetch(needs: { offset: number; length: number }[], signal: AbortSignal | undefined) {
    const fetched: { offset: number; bytes: Uint8Array }[] = [];
    const waiting = needs.values();
    const worker = async (): Promise<void> => {
      for (const { offset, length } of waiting) {
        signal?.throwIfAborted();
        const bytes = await this.#read(offset, length, signal);
        if (bytes.length !== length) {
          throw new ContentsError("invalid", `${bytes.length} bytes were read where ${length} were asked for`, offset);
        }
        fetched.push({ offset, bytes });
      }
    };
    await Promise.all(Array.from({ length: Math.min(READS, needs.length) }, worker));
    return fetched;
  }
}
