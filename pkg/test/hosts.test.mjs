// The disk adapter, the workers and require().

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire, syncBuiltinESMExports } from "node:module";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import workerThreads from "node:worker_threads";

import { ImageDisk } from "../src/disk.js";
import { Memory, ReferenceDeniedError, convert, open as openFull } from "../src/full-node.js";
import { packError, unpackError } from "../src/messages.js";
import { open as openOnlyReading } from "../src/node.js";
import { Pool, RangeTooLargeError, SourceError, UnsupportedError, create, open } from "../src/worker.js";
import { path, pattern, qemuImg } from "./support.mjs";

let source;

before(() => {
  writeFileSync(path("source.raw"), pattern(3_000_320));
  source = readFileSync(path("source.raw"));
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("top.qcow2"));
});

test("an image is a disk that disk tools can use", async () => {
  writeFileSync(path("disk.qcow2"), readFileSync(path("plain.qcow2")));
  const image = await openFull(path("disk.qcow2"), { writable: true });
  const disk = new ImageDisk(image);
  assert.equal(disk.readOnly, false);
  assert.equal(await disk.getCapacity(), image.size);
  assert.equal(await disk.getLength(), image.size);
  const buffer = Buffer.alloc(100);
  assert.equal((await disk.read(buffer, 10, 80, 1000)).bytesRead, 80);
  assert.deepEqual(buffer.subarray(10, 90), source.subarray(1000, 1080));
  assert.equal((await disk.read(buffer, 0, 100, image.size - 30)).bytesRead, 30);
  assert.equal((await disk.read(buffer, 0, 100, image.size + 30)).bytesRead, 0);
  assert.equal((await disk.write(Buffer.from("hello"), 1, 4, 700_001)).bytesWritten, 4);
  assert.equal(Buffer.from(await image.read(700_001, 4)).toString(), "ello");
  await disk.discard(65536, 65536);
  await disk.flush();
  const chunks = await (await disk.getStream(1000, 2000)).toArray();
  assert.deepEqual(Buffer.concat(chunks), source.subarray(1000, 3000));
  await assert.rejects(disk.read(buffer, 90, 20, 0), { kind: "too-large" });
  await image.close();
  qemuImg("check", "-q", path("disk.qcow2"));

  const plain = await openOnlyReading(path("plain.qcow2"));
  const readOnly = new ImageDisk(plain);
  assert.equal(readOnly.readOnly, true);
  await assert.rejects(readOnly.write(buffer, 0, 5, 0), /diskette\/full/);
  await readOnly.flush();
  await plain.close();
  assert.throws(() => new ImageDisk(path("plain.qcow2")), UnsupportedError);
});

test("a disk stays within the buffer that it was given", async () => {
  const image = await openFull(new Memory(new Uint8Array(source)), { format: "raw", writable: true });
  const disk = new ImageDisk(image);
  const pool = Buffer.alloc(300);
  const buffer = pool.subarray(100, 200);
  const isRange = (what) => (error) => error instanceof RangeTooLargeError && error.kind === "too-large" && error.message.startsWith(`${what} must be`);
  for (const bad of [-50, -1, 1.5, NaN, undefined, "1", 2 ** 53]) {
    for (const verb of ["read", "write"]) {
      await assert.rejects(disk[verb](buffer, bad, 50, 1000), isRange("bufferOffset"), `${verb} ${bad}`);
      await assert.rejects(disk[verb](buffer, 0, bad, 1000), isRange("length"), `${verb} ${bad}`);
      await assert.rejects(disk[verb](buffer, 0, 50, bad), isRange("fileOffset"), `${verb} ${bad}`);
    }
  }
  await assert.rejects(disk.read(new DataView(new ArrayBuffer(100)), 0, 50, 0), UnsupportedError);
  assert.ok(pool.every((byte) => byte === 0));
  assert.deepEqual(Buffer.from(await image.read(0, source.length)), source);
  await image.close();
});

test("an image in a worker reads, maps, checks, changes and converts", async () => {
  const image = await open(path("plain.qcow2"));
  assert.equal(image.size, source.length);
  assert.equal((await image.info()).format, "qcow2");
  assert.equal((await image.map()).length > 1, true);
  assert.equal((await image.check()).corruptions, 0);
  assert.deepEqual(Buffer.from(await image.read(1000, 500_000)), source.subarray(1000, 501_000));
  const parts = [];
  for await (const part of image.stream()) parts.push(part);
  assert.deepEqual(Buffer.concat(parts), source);
  const seen = [];
  await image.convert(path("from-worker.qcow2"), { compressed: true, onProgress: (progress) => seen.push(progress) });
  assert.ok(seen.length > 0);
  const copy = new Memory();
  await convert(image, copy, { format: "raw" });
  assert.deepEqual(Buffer.from(copy.bytes), source);
  await image.close();
  await assert.rejects(image.read(0, 1), { kind: "closed" });
  qemuImg("compare", "-q", path("from-worker.qcow2"), path("source.raw"));

  const made = await create(path("by-worker.qcow2"), { size: 4 << 20 });
  await made.write(5, source.subarray(0, 100_000));
  await made.snapshots.create("now");
  await made.resize(8 << 20);
  assert.equal(made.size, 8 << 20);
  assert.deepEqual((await made.snapshots.list()).map(({ name }) => name), ["now"]);
  await assert.rejects(made.resize(5), { kind: "invalid" });
  await made.close();
  qemuImg("check", "-q", path("by-worker.qcow2"));
});

test("a signal stops what a worker is asked for, with its own reason", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("stopped.qcow2"), "4M");
  qemuImg("bitmap", "--add", path("stopped.qcow2"), "changes");
  const image = await open(path("stopped.qcow2"), { writable: true });
  const bytes = new Uint8Array([7]);
  const verbs = {
    write: [0, bytes], zero: [0, 512], discard: [0, 65536], flush: [], readBitmap: ["changes"], readFile: [0, 4],
    read: [0, 1], readInto: [0, bytes.slice()], map: [], check: [],
  };
  for (const [verb, args] of Object.entries(verbs)) {
    await image[verb](...args, { signal: AbortSignal.timeout(60_000) });
    await assert.rejects(image[verb](...args, { signal: AbortSignal.abort(new Error("enough")) }), /enough/, verb);
    // It may be done before the worker knows; if not, the reason is the signal's.
    const stop = new AbortController();
    const late = image[verb](...args, { signal: stop.signal });
    stop.abort(new Error("enough"));
    const outcome = await late.then(() => "done", (error) => error.message);
    assert.match(outcome, /^(done|enough)$/, verb);
  }
  // What is made in one go does not look at it.
  await image.resize(8 << 20, { signal: AbortSignal.timeout(60_000) });
  await image.snapshots.create("now", { signal: AbortSignal.timeout(60_000) });
  await image.close();
  qemuImg("check", "-q", path("stopped.qcow2"));
});

test("an image in a worker fills what others fill, and is given up as others are", async () => {
  writeFileSync(path("given-up.qcow2"), readFileSync(path("plain.qcow2")));
  const image = await open(path("given-up.qcow2"), { writable: true });
  for (const into of ["text", null, new Float64Array(4), [1, 2]]) {
    await assert.rejects(image.readInto(0, into), (error) => error instanceof UnsupportedError && /fills a Uint8Array and nothing else/.test(error.message));
  }
  await assert.rejects(image.snapshots.delete(Symbol("s")), (error) => error instanceof UnsupportedError && !/FileSystemFileHandle/.test(error.message));
  await image.write(3_000_000, new Uint8Array([1]));
  await image.abandon();
  await assert.rejects(image.read(0, 1), { kind: "closed" });
  const again = await open(path("given-up.qcow2"));
  assert.deepEqual(Buffer.from(await again.read(0, 512)), source.subarray(0, 512));
  await again.close();
});

test("ranges of an image in a worker are checked as those of others are", async () => {
  const image = await open(path("plain.qcow2"));
  for (const bad of [-1, 1.5, NaN, "1", null, 2n ** 64n]) {
    for (const range of [{ offset: bad }, { length: bad }]) {
      await assert.rejects(image.mapPages(range).next(), RangeTooLargeError, String(bad));
      assert.throws(() => image.stream(range), RangeTooLargeError, String(bad));
    }
  }
  await assert.rejects(image.mapPages({ offset: source.length, length: 1 }).next(), SourceError);
  assert.throws(() => image.stream({ offset: 1, length: source.length }), SourceError);
  const parts = [];
  for await (const part of image.stream({ offset: 5n, length: 1_500_000n })) parts.push(part);
  assert.deepEqual(Buffer.concat(parts), source.subarray(5, 1_500_005));
  let end;
  for await (const page of image.mapPages({ offset: 65536n })) end = page.end;
  assert.equal(end, source.length);
  await image.close();
});

test("bytes of a file that come from a worker are those and no more", async () => {
  const bytes = new Uint8Array(readFileSync(path("plain.qcow2")));
  const image = await open(bytes);
  for (const at of [0, 65536]) {
    const part = await image.readFile(at, 16);
    assert.deepEqual(part, bytes.slice(at, at + 16));
    assert.equal(part.buffer.byteLength, 16);
  }
  await image.close();
});

test("what an image names is asked for on this side of the worker", async () => {
  const asked = [];
  const image = await open(path("top.qcow2"), { onOpen: (reference) => (asked.push(reference.name), new URL(`file://${path(reference.name)}`)) });
  assert.deepEqual(asked, ["plain.qcow2"]);
  assert.deepEqual(Buffer.from(await image.read(0, 1000)), source.subarray(0, 1000));
  await image.close();
  await assert.rejects(open(path("top.qcow2"), { onOpen: () => null }), ReferenceDeniedError);
  await assert.rejects(open(path("top.qcow2"), { onOpen: () => { throw new Error("not today"); } }), /not today/);
  await assert.rejects(open({ size: 5, read() {} }), (error) => error instanceof UnsupportedError && /handed to a worker/.test(error.message));
  await assert.rejects(open(path("missing")), { kind: "not-found", code: "DISKETTE_NOT_FOUND" });
});

test("errors that cross from a worker and to it keep what is behind them", async () => {
  const gone = (error) => error instanceof SourceError && error.cause instanceof Error && /^ENOENT/.test(error.cause.message);
  await assert.rejects(open(path("missing")), gone);
  const onOpen = () => {
    throw new TypeError("not today", { cause: new SourceError({ kind: "busy", message: "it is in use", path: "plain" }, { cause: "a text" }) });
  };
  await assert.rejects(open(path("top.qcow2"), { onOpen }), ({ cause }) => {
    assert.deepEqual([cause.name, cause.message], ["TypeError", "not today"]);
    const { cause: behind } = cause;
    assert.ok(behind instanceof SourceError);
    assert.deepEqual([behind.kind, behind.message, behind.path, behind.cause.message], ["busy", "it is in use", "plain", "a text"]);
    return true;
  });
});

test("an error is of the same class whether a worker is between or not", async () => {
  const failures = [];
  for (const opening of [openFull, open]) {
    const image = await opening(path("plain.qcow2"), { writable: true });
    for (const fail of [() => image.resize(5), () => image.check({ repair: "some" }), () => image.write(0, "text"), () => image.read(2 ** 40, 1)]) {
      failures.push(await fail().catch((error) => [error.constructor, { ...error }]));
    }
    await image.close();
  }
  assert.deepEqual(failures.splice(4), failures);
});

test("errors without end are sent as far as they are new", () => {
  const loop = new Error("first");
  loop.cause = new Error("second", { cause: loop });
  const sent = unpackError(structuredClone(packError(loop)));
  assert.deepEqual([sent.message, sent.cause.message, "cause" in sent.cause], ["first", "second", false]);
  let deep = new Error("0");
  for (let depth = 1; depth < 1000; depth++) deep = new Error(String(depth), { cause: deep });
  let depth = 0;
  for (let error = unpackError(packError(deep)); error.cause; error = error.cause) depth++;
  assert.equal(depth, 8);
  const odd = { get name() { throw new Error(); }, get message() { throw new Error(); }, get cause() { throw new Error(); } };
  for (const thrown of [null, undefined, 5, Object.create(null), odd]) assert.ok(unpackError(packError(thrown)).message);
});

test("a pool spreads images, stops jobs, and a worker that dies says so", async () => {
  const pool = new Pool({ size: 2 });
  const images = await Promise.all([1, 2, 3].map(() => pool.open(path("plain.qcow2"))));
  for (const image of images) assert.deepEqual(Buffer.from(await image.read(0, 512)), source.subarray(0, 512));
  await assert.rejects(images[0].read(0, source.length, { signal: AbortSignal.abort() }), { name: "AbortError" });
  const reading = images[0].map().catch(() => {});
  await pool.close();
  await assert.rejects(reading.then(() => images[0].read(0, 1)), (error) => error instanceof SourceError && /the worker is gone/.test(error.message));
  await assert.rejects(pool.open(path("plain.qcow2")), { kind: "closed" });
});

/** Runs `work` with a list of the threads that are started meanwhile, all of which have to have ended then; `host` may start no more. */
async function countingThreads(work) {
  const { Worker } = workerThreads;
  const threads = [];
  const host = { fails: false };
  workerThreads.Worker = class extends Worker {
    constructor(...args) {
      if (host.fails) throw new Error("no more threads");
      super(...args);
      threads.push(this);
    }
  };
  syncBuiltinESMExports();
  try {
    await work(threads, host);
    assert.deepEqual(threads.map(({ threadId }) => threadId), threads.map(() => -1), "all have ended");
  } finally {
    workerThreads.Worker = Worker;
    syncBuiltinESMExports();
  }
}

test("a pool has as many workers as it was told, and one that does not start keeps none of the others", () =>
  countingThreads(async (threads, host) => {
    const pool = new Pool({ size: 2 });
    const images = await Promise.all(Array.from({ length: 6 }, () => pool.open(path("plain.qcow2"))));
    assert.equal(threads.length, 2);
    for (const image of images) await image.close();
    await pool.close();
    const broken = new Pool({ size: 2 });
    await broken.open(path("plain.qcow2"));
    host.fails = true;
    await assert.rejects(broken.open(path("plain.qcow2")), /no more threads/);
    const opening = assert.rejects(broken.open(path("plain.qcow2")));
    await broken.close();
    await opening;
  }));

test("what is opened while a pool is closed is refused, and leaves no worker behind", () =>
  countingThreads(async (threads) => {
    const pools = [new Pool({ size: 1 }), new Pool({ size: 2 })];
    const image = await pools[1].open(path("plain.qcow2"));
    assert.equal(image.size, source.length);
    for (const pool of pools) {
      // Some are asked for before the pool is closed and some between, in every state of a worker.
      const opening = [pool.open(path("plain.qcow2")), pool.create(path("late.qcow2"), { size: 1024 })];
      const closing = pool.close();
      opening.push(pool.open(path("plain.qcow2")));
      await Promise.all(opening.map((refused) => assert.rejects(refused, { kind: "closed" })));
      await closing;
    }
    const starting = new Pool({ size: 1 });
    const opening = starting.open(path("plain.qcow2"));
    while (threads.length < 2) await new Promise((resolve) => setImmediate(resolve));
    const outcome = assert.rejects(opening, (error) => error.kind === "closed" || /it was stopped/.test(error.message));
    await starting.close();
    await outcome;
  }));

test("require() gives the same classes", async () => {
  const required = createRequire(import.meta.url);
  const reading = required("../cjs/index.cjs");
  const { open: openRequired, Memory: RequiredMemory } = required("../cjs/full.cjs");
  const image = await openRequired(path("plain.qcow2"));
  assert.equal(image.size, source.length);
  await image.close();
  assert.equal(RequiredMemory, Memory);
  await assert.rejects(reading.open(path("missing")), (error) => error instanceof reading.SourceError && error instanceof SourceError);
  assert.equal(required("../cjs/disk.cjs").ImageDisk, ImageDisk);
  assert.equal(required("../cjs/worker.cjs").Pool, Pool);
});

/** The names of what is there when it runs, by the declarations of an entry. */
function declared(entry) {
  const text = readFileSync(new URL(`../src/${entry}.d.ts`, import.meta.url), "utf8");
  const own = [...text.matchAll(/^export (?:class|const|function) (\w+)/gm)].map(([, name]) => name);
  const others = [...text.matchAll(/^export \{([^}]*)\}/gm)].flatMap(([, names]) => names.match(/\w+/g));
  return [...new Set([...own, ...others])].sort();
}

test("every entry exports what it declares, and nothing else", async () => {
  const entries = { index: ["node", "web"], full: ["full-node", "full-web"], disk: ["disk"], worker: ["worker"] };
  for (const [entry, modules] of Object.entries(entries)) {
    for (const module of modules) assert.deepEqual(Object.keys(await import(`../src/${module}.js`)).sort(), declared(entry), module);
  }
});

/** Runs in every worker of a process before anything else: ends it when it is asked to read at a certain place. */
const DEADLY = `
import { isMainThread, parentPort } from "node:worker_threads";
if (!isMainThread) {
  const on = parentPort.on.bind(parentPort);
  parentPort.on = (event, receive) => on(event, (message) => {
    const at = message.verb === "read" ? message.args[1] : 0;
    if (at === 666) process.exit(3);
    if (at === 667) throw new Error("out of order");
    if (at === 668) for (;;);
    receive(message);
  });
}`;

const VICTIM = (worker, image) => `
import assert from "node:assert/strict";
import { Pool, SourceError } from ${JSON.stringify(worker)};
const pool = new Pool({ size: 2 });
const gone = (text) => (error) => error instanceof SourceError && error.kind === "io" && text.test(error.message) && /the worker is gone/.test(error.message);
for (const [place, text] of [[666, /it ended/], [667, /out of order/]]) {
  const images = await Promise.all([1, 2].map(() => pool.open(${JSON.stringify(image)})));
  const other = images[1].read(0, 100_000);
  const waiting = [images[0].read(place, 10), images[0].check(), images[0].read(place + 1000, 10)];
  const outcomes = await Promise.allSettled(waiting);
  assert.ok(outcomes.every(({ status, reason }) => status === "rejected" && gone(text)(reason)), String(outcomes.map(({ reason }) => reason)));
  await assert.rejects(images[0].read(0, 1), gone(text));
  assert.equal((await other).length, 100_000);
  assert.equal((await images[1].check()).corruptions, 0);
  await images[1].close();
  const again = await pool.open(${JSON.stringify(image)});
  assert.equal((await again.read(0, 512)).length, 512);
  await again.close();
}
const stuck = await pool.open(${JSON.stringify(image)});
const reading = stuck.read(668, 10);
const rejected = assert.rejects(reading, gone(/it was stopped/));
await pool.close();
await rejected;
console.log("fine");
`;

test("a worker that dies fails what it had, and the pool goes on", async () => {
  writeFileSync(path("deadly.mjs"), DEADLY);
  const worker = new URL("../src/worker.js", import.meta.url).href;
  writeFileSync(path("victim.mjs"), VICTIM(worker, path("plain.qcow2")));
  const preload = new URL(`file://${path("deadly.mjs")}`).href;
  const run = promisify(execFile)(process.execPath, ["--import", preload, path("victim.mjs")], { cwd: fileURLToPath(new URL("..", import.meta.url)), timeout: 60_000 });
  const { stdout } = await run.catch((error) => assert.fail(`${error.message}\n${error.stderr}`));
  assert.equal(stdout, "fine\n");
});
