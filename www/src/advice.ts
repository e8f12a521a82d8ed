// What to do about a failure, by its kind.

const ADVICE: Record<string, string> = {
  invalid: "The file is cut off, damaged, or not an image of this format. Compare its size and checksum with where it came from.",
  corrupt: "The image contradicts itself. Keep it as it is, work on a copy, and see what Check says.",
  unsupported: "Rather than show something wrong, the inspector shows nothing. A newer version may know it.",
  denied: "The image needs another file, or a key. Choose all files together: the image and those it names.",
  "too-large": "A page cannot count beyond 8 PiB. The diskette command line can.",
  "over-budget": "The image asks for more than a sound one needs. If you trust it, use the diskette command line.",
  "not-found": "There is nothing at this place any more. Check the name or address.",
  "permission-denied": "It is not permitted. Check the rights of the file, or whether the server asks for a login.",
  "no-space": "The browser has no room for it. Free some space, or choose a file on another disk.",
  "read-only": "It can only be read where it comes from. Copy it to a file of this machine and choose that.",
  busy: "Somebody else has it open. Close it there and try again.",
  locked: "Type it again. Keyboard layout and capitals matter, and so does each space.",
  closed: "Open the image again.",
  internal: "Open the image again. If it happens each time, please tell us what image it is.",
  cancelled: "",
  crashed: "Open the image again. If it happens each time, the image is built to break its readers: do not use it elsewhere.",
  io: "Is the file still there and unchanged? A file that was changed since it was chosen has to be chosen again.",
};

const SERVER_ADVICE = "A server must answer range requests and allow this page to read (CORS). Else download the file and choose it here.";

/** Answers of a server that are about the file and not about how it serves. */
const SAID = new Set(["not-found", "permission-denied"]);

/** Failures after which the file itself can still be read. */
const READABLE = new Set(["invalid", "corrupt", "unsupported", "too-large", "over-budget"]);

const blamesServer = (kind: string, operation: string | null): boolean => operation === "fetch" && !SAID.has(kind);

/** A sentence or two, or nothing. */
export function adviceFor(kind: string, operation: string | null): string {
  return blamesServer(kind, operation) ? SERVER_ADVICE : (ADVICE[kind] ?? "");
}

/** What went wrong, and what to do about it. */
export function explain(error: unknown): string {
  const { message = String(error), kind = "", operation = null } = error as { message?: string; kind?: string; operation?: string | null };
  const advice = adviceFor(kind, operation);
  return advice === "" ? message : `${/[.!?]$/.test(message) ? message : `${message}.`} ${advice}`;
}

/** Whether the bytes of the file can be looked at although it did not open. */
export function bytesCanBeShown(kind: string, operation: string | null): boolean {
  return !blamesServer(kind, operation) && READABLE.has(kind);
}

/** Whether an image did not open because its passphrase is another one. */
export function refusesPassphrase({ message }: { message: string }): boolean {
  return /passw|passphrase|keyslot|key slot/i.test(message);
}
