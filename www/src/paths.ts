// Names of files, and places in file systems as text for links: `1:/etc/hosts`, with `%` and two digits for bytes that are no
// plain letters.

/** The last part of a path or an address. */
export function baseName(name: string): string {
  return name.split(/[/\\]/).at(-1) || name;
}

interface AtPath {
  path: string;
}

/** Of files with paths, the one that another one names: where the name leads from there, or else the only one that is called so. */
export function namedBy<F extends AtPath>(from: string, name: string, files: readonly F[]): F | undefined {
  const parts = from.split("/").slice(0, -1);
  for (const part of name.split(/[/\\]/)) {
    if (part === "..") parts.pop();
    else if (part !== "." && part !== "") parts.push(part);
  }
  const there = files.filter(({ path }) => path === parts.join("/")).at(-1);
  if (there) return there;
  const alike = files.filter(({ path }) => baseName(path) === baseName(name));
  // One that was given by itself is meant for whoever asks for it.
  const single = alike.filter(({ path }) => !path.includes("/"));
  return single.length > 0 ? single.at(-1) : alike.length === 1 ? alike[0] : undefined;
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
