// Sources that answer at once: others get their turn all the same, and signals stop what runs.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { promisify } from "node:util";

import { Memory, create, open } from "../src/full-node.js";
import { path, pattern, qemuImg } from "./support.mjs";

const MIB = 1024 * 1024;
let sparse;

before(() => {
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", path("sparse.qcow2"), "4M");
  sparse = new Uint8Array(readFileSync(path("sparse.qcow2")));
});

/** A source that answers at once, and takes its time for it. */
function busySource(size, bytesAt, milliseconds = 2) {
  const source = {
    size,
    reads: 0,
    read(offset, length) {
      source.reads++;
      for (const start = performance.now(); performance.now() - start < milliseconds; );
      return bytesAt(offset, length);
    },
  };
  return source;
}

/** How long nobody else had a turn at worst, while `work` ran, and how long that was. */
async function watched(work) {
  const start = performance.now();
  let last = start;
  let longest = 0;
  const look = () => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  };
  const timer = setInterval(look, 1);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  look();
  return { longest, took: last - start };
}

const inTime = (work) => assert.rejects(work(AbortSignal.timeout(100)), { name: "TimeoutError" });

test("a check stops in time, and goes as before without a signal", async () => {
  const source = busySource(sparse.length, (offset, length) => sparse.subarray(offset, offset + length));
  const image = await open(source);
  source.reads = 0;
  const whole = await watched(async () => assert.equal((await image.check()).corruptions, 0));
  assert.ok(source.reads > 100 && whole.took > 400, `${source.reads} reads`);
  assert.ok(whole.longest < whole.took / 4, `${whole.longest} of ${whole.took} ms`);
  const stopped = await watched(() => inTime((signal) => image.check({ signal })));
  assert.ok(stopped.took < whole.took / 2, `${stopped.took} of ${whole.took} ms`);
  const { reads } = source;
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(source.reads, reads, "nothing more is read");
  assert.equal((await image.check()).corruptions, 0);
  await image.close();
});

test("reads and streams stop in time, whether bytes come at once or in a promise", async () => {
  const zeroes = (offset, length) => new Uint8Array(length);
  for (const bytesAt of [zeroes, async (...args) => zeroes(...args)]) {
    const image = await open(busySource(2 ** 40, bytesAt), { format: "raw" });
    const { took } = await watched(() => inTime((signal) => image.read(0, 1024 * MIB, { signal })));
    assert.ok(took < 500, `${took} ms`);
    const stream = image.stream({ signal: AbortSignal.timeout(100) });
    const first = await watched(() => assert.rejects(async () => {
      for await (const chunk of stream) assert.equal(chunk.length, MIB);
    }, { name: "TimeoutError" }));
    assert.ok(first.took < 500, `${first.took} ms`);
    await image.close();
  }
});

test("images that work at the same time all get on, and what is closed ends", async () => {
  const make = async () => {
    const source = busySource(2 ** 40, (offset, length) => new Uint8Array(length).fill(1), 1);
    return { source, image: await open(source, { format: "raw" }) };
  };
  const made = await Promise.all([make(), make(), make()]);
  const readings = made.map(({ image }) => image.read(0, 2 ** 28));
  const outcomes = readings.map((reading) => assert.rejects(reading, { kind: "closed" }));
  await new Promise((resolve) => setTimeout(resolve, 60));
  for (const { source } of made) assert.ok(source.reads > 0);
  await Promise.all(made.map(({ image }) => image.close()));
  await Promise.all(outcomes);
});

test("changes and reads are what they should be across turns", async () => {
  const size = 16 * MIB;
  const bytes = pattern(size);
  const image = await create(path("changed.qcow2"), { size, clusterSize: 512 });
  const piece = new Uint8Array(MIB / 4);
  const changes = [];
  for (let at = 0; at < size; at += piece.length) {
    // What is written is what there was when it was asked for.
    const part = bytes.subarray(at, at + piece.length);
    piece.set(part);
    changes.push(image.write(at, piece.subarray(0, part.length)));
  }
  piece.fill(0);
  await Promise.all(changes);
  assert.equal(Buffer.compare(await image.read(0, size), bytes), 0);
  await image.write(5, new Uint8Array([1, 2, 3]));
  bytes.set([1, 2, 3], 5);
  const late = image.write(10, new Uint8Array([4]));
  bytes[10] = 4;
  await image.close();
  await late;
  const again = await open(path("changed.qcow2"));
  assert.equal(Buffer.compare(await again.read(0, size), bytes), 0);
  await again.close();
  qemuImg("check", "-q", path("changed.qcow2"));
});

test("without setImmediate it goes by messages", async () => {
  const program = `
    delete globalThis.setImmediate;
    const { isTired, rest } = await import(${JSON.stringify(new URL("../src/rest.js", import.meta.url).href)});
    const order = [];
    for (const timer = setTimeout(() => order.push("timer"), 1); !isTired(); );
    rest(() => order.push("first"));
    rest(() => {
      order.push("second", isTired());
      setTimeout(() => (console.log(String(order)), process.exit()), 20);
    });
    Promise.resolve().then(() => order.push("at once"));`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", program], { timeout: 30_000 });
  assert.deepEqual(stdout.trim().split(",").filter((word) => word !== "timer"), ["at once", "first", "second", "false"]);
  assert.match(stdout, /timer/);
});

/** A signal that is looked at `times` times before it says that it is enough. */
function patient(times) {
  const stop = new AbortController();
  const { signal } = stop;
  const look = signal.throwIfAborted.bind(signal);
  signal.throwIfAborted = () => {
    if (times-- === 0) stop.abort(new Error("enough"));
    look();
  };
  return signal;
}

test("what is zeroed or discarded is looked after piece by piece", async () => {
  const GIB = 1024 * MIB;
  for (const verb of ["zero", "discard"]) {
    const image = await create(new Memory(), { size: 4 * GIB });
    const marks = [MIB, GIB + MIB, 2 * GIB + MIB].map((at) => [at, image.write(at, new Uint8Array([7]))]);
    for (const [, written] of marks) await written;
    await assert.rejects(image[verb](5, 4 * GIB - 5, { signal: patient(2) }), /enough/);
    const left = await Promise.all(marks.map(([at]) => image.read(at, 1)));
    assert.deepEqual(left.map(([byte]) => byte), [0, 0, 7], verb);
    await image[verb](5, 4 * GIB - 5, { signal: patient(9) });
    assert.equal((await image.read(2 * GIB + MIB, 1))[0], 0);
    await assert.rejects(image[verb](0, 0, { signal: AbortSignal.abort() }), { name: "AbortError" });
    await image.close();
  }
});

test("a change in pieces is made whole before the image is closed", async () => {
  const memory = new Memory();
  const image = await create(memory, { size: 16 * MIB });
  const written = image.write(0, pattern(16 * MIB));
  await image.close();
  await written;
  const again = await open(memory);
  assert.equal(Buffer.compare(await again.read(0, 16 * MIB), pattern(16 * MIB)), 0);
  await again.close();
});

test("a flush and the bytes of a file are not waited for once a signal comes", async () => {
  const memory = new Memory();
  let answer = () => {};
  const stuck = { size: 0, read: (...args) => answer() ?? memory.read(...args), write: (...args) => memory.write(...args), resize: (length) => memory.resize(length), flush: () => answer() };
  const image = await create(stuck, { size: MIB });
  await image.write(0, new Uint8Array([7]));
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  answer = () => gate.then(() => memory.read(0, 4));
  for (const work of [(options) => image.flush(options), (options) => image.readFile(0, 4, options)]) {
    const stop = new AbortController();
    setTimeout(() => stop.abort(new Error("enough")), 20);
    await assert.rejects(work({ signal: stop.signal }), /enough/);
    await assert.rejects(work({ signal: AbortSignal.abort() }), { name: "AbortError" });
  }
  answer = () => {};
  release();
  await image.flush({ signal: AbortSignal.timeout(10_000) });
  assert.equal((await image.readFile(0, 4, { signal: AbortSignal.timeout(10_000) }))[0], 0x51);
  await image.close();
});

test("zeroes that are written let others have their turn", async () => {
  writeFileSync(path("zeroes.raw"), new Uint8Array(1));
  truncateSync(path("zeroes.raw"), 256 * MIB);
  const image = await open(path("zeroes.raw"), { format: "raw", writable: true });
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await image.zero(0, 256 * MIB, { unmap: false });
  clearInterval(timer);
  assert.ok(turns > 0);
  await image.close();
});
