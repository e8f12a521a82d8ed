// Files that others change while they are open, servers that are slow, break off or lie, targets that cannot zero.

import assert from "node:assert/strict";
import { copyFileSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Memory, RangeTooLargeError, SourceError, UnsupportedError, convert, create, open } from "../src/full-node.js";
import { path, pattern, qemuImg, qemuIo, serve } from "./support.mjs";

const MIB = 1024 * 1024;
const source = pattern(3_000_320);
let bytes;

before(() => {
  writeFileSync(path("source.raw"), source);
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  bytes = readFileSync(path("plain.qcow2"));
});

function copy(name) {
  copyFileSync(path("plain.qcow2"), path(name));
  return path(name);
}

const fails = (kind, text) => (error) => error instanceof SourceError && error.kind === kind && text.test(error.message);

test("what another program wrote is not written over", async () => {
  const file = copy("shared.qcow2");
  const first = await open(file, { writable: true });
  await first.write(0, new Uint8Array(10).fill(1));
  await first.flush();
  await sleep(20);
  qemuIo("shared.qcow2", "write -P 7 1M 1M");
  await assert.rejects(first.write(2 * MIB, pattern(100_000)), fails("busy", /another program (wrote to it|changed its length).*open the image again/));
  await first.abandon();
  qemuImg("check", "-q", file);
  const again = await open(file, { writable: true });
  assert.deepEqual(await again.read(MIB, 100), new Uint8Array(100).fill(7));
  await again.write(2 * MIB, pattern(100_000));
  await again.close();
  qemuImg("check", "-q", file);
});

test("an image that lies still between changes is not taken for one that others changed", async () => {
  const file = copy("quiet.qcow2");
  const image = await open(file, { writable: true });
  for (let round = 0; round < 5; round++) {
    await image.write(round * 500_000, new Uint8Array(400_000).fill(round + 1));
    if (round % 2) await image.flush();
    await sleep(15);
  }
  await image.resize(8 * MIB);
  await image.close();
  qemuImg("check", "-q", file);
});

test("a file that loses its end while it is written says so, with both lengths", async () => {
  const file = copy("cut.qcow2");
  const image = await open(file, { writable: true });
  await image.write(0, pattern(200_000));
  truncateSync(file, 300_000);
  await assert.rejects(image.flush(), fails("busy", /length from \d+ to 300000 bytes/));
  await image.abandon();
});

test("what was written to a file that has gone is not said to be safe", async () => {
  const cases = [
    [(file) => rmSync(file), fails("not-found", /it was removed while it was open/)],
    [(file) => renameSync(copy("other.qcow2"), file), fails("busy", /another file has taken its place/)],
  ];
  for (const [change, isExpected] of cases) {
    const file = copy("goes.qcow2");
    const image = await open(file, { writable: true });
    await image.write(0, pattern(200_000));
    change(file);
    await assert.rejects(image.flush(), isExpected);
    await assert.rejects(image.close(), isExpected);
  }
  assert.deepEqual(readFileSync(path("goes.qcow2")), bytes, "the file that took the place is as it was");
});

test("a file that is given another name is written to its end, and that is said", async () => {
  for (const [change, isExpected] of [
    [() => {}, fails("not-found", /given another name while it was open, and what was written is in it there$/)],
    [(file) => renameSync(copy("other.qcow2"), file), fails("busy", /in it there, not in the file that has its name now/)],
  ]) {
    const file = copy("named.qcow2");
    const image = await open(file, { writable: true });
    await image.write(0, new Uint8Array(200_000).fill(5));
    renameSync(file, path("renamed.qcow2"));
    change(file);
    await image.write(MIB, new Uint8Array(200_000).fill(6));
    await image.flush();
    await assert.rejects(image.close(), isExpected);
    qemuImg("check", "-q", path("renamed.qcow2"));
    qemuIo("renamed.qcow2", "read -P 5 0 200000", "read -P 6 1M 200000");
    if (change.length > 0) assert.deepEqual(readFileSync(file), bytes, "what took the name is as it was");
  }
});

test("a path is the same whatever folder the process is in", async () => {
  const here = process.cwd();
  copy("relative.qcow2");
  process.chdir(path("."));
  try {
    const image = await open("relative.qcow2", { writable: true });
    const made = await create("relative-new.qcow2", { size: MIB });
    for (const each of [image, made]) await each.write(0, new Uint8Array(100_000).fill(5));
    process.chdir(here);
    for (const each of [image, made]) await each.close();
  } finally {
    process.chdir(here);
  }
  for (const name of ["relative.qcow2", "relative-new.qcow2"]) qemuIo(name, "read -P 5 0 100000");
});

test("an image that is only read stays the file that was opened", async () => {
  const file = copy("read.qcow2");
  const image = await open(file);
  renameSync(copy("other.qcow2"), file);
  truncateSync(file, 0);
  rmSync(file);
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
  const cut = await open(copy("cut.qcow2"));
  truncateSync(path("cut.qcow2"), 300_000);
  await assert.rejects(cut.read(0, source.length), fails("io", /has 300000 bytes instead of \d+ since it was opened/));
  await cut.close();
});

test("a process does not work against itself", async () => {
  const file = copy("once.qcow2");
  const image = await open(file, { writable: true });
  for (const name of [file, new URL(`file://${file}`)]) {
    await assert.rejects(open(name, { writable: true }), fails("busy", /open for writing already/));
    await assert.rejects(create(name, { size: MIB }), fails("busy", /open for writing already/));
  }
  const reader = await open(file);
  assert.equal((await reader.read(0, 5)).length, 5);
  await reader.close();
  await assert.rejects(convert(image, file), { kind: "busy" });
  await image.close();
  const copied = await open(file);
  await assert.rejects(convert(copied, file, { format: "raw" }), fails("busy", /is being read/));
  assert.equal(Buffer.compare(await copied.read(0, source.length), source), 0);
  await copied.close();
  assert.deepEqual(readFileSync(file), bytes);
  await (await create(file, { size: MIB })).close();
});

/** A server whose answers a test gives. */
async function answering(context, answer) {
  const server = createServer(answer);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  return `http://127.0.0.1:${server.address().port}/disk.qcow2`;
}

/** Where a request begins, and the head of an answer to it. */
function begin(request, response, more = {}) {
  const [start, end] = request.headers.range.match(/\d+/g).map(Number);
  const part = bytes.subarray(start, end + 1);
  response.writeHead(206, { "Content-Range": `bytes ${start}-${start + part.length - 1}/${bytes.length}`, "Content-Length": part.length, ...more });
  return { start, part };
}

test("a connection that breaks off fails what it was for, and nothing else", async (context) => {
  let broken = null;
  const url = await answering(context, (request, response) => {
    if (broken === "before") return request.socket.destroy();
    const { part } = begin(request, response);
    if (broken === "within") return response.write(part.subarray(0, 1000), () => request.socket.destroy());
    response.end(part);
  });
  const image = await open(url);
  const expected = { before: /could not be fetched/, within: /the transfer broke off/ };
  for (broken of ["before", "within"]) {
    await assert.rejects(image.read(0, source.length), (error) => fails("io", expected[broken])(error) && error.cause instanceof SourceError);
  }
  broken = null;
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0, "what is asked again is answered again");
  for (broken of ["before", "within"]) await assert.rejects(open(url), fails("io", expected[broken]));
  await image.close();
});

test("a server has as long for an answer as it is given", async (context) => {
  let slow = null;
  const url = await answering(context, (request, response) => {
    if (slow === "head") return;
    const { part } = begin(request, response);
    if (slow === "body") return response.write(part.subarray(0, 10));
    if (slow === "drops") {
      let at = 0;
      const timer = setInterval(() => response.write(part.subarray(at, ++at)), 20);
      return response.on("close", () => clearInterval(timer));
    }
    response.end(part);
  });
  for (slow of ["head", "body", "drops"]) await assert.rejects(open(url, { timeout: 100 }), fails("io", /more than 100 ms/), slow);
  slow = null;
  const image = await open(url, { timeout: 5000 });
  slow = "head";
  const controller = new AbortController();
  const reading = image.read(0, source.length, { signal: controller.signal });
  setTimeout(() => controller.abort(new Error("enough")), 50);
  await assert.rejects(reading, /enough/, "a signal comes first, with its own reason");
  await image.close();
  slow = null;
  const hurried = await open(url, { timeout: 150 });
  slow = "drops";
  await assert.rejects(hurried.read(0, source.length), fails("io", /more than 150 ms/));
  slow = null;
  assert.equal(Buffer.compare(await hurried.read(0, source.length), source), 0);
  await hurried.close();
  for (const timeout of [-1, NaN, "5"]) await assert.rejects(open(url, { timeout }), RangeTooLargeError);
});

test("a timeout that no timer can take is none, and one holds for any fetch", async (context) => {
  const url = await answering(context, (request, response) => response.end(begin(request, response).part));
  for (const timeout of [2 ** 31, Number.MAX_SAFE_INTEGER]) {
    const image = await open(url, { timeout });
    assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
    await image.close();
  }
  const deaf = () => new Promise(() => {});
  await assert.rejects(open(url, { fetch: deaf, timeout: 50 }), fails("io", /more than 50 ms/));
  const stop = new AbortController();
  setTimeout(() => stop.abort(new Error("enough")), 20);
  await assert.rejects(open(url, { fetch: deaf, signal: stop.signal }), /enough/);
});

test("a server that forgets about ranges, or lies about lengths, is not believed", async (context) => {
  let lie = null;
  const url = await answering(context, (request, response) => {
    if (lie === "whole") return response.writeHead(200).end(bytes);
    if (lie === "short") return response.end(begin(request, response, { "Content-Length": 100 }).part.subarray(0, 100));
    if (lie === "long") {
      // More is announced than there is.
      const { part } = begin(request, response, { "Content-Length": 2 ** 40 });
      return response.write(part, () => request.socket.end());
    }
    if (lie === "more") return response.end(Buffer.alloc(begin(request, response, { "Content-Length": 2 * MIB }).part.length && 2 * MIB));
    response.end(begin(request, response).part);
  });
  const image = await open(url);
  const expected = {
    whole: [UnsupportedError, /does not answer range requests/],
    short: [SourceError, /100 bytes where \d+ were expected/],
    long: [SourceError, /the transfer broke off/],
    more: [SourceError, /more than the \d+ bytes asked for/],
  };
  for (lie of Object.keys(expected)) {
    const [Kind, text] = expected[lie];
    await assert.rejects(image.read(0, source.length), (error) => error instanceof Kind && text.test(error.message), lie);
  }
  lie = null;
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
  const { url: vast } = await serve(context, "plain.qcow2", (answer) => (answer.headers["Content-Range"] = `bytes 0-262143/${2n ** 63n}`));
  await assert.rejects(open(vast), RangeTooLargeError);
});

test("a target that cannot zero gets its zeroes in pieces", async () => {
  for (const [format, size] of [["raw", 24 * MIB + 512], ["qcow2", 24 * MIB]]) {
    const memory = new Memory();
    let most = 0;
    let flying = 0;
    let together = 0;
    const target = {
      size: 0,
      read: (offset, length) => memory.read(offset, length),
      resize: (length) => memory.resize(length),
      async write(offset, part) {
        most = Math.max(most, part.length);
        together = Math.max(together, ++flying);
        await sleep();
        memory.write(offset, part);
        flying--;
      },
    };
    const image = await create(target, { size, format, preallocation: "full" });
    await image.zero(MIB + 7, 20 * MIB, { unmap: false });
    await image.close();
    assert.ok(most <= MIB && together <= 16, `${format}: ${most} bytes at once, ${together} together`);
    writeFileSync(path("zeroes"), memory.bytes);
    assert.match(qemuImg("map", "--output=json", "-f", format, path("zeroes")), /"present": true/);
    if (format === "qcow2") qemuImg("check", "-q", path("zeroes"));
  }
});
