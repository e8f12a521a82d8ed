// Options that the entries share.

import { UnsupportedError, checkedNumber } from "./errors.js";

/** The entry that only reads says so, rather than open what was to be changed or decrypted. */
export function refuseFull({ writable, passphrase }) {
  const refuse = (what) => {
    throw new UnsupportedError({ kind: "unsupported", message: `this entry ${what}: import diskette/full instead` });
  };
  if (writable) refuse("only reads");
  if (passphrase !== undefined) refuse("opens nothing that is encrypted");
}

/** A passphrase is a text: bytes would have to be one in UTF-8, too. */
export function checkPassphrase(passphrase, operation) {
  if (passphrase === undefined || typeof passphrase === "string") return;
  throw new UnsupportedError({ kind: "invalid", message: `a passphrase is a text, not ${typeof passphrase}`, operation });
}

/** There are no paths but in Node.js. */
export function noPaths(path) {
  const message = `'${path}' is not an http(s) address: here Files, handles and addresses are opened, not paths`;
  throw new UnsupportedError({ kind: "unsupported", message, path: String(path) });
}

/** In the order in which the core takes them. */
const BUDGETS = ["metadataBytes", "chainDepth", "expandedBytes", "checkBytes"];

/** Bounds on what an image may cost; -1 stands for the usual one. One that is not known would bound nothing. */
export function bounds(budgets = {}) {
  const refuse = (what) => {
    throw new UnsupportedError({ kind: "invalid", message: `${what}; there are ${BUDGETS.join(", ")}`, operation: "open" });
  };
  if (budgets === null || typeof budgets !== "object") refuse(`budgets are an object, not ${String(budgets)}`);
  const unknown = Object.keys(budgets).find((name) => !BUDGETS.includes(name));
  if (unknown !== undefined) refuse(`there is no budget '${unknown}'`);
  return BUDGETS.map((name) => (budgets[name] === undefined ? -1 : checkedNumber(budgets[name], `budgets.${name}`)));
}

/** What a new image may be told, by our names and QEMU's. */
const CREATE_OPTIONS = {
  backingFile: "backing_file",
  backingFormat: "backing_fmt",
  clusterSize: "cluster_size",
  compat: "compat",
  compressionType: "compression_type",
  encryption: "encrypt.format",
  extendedL2: "extended_l2",
  iterationMilliseconds: "encrypt.iter-time",
  lazyRefcounts: "lazy_refcounts",
  preallocation: "preallocation",
  refcountBits: "refcount_bits",
};
/** Those that are not for the format. */
const OUR_OPTIONS = ["format", "size", "passphrase", "signal", "compressed", "onProgress", "onOpen", "budgets", "headers", "fetch", "timeout"];

/** Names and values in turn, as the core takes them. */
export function createOptions(options) {
  // They count once the image is opened, but are looked at while there is none.
  bounds(options.budgets);
  const pairs = [];
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || OUR_OPTIONS.includes(name)) continue;
    let known = Object.hasOwn(CREATE_OPTIONS, name) ? CREATE_OPTIONS[name] : undefined;
    if (!known) throw new UnsupportedError({ kind: "invalid", message: `a new image has no option '${name}'`, operation: "create" });
    if (options.format === "luks") known = known.replace("encrypt.", "");
    const text = typeof value === "boolean" ? (value ? "on" : "off") : typeof value === "string" ? value : checkedNumber(value, name);
    pairs.push(known, String(text));
  }
  return pairs;
}

/** What QEMU's messages call the options of a new image, some of them in two ways, and what they are called here. */
const OUR_NAMES = {
  ...Object.fromEntries(Object.entries(CREATE_OPTIONS).map(([ours, theirs]) => [theirs, ours])),
  "backing-fmt": "backingFormat",
  "compression-type": "compressionType",
  "encrypt.key-secret": "passphrase",
  "iter-time": "iterationMilliseconds",
  "key-secret": "passphrase",
  "Parameter 'version'": "Parameter 'compat'",
  "version=v3 or greater": 'compat: "1.1"',
};
/** Whole words, and no parts of paths. */
const THEIR_NAMES = new RegExp(`(?<![\\w./-])(?:${Object.keys(OUR_NAMES).join("|").replaceAll(".", "\\.")})(?![\\w/-]|\\.\\w)`, "g");

/** What the core says of the options of a new image, by our names. */
export function ourNames(message) {
  return message.replaceAll(THEIR_NAMES, (name) => OUR_NAMES[name]);
}

/** A key is a passphrase here; an image that is to be written is refused for want of one as a read is. */
export function forWantOfKey(error) {
  const missing = /Parameter '[\w.]*key-secret' is required for cipher|(?<=and )no key was given \('[\w.]*key-secret'\)/;
  if (typeof error?.message !== "string" || !missing.test(error.message)) return error;
  const message = error.message.replace(missing, ([first]) => (first === "P" ? "the data is encrypted and no passphrase was given" : "no passphrase was given"));
  return { ...error, kind: "denied", message };
}
