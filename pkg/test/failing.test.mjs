// Writes that fail, files that change and copies that are stopped: a message that says what to do, and a file that is whole.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";

import { ClosedError, CorruptImageError, DisketteError, Memory, RangeTooLargeError, SourceError, convert, create, fromStream, open } from "../src/full-node.js";
import { open as openOnlyReading } from "../src/node.js";
import { path, pattern, qemuImg } from "./support.mjs";
import { pickedHandle, syncHandle } from "./targets.mjs";

const MIB = 1024 * 1024;
let good;

before(() => {
  writeFileSync(path("source.raw"), pattern(3_000_320));
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  good = new Uint8Array(readFileSync(path("plain.qcow2")));
});

/** Exit status of a check: 0 is clean, 3 is leaks. */
function checked(bytes) {
  writeFileSync(path("checked"), bytes);
  const { status, stdout } = spawnSync("qemu-img", ["check", path("checked")], { encoding: "utf8" });
  assert.ok(status === 0 || status === 3, stdout);
}

/** A target in memory whose n-th change fails, and with `stuck` all after it. */
function failing(bytes, nth, error, { stuck = true } = {}) {
  const memory = new Memory(bytes.slice());
  let count = 0;
  const change = (verb) => async (...args) => {
    count++;
    if (stuck ? count >= nth : count === nth) throw error;
    return memory[verb](...args);
  };
  return {
    memory,
    get count() {
      return count;
    },
    target: { name: "failing", size: memory.size, read: (...args) => memory.read(...args), write: change("write"), resize: change("resize"), flush: async () => {} },
  };
}

async function work(target) {
  const image = await open(target, { writable: true });
  try {
    await image.write(100_000, pattern(400_000));
    await image.resize(8 * MIB);
    await image.write(4 * MIB, pattern(2 * MIB));
    await image.write(0, pattern(100_000));
    await image.zero(MIB, MIB);
    await image.flush();
  } finally {
    await image.close();
  }
}

test("a write that fails, whichever it is, leaves at most leaks", async () => {
  const sound = failing(good, Infinity);
  await work(sound.target);
  checked(sound.memory.bytes);
  assert.ok(sound.count > 10);
  for (const stuck of [true, false]) {
    for (let nth = 1; nth <= sound.count; nth++) {
      const reason = new Error("the cable was pulled");
      const { target, memory } = failing(good, nth, reason, { stuck });
      await assert.rejects(work(target), (error) => {
        assert.ok(error instanceof SourceError && /failing: .*the cable was pulled/.test(error.message), `${nth}: ${error.message}`);
        return error.cause === reason;
      });
      checked(memory.bytes);
    }
  }
});

test("a quota that is used up is said to be that", async () => {
  const quota = () => new DOMException("the origin has no space left", "QuotaExceededError");
  for (const nth of [1, 3, 6]) {
    const { target, memory } = failing(good, nth, quota());
    await assert.rejects(work(target), (error) => error.kind === "no-space" && error.code === "DISKETTE_NO_SPACE" && /no space left/.test(error.message));
    checked(memory.bytes);
  }
  const image = await open(path("plain.qcow2"));
  const picked = pickedHandle(good.slice(), { quota: MIB });
  await assert.rejects(convert(image, picked, { format: "raw" }), { kind: "no-space" });
  assert.deepEqual(picked.bytes, good, "the file that was picked is as it was");
  const sync = syncHandle(new Memory());
  const write = sync.write;
  sync.write = (bytes, place) => (place.at > MIB ? 0 : write(bytes, place));
  await assert.rejects(convert(image, sync, { format: "raw" }), { kind: "no-space" });
  await image.close();
  if (existsSync("/dev/full")) await assert.rejects(create("/dev/full", { size: MIB }), /not a regular file/);
});

test("a file that shrinks while it is written is noticed", async () => {
  writeFileSync(path("shrinks"), good);
  const image = await open(path("shrinks"), { writable: true });
  truncateSync(path("shrinks"), 300_000);
  await assert.rejects(image.read(0, 3_000_320), (error) => error instanceof SourceError && /changed its length from \d+ to 300000 bytes/.test(error.message));
  await image.abandon();
});

test("a copy that is stopped leaves its source alone, and says why", async () => {
  for (const target of [() => path("stopped"), () => new Memory(), () => pickedHandle(good.slice())]) {
    const image = await open(path("plain.qcow2"));
    const stop = new AbortController();
    const made = target();
    const onProgress = () => stop.abort(new Error("that will do"));
    await assert.rejects(convert(image, made, { signal: stop.signal, onProgress }), /that will do/);
    if (made.closed !== undefined) assert.deepEqual([made.bytes, made.closed], [good, 0]);
    assert.equal((await image.read(0, 10)).length, 10, "the source is still open");
    await image.close();
    assert.deepEqual(new Uint8Array(readFileSync(path("plain.qcow2"))), good);
    await assert.rejects(convert(image, made), { kind: "closed" });
  }
});

test("a stream that is stopped or fails ends the copy", async () => {
  let cancelled = 0;
  // The timer of AbortSignal.timeout() keeps no process alive.
  const soon = () => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(new DOMException("it took too long", "TimeoutError")), 50);
    return stop.signal;
  };
  const endless = () => new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(65536).fill(1)), cancel: () => cancelled++ });
  await assert.rejects(fromStream(endless(), new Memory(), { size: 1024 * MIB, signal: soon() }), { name: "TimeoutError" });
  const stuck = new ReadableStream({ pull: () => new Promise(() => {}), cancel: () => cancelled++ });
  await assert.rejects(fromStream(stuck, new Memory(), { size: MIB, signal: soon() }), { name: "TimeoutError" });
  const broken = new ReadableStream({ pull: (controller) => controller.error(new Error("the line went dead")) });
  await assert.rejects(fromStream(broken, new Memory(), { size: MIB }), /the line went dead/);
  await assert.rejects(fromStream(new Blob(["x"]).stream(), new Memory(), { size: 2 ** 53 }), RangeTooLargeError);
  assert.equal(cancelled, 2);
  // Also one that is stopped while its target is made; one whose target is refused stays as it is.
  const never = { size: 0, read: () => new Promise(() => {}), write: () => new Promise(() => {}), resize: () => new Promise(() => {}) };
  await assert.rejects(fromStream(endless(), never, { size: MIB, signal: soon() }), { name: "TimeoutError" });
  assert.equal(cancelled, 3);
  const kept = endless();
  await assert.rejects(fromStream(kept, new Memory(), { size: MIB, clusterSize: 3 }), (error) => error.kind === "invalid" && /clusterSize|cluster size/i.test(error.message) && !/cluster_size/.test(error.message));
  assert.equal((await kept.getReader().read()).value.length, 65536);
  assert.equal(cancelled, 3);
  const dead = { size: 0, read: (offset, length) => new Uint8Array(length), write: (offset, bytes) => (bytes.length > 65536 ? new Promise(() => {}) : undefined), resize() {} };
  await assert.rejects(fromStream(new Blob([new Uint8Array(MIB).fill(1)]).stream(), dead, { size: MIB, format: "raw", signal: soon() }), { name: "TimeoutError" });
});

test("what still runs when a stream is stopped fails unnoticed, and the stream is let go of", async () => {
  const unhandled = [];
  const note = (reason) => unhandled.push(reason);
  process.on("unhandledRejection", note);
  // The timer of AbortSignal.timeout() keeps no process alive.
  const alive = setInterval(() => {}, 1000);
  try {
    for (const size of [65536, MIB, 2 * MIB, 4 * MIB]) {
      const body = new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(size).fill(1)) });
      await assert.rejects(fromStream(body, new Memory(), { size: 1024 * MIB, signal: AbortSignal.timeout(60) }), { name: "TimeoutError" });
      assert.equal(body.locked, false);
    }
    const signal = AbortSignal.timeout(60);
    const start = (controller) => signal.addEventListener("abort", () => controller.error(signal.reason));
    const body = new ReadableStream({ start, pull: (controller) => controller.enqueue(new Uint8Array(65536).fill(1)) });
    await assert.rejects(fromStream(body, new Memory(), { size: 1024 * MIB, signal }), { name: "TimeoutError" });
    assert.equal(body.locked, false);
    const whole = new Blob([new Uint8Array(MIB)]).stream();
    await fromStream(whole, new Memory(), { size: MIB });
    assert.equal(whole.locked, false);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(unhandled, []);
  } finally {
    clearInterval(alive);
    process.off("unhandledRejection", note);
  }
});

test("a target that lies about its length, or cannot be made longer, is explained", async () => {
  const memory = new Memory(good.slice());
  const fixed = { size: memory.size, read: (...args) => memory.read(...args), write: (...args) => memory.write(...args) };
  await assert.rejects(create(fixed, { size: MIB }), (error) => error instanceof DisketteError && /fixed length/.test(error.message));
  for (const size of [2 ** 53, -1, NaN, "5", 2n ** 63n]) {
    await assert.rejects(open({ ...fixed, size }, { writable: true }), RangeTooLargeError);
  }
});

test("an image that was found to be corrupt while it was changed stays so, and is not called closed", async () => {
  const bytes = good.slice();
  const view = new DataView(bytes.buffer);
  const table = Number(view.getBigUint64(40));
  // What is to be written would be written to a table.
  view.setBigUint64(Number(view.getBigUint64(table) & 0x00fffffffffffe00n), (1n << 63n) | BigInt(table));
  const image = await open(new Memory(bytes), { writable: true });
  const isCorrupt = (text) => (error) => error instanceof CorruptImageError && error.kind === "corrupt" && error.path === "memory" && text.test(error.message);
  await assert.rejects(image.write(0, pattern(512)), isCorrupt(/Preventing invalid write/));
  const later = [() => image.write(MIB, pattern(512)), () => image.zero(MIB, 512), () => image.setBacking(null), () => image.snapshots.create("a"), () => image.flush()];
  for (const change of later) await assert.rejects(change(), isCorrupt(/found to be corrupt; nothing more is written/));
  assert.equal(image.info().corrupt, true);
  assert.equal((await image.read(MIB, 512)).length, 512);
  await image.close();
  await assert.rejects(image.write(0, pattern(512)), ClosedError);
});

test("random damage of the metadata never does worse to a writer than an error", async () => {
  let seed = 7;
  const random = (limit) => (seed = (seed * 48271) % 0x7fffffff) % limit;
  const table = Number(new DataView(good.buffer).getBigUint64(40));
  for (let round = 0; round < 200; round++) {
    const bytes = good.slice();
    const places = [() => random(112), () => 65536 + random(16), () => table + random(64), () => random(0x50000)];
    for (let times = 1 + random(4); times > 0; times--) bytes[places[random(4)]()] = random(256);
    let image;
    try {
      image = await open(new Memory(bytes), { writable: true, budgets: { checkBytes: 16 * MIB } });
      await image.write(0, pattern(Math.min(image.size, 200_000)));
      await image.zero(0, Math.min(image.size, 100_000));
      await image.check({ repair: "all" });
      await image.close();
    } catch (error) {
      assert.ok(error instanceof DisketteError && error.kind !== "internal", `round ${round}: ${error?.stack}`);
      await image?.close().catch(() => {});
    }
  }
});

test("a copy takes the same memory however large the disk is", async () => {
  const block = new Uint8Array(4 * MIB).fill(1);
  const size = 512 * MIB;
  let written = 0;
  const source = { size, read: (offset, length) => block.subarray(0, length) };
  const target = { size: 0, read: (offset, length) => new Uint8Array(length), write: (offset, bytes) => void (written += bytes.length), resize() {} };
  const image = await open(source, { format: "raw" });
  const before = process.memoryUsage().rss;
  let most = 0;
  await convert(image, target, { format: "raw", onProgress: () => (most = Math.max(most, process.memoryUsage().rss)) });
  assert.ok(written >= size, `${written} bytes`);
  assert.ok(most - before < 160 * MIB, `${Math.round((most - before) / MIB)} MiB`);
  await image.close();
});

test("a target that never answers does not keep a signal from stopping what is made in it", async () => {
  const never = () => new Promise(() => {});
  // Timers of signals alone do not keep a process running.
  const running = setInterval(() => {}, 1000);
  const source = await open(new Memory(pattern(3 * 1024 * 1024)), { format: "raw" });
  for (const verb of ["write", "flush", "close"]) {
    for (const work of [(target, options) => create(target, options), (target, options) => convert(source, target, options)]) {
      const memory = new Memory();
      const target = { size: 0, read: (at, length) => memory.read(at, length), write: (at, bytes) => memory.write(at, bytes), resize: (length) => memory.resize(length), flush() {}, close() {} };
      target[verb] = never;
      const begun = performance.now();
      const made = work(target, { size: 1 << 20, signal: AbortSignal.timeout(50) });
      // Making an image alone neither flushes for good nor closes.
      const outcome = await made.then((image) => image, (error) => error);
      if (outcome instanceof Error || outcome instanceof DOMException) assert.equal(outcome.name, "TimeoutError");
      else assert.notEqual(verb, "write");
      assert.ok(performance.now() - begun < 3000, `${verb} took ${performance.now() - begun} ms`);
    }
  }
  for (const opening of [open, openOnlyReading]) {
    await assert.rejects(opening({ getFile: never }, { signal: AbortSignal.timeout(20) }), { name: "TimeoutError" });
  }
  await source.close();
  clearInterval(running);
});
