// The package for writing, and its workers, in a browser: OPFS files, picked files, quotas, and workers that die.

import assert from "node:assert/strict";
import { createWriteStream, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { pipeline } from "node:stream/promises";
import { after, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { folder, path, pattern, qemuImg } from "../../pkg/test/support.mjs";
import { ARGS, sendFile } from "./browser.mjs";

const PACKAGE = fileURLToPath(new URL("../../pkg/", import.meta.url));
const MIB = 1024 * 1024;

/** What the tests use on the other side, in the page and in its worker. */
const TOOLS = `
export * as diskette from "/pkg/src/full-web.js";
export * as workers from "/pkg/src/worker.js";
export const fetched = async (name) => new File([await (await fetch("/images/" + name)).blob()], name);
export const entry = async (name) => (await navigator.storage.getDirectory()).getFileHandle(name, { create: true });
export async function filled(name, from) {
  const handle = await entry(name);
  const writable = await handle.createWritable();
  await writable.write(await fetched(from));
  await writable.close();
  return handle;
}
export async function synchronous(name, from) {
  const handle = await (await entry(name)).createSyncAccessHandle();
  handle.truncate(0);
  if (from) handle.write(await (await fetched(from)).arrayBuffer(), { at: 0 });
  return handle;
}
/** Hands a file to QEMU's tools. */
export const hand = (name, body) => fetch("/out/" + name, { method: "POST", body });
export const handEntry = async (name, as = name) => hand(as, await (await entry(name)).getFile());
export function pattern(length) {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = at % 600_000 < 300_000 ? (at * 7 + (at >> 9)) & 0xff : 0;
  return bytes;
}
export const failure = (promise) => promise.then(() => null, (error) => ({ class: error.constructor.name, name: error.name, kind: error.kind, code: error.code, message: error.message }));
export async function run({ code, argument }) {
  const work = new Function("return " + code)();
  return work(await import("/tools.js"), argument);
}
`;
const WORKER = `
import { run } from "/tools.js";
self.onmessage = async ({ data }) => {
  try { postMessage({ value: await run(data) }); } catch (error) { postMessage({ error: error.stack + " " + error.message }); }
};`;

let server;
let context;
let page;
/** Answers that are held back. */
let held = [];

before(async () => {
  writeFileSync(path("source.raw"), pattern(3_000_320));
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("top.qcow2"));
  const file = readFileSync(path("plain.qcow2"));
  const end = Math.ceil(file.length / 65536);
  const leaky = Buffer.concat([file], (end + 1) * 65536);
  leaky.writeUInt16BE(1, Number(leaky.readBigUInt64BE(Number(leaky.readBigUInt64BE(48)))) + 2 * end);
  writeFileSync(path("leaky.qcow2"), leaky);
  server = createServer(async (request, response) => {
    const scripts = { "/tools.js": TOOLS, "/worker.js": WORKER };
    if (request.url === "/") return response.setHeader("Content-Type", "text/html").end("<!doctype html><title>package</title>");
    if (scripts[request.url]) return response.setHeader("Content-Type", "text/javascript").end(scripts[request.url]);
    if (request.url.startsWith("/out/")) {
      await pipeline(request, createWriteStream(path(request.url.slice(5))));
      return response.end();
    }
    const name = /^\/(?:images|slow)\/(.*)/.exec(request.url)?.[1];
    const file = name ? path(name) : PACKAGE + request.url.slice(5);
    const start = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
    if (request.url.startsWith("/slow/") && start > 0) return held.push(response);
    return sendFile(request, response, file);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context = await chromium.launchPersistentContext(`${folder}/profile`, { executablePath: "/usr/bin/chromium", headless: true, chromiumSandbox: false, args: ARGS });
});

beforeEach(async () => {
  await page?.close();
  page = await context.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.evaluate(async () => {
    const root = await navigator.storage.getDirectory();
    for await (const name of root.keys()) await root.removeEntry(name);
  });
});

after(async () => {
  await context?.close();
  server?.closeAllConnections();
  server?.close();
});

/** Runs a function in the page, or in a worker of it, with the tools. */
const inPage = (work, argument) => page.evaluate(async (task) => (await import("/tools.js")).run(task), { code: String(work), argument });
async function inWorker(work, argument) {
  const result = await page.evaluate((task) => new Promise((resolve) => {
    const worker = new Worker("/worker.js", { type: "module" });
    worker.onmessage = ({ data }) => (worker.terminate(), resolve(data));
    worker.onerror = (event) => resolve({ error: event.message });
    worker.postMessage(task);
  }), { code: String(work), argument });
  assert.equal(result.error, undefined);
  return result.value;
}

const clean = (name) => qemuImg("check", "-q", path(name));
const same = (name, other) => qemuImg("compare", "-q", path(name), path(other));

/** Makes an image, changes it in every way, and says what it holds then; `target` and `source` are taken from `take`. */
const CHANGES = `async ({ diskette, hand, pattern, entry, synchronous }, kind) => {
  const target = kind === "opfs" ? await synchronous("made") : await entry("made");
  const image = await diskette.create(target, { size: 8 * 1024 * 1024, clusterSize: 4096 });
  await image.write(5_000_001, pattern(2_000_000));
  await image.snapshots.create("before");
  await image.write(100, pattern(1_000_000));
  await image.flush();
  await image.zero(300_000, 400_000);
  await image.resize(9 * 1024 * 1024);
  await image.snapshots.create("after");
  await image.snapshots.delete("before");
  await image.write(8 * 1024 * 1024 + 7, pattern(70_000));
  const bytes = await image.read(0, image.size);
  const names = image.snapshots.list().map(({ name }) => name);
  await image.close();
  if (kind === "opfs") target.close();
  await hand("made.raw", bytes);
  return names;
}`;

for (const kind of ["opfs", "handle"]) {
  const run = kind === "opfs" ? inWorker : inPage;

  test(`an image is made and changed: ${kind}`, async () => {
    const model = new Uint8Array(9 * MIB);
    model.set(pattern(2_000_000), 5_000_001);
    model.set(pattern(1_000_000), 100);
    model.fill(0, 300_000, 700_000);
    model.set(pattern(70_000), 8 * MIB + 7);
    assert.deepEqual(await run(CHANGES, kind), ["after"]);
    await inPage(({ handEntry }) => handEntry("made"));
    assert.equal(Buffer.compare(readFileSync(path("made.raw")), model), 0);
    clean("made");
    qemuImg("compare", "-q", "-F", "raw", path("made"), path("made.raw"));
    assert.match(qemuImg("snapshot", "-l", path("made")), /after/);
  });

  test(`what is lost is found and given back: ${kind}`, async () => {
    const report = await run(async ({ diskette, synchronous, filled }, kind) => {
      const target = kind === "opfs" ? await synchronous("leaky", "leaky.qcow2") : await filled("leaky", "leaky.qcow2");
      const image = await diskette.open(target, { writable: true });
      const before = await image.check();
      const after = await image.check({ repair: "leaks" });
      await image.close();
      if (kind === "opfs") target.close();
      return [before.leaks, after.leaks, after.leaksFixed];
    }, kind);
    assert.deepEqual(report, [1, 0, 1]);
    await inPage(({ handEntry }) => handEntry("leaky"));
    clean("leaky");
    same("leaky", "source.raw");
  });

  test(`a disk is copied into a new image: ${kind}`, async () => {
    for (const options of [{ format: "raw" }, { format: "qcow2", compressed: true }, { format: "qcow2", clusterSize: 512 }]) {
      const last = await run(async ({ diskette, fetched, synchronous, filled }, [kind, options]) => {
        const image = await diskette.open(await fetched("top.qcow2"), { onOpen: ({ name }) => fetched(name) });
        // What was there before is longer, and goes.
        const target = kind === "opfs" ? await synchronous("copy", "source.raw") : await filled("copy", "source.raw");
        let last;
        await diskette.convert(image, target, { ...options, onProgress: (progress) => (last = progress) });
        await image.close();
        if (kind === "opfs") target.close();
        return last;
      }, [kind, options]);
      assert.deepEqual(last, { done: 3_000_320, total: 3_000_320 });
      await inPage(({ handEntry }) => handEntry("copy"));
      if (options.format === "qcow2") clean("copy");
      qemuImg("compare", "-q", "-f", options.format, path("copy"), path("source.raw"));
    }
  });

  test(`a quota that is used up is said to be that: ${kind}`, async () => {
    const { origin } = new URL(page.url());
    const protocol = await context.newCDPSession(page);
    await inPage(({ filled }) => filled("full", "plain.qcow2"));
    await protocol.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: 12 * MIB });
    let failures;
    try {
      failures = await run(async ({ diskette, fetched, entry, synchronous, failure }, kind) => {
        const size = 64 * 1024 * 1024;
        const ones = new Uint8Array(size).fill(1);
        const file = await entry("full");
        const target = kind === "opfs" ? await file.createSyncAccessHandle() : file;
        const image = await diskette.open(target, { writable: true });
        await image.resize(size);
        const written = await failure(image.write(0, ones));
        const closed = await failure(image.close());
        if (kind === "opfs") target.close();
        const other = kind === "opfs" ? await synchronous("other") : await entry("other");
        const copied = await failure(diskette.fromStream(new Blob([ones]).stream(), other, { size, format: "raw" }));
        if (kind === "opfs") other.close();
        return { written, closed, copied };
      }, kind);
      for (const name of ["written", "copied"]) {
        const { class: Class, kind, code } = failures[name] ?? {};
        assert.deepEqual([Class, kind, code], ["SourceError", "no-space", "DISKETTE_NO_SPACE"], `${name}: ${JSON.stringify(failures)}`);
      }
    } finally {
      await protocol.send("Storage.overrideQuotaForOrigin", { origin });
    }
    await inPage(({ handEntry }) => handEntry("full"));
    if (kind === "handle") assert.deepEqual(readFileSync(path("full")), readFileSync(path("plain.qcow2")), "a picked file is as it was");
    assert.ok(failures.closed === null || failures.closed.kind === "no-space", JSON.stringify(failures.closed));
    // At most space is lost, and every byte is an old or a new one.
    const { leaks, corruptions } = JSON.parse(check("full"));
    assert.ok(!corruptions, JSON.stringify({ leaks, corruptions }));
    qemuImg("convert", "-O", "raw", path("full"), path("full.raw"));
    const source = readFileSync(path("source.raw"));
    const after = readFileSync(path("full.raw"));
    assert.ok(after.length >= source.length && after.every((byte, at) => byte === 1 || byte === (source[at] ?? 0)));
  });
}

function check(name) {
  try {
    return qemuImg("check", "--output=json", path(name));
  } catch (error) {
    return error.stdout;
  }
}

test("a copy to a picked file that is stopped leaves the file as it was", async () => {
  const stopped = await inPage(async ({ diskette, fetched, filled, failure, handEntry }) => {
    const image = await diskette.open(await fetched("plain.qcow2"));
    const target = await filled("stopped", "source.raw");
    const stop = new AbortController();
    const reason = await failure(diskette.convert(image, target, { signal: stop.signal, onProgress: () => stop.abort(new Error("that will do")) }));
    await handEntry("stopped");
    return reason.message;
  });
  assert.equal(stopped, "that will do");
  assert.deepEqual(readFileSync(path("stopped")), readFileSync(path("source.raw")));
});

test("a pool of workers opens, asks, makes and copies as the page does", async () => {
  const found = await inPage(async ({ workers, fetched, filled, entry, failure, handEntry, pattern }) => {
    const pool = new workers.Pool({ size: 2 });
    const file = await fetched("plain.qcow2");
    const inputs = [file, await file.arrayBuffer(), new URL("/images/plain.qcow2", location.href), "/images/plain.qcow2", await filled("given", "plain.qcow2")];
    inputs[3] = new URL(inputs[3], location.href).href;
    const images = await Promise.all(inputs.map((input) => pool.open(input)));
    const alike = [];
    const source = pattern(3_000_320);
    for (const image of images) {
      const bytes = await image.read(0, image.size);
      alike.push(bytes.every((byte, at) => byte === source[at]));
    }
    const asked = [];
    const top = await pool.open(await fetched("top.qcow2"), { onOpen: async ({ name, role }) => (asked.push([name, role]), fetched(name)) });
    const { corruptions } = await top.check();
    const extents = (await top.map()).length;
    const progress = [];
    await top.convert(await entry("by-pool"), { compressed: true, onProgress: ({ done }) => progress.push(done) });
    const made = await pool.create(await entry("made-by-pool"), { size: 4 << 20 });
    await made.write(5, pattern(100_000));
    await made.snapshots.create("now");
    await made.resize(8 << 20);
    const written = [made.size, (await made.snapshots.list()).map(({ name }) => name)];
    await made.close();
    const denied = await failure(pool.open(await fetched("top.qcow2"), { onOpen: () => null }));
    const paths = await failure(pool.open("plain.qcow2"));
    const functions = await failure(pool.open({ size: 5, read() {} }));
    await pool.close();
    const late = [await failure(images[0].read(0, 1)), await failure(pool.open(file))];
    await handEntry("by-pool");
    await handEntry("made-by-pool");
    return { alike, asked, corruptions, extents, progress, written, denied, paths, functions, late };
  });
  assert.deepEqual(found.alike, [true, true, true, true, true]);
  assert.deepEqual(found.asked, [["plain.qcow2", "backing"]]);
  assert.equal(found.corruptions, 0);
  assert.ok(found.extents > 1 && found.progress.at(-1) === 3_000_320, JSON.stringify(found));
  assert.deepEqual(found.written, [8 << 20, ["now"]]);
  assert.equal(found.denied.class, "ReferenceDeniedError");
  assert.deepEqual([found.paths.class, found.functions.class], ["UnsupportedError", "UnsupportedError"]);
  assert.deepEqual(found.late.map((error) => [error.class, error.kind]), [["SourceError", "io"], ["ClosedError", "closed"]]);
  for (const name of ["by-pool", "made-by-pool"]) clean(name);
  same("by-pool", "source.raw");
});

test("what a worker is busy with can be stopped", async () => {
  held = [];
  const outcomes = await inPage(async ({ workers, failure }) => {
    const pool = new workers.Pool({ size: 1 });
    const image = await pool.open(new URL("/slow/plain.qcow2", location.href));
    const outcomes = [];
    for (const reason of [new Error("enough"), undefined]) {
      const stop = new AbortController();
      const reading = failure(image.read(2_900_000, 512, { signal: stop.signal }));
      setTimeout(() => stop.abort(reason), 100);
      outcomes.push(await reading);
    }
    outcomes.push(await failure(image.read(0, 1, { signal: AbortSignal.abort() })));
    outcomes.push(await failure(image.read(2_900_000, 512, { signal: AbortSignal.timeout(100) })));
    outcomes.push((await image.info()).format);
    await pool.close();
    return outcomes;
  });
  assert.equal(outcomes[0].message, "enough");
  assert.deepEqual(outcomes.slice(1, 4).map(({ name }) => name), ["AbortError", "AbortError", "TimeoutError"]);
  assert.equal(outcomes[4], "qcow2", "the worker goes on");
  assert.ok(held.length > 0, "the reads did wait");
});

test("a worker that dies fails what it had, and the pool goes on", async () => {
  for (const [death, text] of [[() => self.close(), /it ended/], [() => void setTimeout(() => { throw new Error("out of order"); }), /out of order/]]) {
    await inPage(async ({ workers, failure }) => {
      const pool = new workers.Pool({ size: 2 });
      const address = new URL("/slow/plain.qcow2", location.href);
      const images = [await pool.open(address)];
      globalThis.trial = { pool, images, reading: [failure(images[0].read(2_900_000, 512)), failure(images[0].read(2_000_000, 512))] };
    });
    const [victim] = page.workers();
    assert.equal(page.workers().length, 1);
    await inPage(async ({ workers, fetched }) => {
      const { pool, images } = globalThis.trial;
      images.push(await pool.open(await fetched("plain.qcow2")));
    });
    assert.equal(page.workers().length, 2, "two images are in two workers");
    victim.evaluate(death).catch(() => {});
    const found = await inPage(async ({ workers, failure, fetched }) => {
      const { pool, images, reading } = globalThis.trial;
      const lost = [...(await Promise.all(reading)), await failure(images[0].read(0, 1))];
      const other = (await images[1].read(0, 100_000)).length;
      const again = await pool.open(await fetched("plain.qcow2"));
      const { corruptions } = await again.check();
      await Promise.all([again.close(), images[1].close()]);
      await pool.close();
      for (let turn = 0; turn < 100 && (await navigator.locks.query()).held.length > 0; turn++) await new Promise((resolve) => setTimeout(resolve, 20));
      return { lost, other, corruptions, locks: (await navigator.locks.query()).held.length };
    });
    for (const error of found.lost) {
      assert.deepEqual([error.class, error.kind], ["SourceError", "io"], JSON.stringify(error));
      assert.match(error.message, /the worker is gone/);
      assert.match(error.message, text);
    }
    assert.deepEqual([found.other, found.corruptions, found.locks], [100_000, 0, 0]);
  }
});

test("a worker that cannot be started fails what it was for, and the pool goes on", async () => {
  const found = await inPage(async ({ workers, failure, fetched }) => {
    const { Worker } = globalThis;
    const pool = new workers.Pool({ size: 1 });
    const file = await fetched("plain.qcow2");
    const failures = [];
    globalThis.Worker = class { constructor() { throw new DOMException("no workers on this page", "SecurityError"); } };
    failures.push(await failure(pool.open(file)));
    globalThis.Worker = class extends Worker { constructor() { super("/missing.js", { type: "module" }); } };
    failures.push(await failure(pool.open(file)));
    globalThis.Worker = Worker;
    const image = await pool.open(file);
    const { size } = image;
    await pool.close();
    return { failures, size };
  });
  assert.match(found.failures[0].message, /no workers on this page/);
  assert.deepEqual([found.failures[1].class, found.failures[1].kind], ["SourceError", "io"]);
  assert.equal(found.size, 3_000_320);
});
