// The part of the inspector that looks into file systems, outside of a page: what it fetches, and what it does after a trap.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync, statSync, symlinkSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { build } from "vite";

const folder = mkdtempSync(join(tmpdir(), "contents-"));
const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
const hash = (bytes) => createHash("sha256").update(bytes).digest("hex");
const path = (...names) => names.map((name) => new TextEncoder().encode(name));
const large = randomBytes(9_000_001);

let DiskContents, ContentsError;

/** Whether reading a file traps, as a reader does that cannot cope with what it meets. */
let trapping = false;

/** Lets every instance of the module trap when that is wanted, by a function of another module that does nothing else. */
async function prepareTraps() {
  const bytes = Buffer.from("0061736d0100000001040160000003020100070801047472617000000a05010300000b", "hex");
  const exportsOf = Object.getOwnPropertyDescriptor(WebAssembly.Instance.prototype, "exports").get;
  const { trap } = exportsOf.call((await WebAssembly.instantiate(bytes)).instance);
  Object.defineProperty(WebAssembly.Instance.prototype, "exports", {
    get() {
      const exports = exportsOf.call(this);
      const { contents_read: readFile } = exports;
      return readFile ? { ...exports, contents_read: (...args) => (trapping ? trap() : readFile(...args)) } : exports;
    },
  });
}

before(async () => {
  await prepareTraps();
  // As one file with the module in it, since the TypeScript of the page is of no use to Node.js.
  await build({
    root: fileURLToPath(new URL("..", import.meta.url)),
    configFile: false,
    logLevel: "error",
    build: {
      lib: { entry: "src/contents.ts", formats: ["es"], fileName: "contents" },
      outDir: folder,
      emptyOutDir: false,
      assetsInlineLimit: 1 << 24,
    },
  });
  ({ DiskContents, ContentsError } = await import(pathToFileURL(join(folder, "contents.js"))));
});

after(() => rmSync(folder, { recursive: true }));

/** A file system of a tree of files, at 1 MiB of a disk with a GPT. */
function makeDisk() {
  const tree = join(folder, "tree");
  mkdirSync(join(tree, "größe"), { recursive: true });
  writeFileSync(join(tree, "größe", "large.bin"), large);
  writeFileSync(join(tree, "small"), "a small file");
  symlinkSync("größe/large.bin", join(tree, "link"));
  // A hole of 14 MiB and then a few bytes.
  const sparse = openSync(join(tree, "sparse"), "w");
  ftruncateSync(sparse, 14 << 20);
  writeSync(sparse, "the end", 14 << 20);
  closeSync(sparse);
  const volume = join(folder, "volume");
  const disk = join(folder, "ext4");
  execFileSync("truncate", ["-s", "32M", volume]);
  execFileSync("mke2fs", ["-q", "-t", "ext4", "-b", "1024", "-d", tree, volume], { env });
  execFileSync("truncate", ["-s", "36M", disk]);
  execFileSync("sfdisk", ["--quiet", disk], { env, input: "label: gpt\nstart=1MiB, size=32MiB, name=files\n" });
  execFileSync("dd", [`if=${volume}`, `of=${disk}`, "bs=1M", "seek=1", "conv=notrunc", "status=none"]);
  return disk;
}

/** A reader of a file that keeps account of what it read. */
function reader(file) {
  const descriptor = openSync(file, "r");
  const account = { bytes: 0, reads: 0, under: 0, most: 0 };
  const read = async (offset, length) => {
    account.most = Math.max(account.most, ++account.under);
    await new Promise((resolve) => setTimeout(resolve, 1));
    account.under -= 1;
    account.reads += 1;
    account.bytes += length;
    const bytes = new Uint8Array(length);
    assert.equal(readSync(descriptor, bytes, 0, length, offset), length);
    return bytes;
  };
  return { read, account, size: statSync(file).size };
}

test("partitions and files are as they were made", async () => {
  const { read, account, size } = reader(makeDisk());
  const disk = new DiskContents(read, size);
  const layout = await disk.layout();
  assert.deepEqual(layout.notes, []);
  assert.equal(layout.table, "gpt");
  assert.equal(layout.volumes.length, 1);
  const [volume] = layout.volumes;
  assert.deepEqual([volume.start, volume.length, volume.label, volume.readable], [1 << 20, 32 << 20, "files", true]);
  assert.equal(volume.typeName, "Linux file system");
  assert.equal(volume.found.name, "ext4");
  const { entries, more } = await disk.list(0, [], 0, 100);
  assert.equal(more, false);
  const kinds = Object.fromEntries(entries.map(({ name, kind }) => [name, kind]));
  assert.deepEqual(kinds, { "lost+found": "directory", größe: "directory", small: "file", link: "link", sparse: "file" });
  const link = entries.find(({ name }) => name === "link");
  assert.equal(link.target, "größe/large.bin");
  const deep = entries.find(({ name }) => name === "größe");
  const inner = await disk.list(0, [deep.bytes], 0, 1);
  assert.deepEqual([inner.entries[0].name, inner.entries[0].size], ["large.bin", large.length]);
  const before = account.bytes;
  const digest = createHash("sha256");
  for (let at = 0; at < large.length; at += 4 << 20) digest.update(await disk.read(0, path("größe", "large.bin"), at, 4 << 20));
  assert.equal(digest.digest("hex"), hash(large));
  assert.ok(account.bytes - before < 2 * large.length, `${account.bytes - before} bytes for a file of ${large.length}`);
  assert.ok(account.most > 1, "reads were never made at the same time");
  assert.ok(account.most <= 16);
  const end = await disk.read(0, path("sparse"), (14 << 20) - 5, 100);
  assert.equal(Buffer.from(end).toString("latin1"), "\0\0\0\0\0the end");
  disk.close();
  assert.equal(Buffer.from(await disk.read(0, path("small"), 0, 100)).toString(), "a small file");
});

test("calls at the same time are answered each for itself", async () => {
  const { read, size } = reader(join(folder, "ext4"));
  const disks = [new DiskContents(read, size), new DiskContents(read, size)];
  const calls = disks.flatMap((disk) => [0, 1, 2].map((at) => disk.read(0, path("größe", "large.bin"), at * 3_000_000, 3_000_000)));
  const pieces = await Promise.all(calls);
  assert.equal(hash(Buffer.concat(pieces.slice(0, 3))), hash(large.subarray(0, 9_000_000)));
  assert.equal(hash(Buffer.concat(pieces.slice(3))), hash(large.subarray(0, 9_000_000)));
});

test("errors are of one class and say what they are", async () => {
  const { read, size } = reader(join(folder, "ext4"));
  const disk = new DiskContents(read, size);
  const kind = (kind) => (error) => error instanceof ContentsError && error.kind === kind;
  await assert.rejects(disk.read(0, path("nothing"), 0, 1), kind("not-found"));
  await assert.rejects(disk.list(5, [], 0, 1), kind("not-found"));
  await assert.rejects(disk.list(0, path("small"), 0, 1), kind("invalid"));
  await assert.rejects(disk.read(0, path("small"), -1, 1), kind("invalid"));
  const short = new DiskContents(async (offset, length) => new Uint8Array(length - 1), size);
  await assert.rejects(short.layout(), kind("invalid"));
  // What the reader throws comes out as it is, and the next call is a new one.
  let fails = true;
  const flaky = new DiskContents((offset, length) => (fails ? Promise.reject(new TypeError("gone")) : read(offset, length)), size);
  await assert.rejects(flaky.layout(), TypeError);
  fails = false;
  assert.equal((await flaky.layout()).table, "gpt");
});

test("a call that is not wanted any more stops", async () => {
  const { read, account, size } = reader(join(folder, "ext4"));
  const stop = new AbortController();
  const slow = new DiskContents(async (offset, length) => {
    stop.abort();
    return read(offset, length);
  }, size);
  await assert.rejects(slow.layout(stop.signal), { name: "AbortError" });
  assert.ok(account.reads <= 16);
  assert.equal((await slow.layout()).table, "gpt");
});

test("a trap is an error, and everything works after it", async () => {
  const { read, size } = reader(join(folder, "ext4"));
  const other = new DiskContents(read, size);
  await other.layout();
  const disk = new DiskContents(read, size);
  for (let round = 0; round < 3; round += 1) {
    trapping = true;
    await assert.rejects(disk.read(0, path("small"), 0, 7), (error) => {
      assert.ok(error instanceof ContentsError);
      assert.equal(error.kind, "corrupt");
      assert.ok(error.cause instanceof WebAssembly.RuntimeError);
      return true;
    });
    trapping = false;
    assert.equal(Buffer.from(await disk.read(0, path("small"), 0, 100)).toString(), "a small file");
    assert.equal(hash(await other.read(0, path("größe", "large.bin"), 0, 1 << 24)), hash(large));
  }
});
