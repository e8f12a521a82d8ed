// Names of files, and places in file systems as text for links: `1:/etc/hosts`, with `%` and two digits for bytes that are no
// plain letters.

/** The last part of a path or an address. */
export function baseName(name: string): string {
  return name.split(/[/\\]/).at(-1) || name;
}

/** A name that begins at a root, of whatever system. */
const ROOTED = /^([/\\]|[A-Za-z]:[/\\])/;
/** A name of something that is no file of this machine. */
const ELSEWHERE = /^[a-z][a-z0-9+.-]+:/i;

const steps = (name: string): string[] => name.split(/[/\\]/).filter((part) => part !== "" && part !== ".");

/** Files by their paths in the folder that they were chosen with. One that was given by itself has its name as path. */
export class Files<F extends { path: string }> {
  readonly #byPath = new Map<string, F>();
  readonly #byName = new Map<string, F[]>();

  constructor(files: Iterable<F>) {
    for (const file of files) {
      this.#byPath.set(file.path, file);
      const name = baseName(file.path);
      const alike = this.#byName.get(name);
      if (alike) alike.push(file);
      else this.#byName.set(name, [file]);
    }
  }

  at(path: string): F | undefined {
    return this.#byPath.get(path);
  }

  /**
   * The one that a file at `from` names: the one that the name leads to from there; one that was given by itself and is called
   * so; or, for a name that begins at a root, the one in the folder whose path has most of the name's end.
   */
  named(from: string, name: string): F | undefined {
    const local = name.replace(/^file:/i, "");
    const rooted = ROOTED.test(local);
    const elsewhere = !rooted && ELSEWHERE.test(local);
    if (!rooted && !elsewhere) {
      const there = this.#byPath.get(resolve(from, local) ?? "");
      if (there) return there;
    }
    const alike = (this.#byName.get(baseName(local)) ?? []).filter(({ path }) => path !== from || !path.includes("/"));
    const single = alike.filter(({ path }) => !path.includes("/"));
    if (single.length > 0) return single.at(-1);
    if (!rooted) return undefined;
    const shared = alike.map(({ path }) => commonEnd(steps(local), steps(path)));
    const most = Math.max(...shared);
    const best = alike.filter((_, index) => shared[index] === most);
    return best.length === 1 ? best[0] : undefined;
  }
}

/** Where a name leads from a file; nothing if that is outside of the folder. */
function resolve(from: string, name: string): string | undefined {
  const parts = from.split("/").slice(0, -1);
  for (const part of steps(name)) {
    if (part !== "..") parts.push(part);
    else if (parts.pop() === undefined) return undefined;
  }
  return parts.join("/");
}

/** How many parts two names have in common at their ends. */
function commonEnd(one: string[], two: string[]): number {
  let count = 0;
  while (count < Math.min(one.length, two.length) && one.at(-1 - count) === two.at(-1 - count)) count++;
  return count;
}

export interface FilePath {
  volume: number;
  path: Uint8Array[];
}

const PLAIN = /^[A-Za-z0-9._~-]$/;

export function encodePath(volume: number, path: readonly Uint8Array[]): string {
  const name = (bytes: Uint8Array): string =>
    Array.from(bytes, (byte) => (PLAIN.test(String.fromCharCode(byte)) ? String.fromCharCode(byte) : `%${byte.toString(16).padStart(2, "0")}`)).join("");
  return `${volume}:/${path.map(name).join("/")}`;
}

/** What a text means; nothing if it is none of these. */
export function decodePath(text: string): FilePath | undefined {
  const parts = /^(\d{1,4}):\/(.*)$/.exec(text);
  if (!parts) return undefined;
  const names = (parts[2] as string).split("/").filter((name) => name !== "");
  if (!names.every((name) => /^([A-Za-z0-9._~-]|%[0-9a-f]{2})+$/i.test(name))) return undefined;
  const bytes = (name: string): Uint8Array =>
    Uint8Array.from(name.match(/%[0-9a-f]{2}|./gi) ?? [], (letter) => (letter.length === 3 ? parseInt(letter.slice(1), 16) : letter.charCodeAt(0)));
  return { volume: Number(parts[1]), path: names.map(bytes) };
}
