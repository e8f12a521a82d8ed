// Servers and sources that answer with something else than what was asked for, and callers that pass what is no number or array.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { before, test } from "node:test";

import { DisketteError, RangeTooLargeError, SourceError, UnsupportedError, open } from "../src/node.js";
import { path, pattern, qemuImg, serve } from "./support.mjs";

const source = pattern(3_000_320);
let bytes;

before(() => {
  writeFileSync(path("source.raw"), source);
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  bytes = new Uint8Array(readFileSync(path("plain.qcow2")));
});

const isSource = (text) => (error) => error instanceof SourceError && text.test(error.message);

/** A source in memory whose `read` is given. */
const answering = (read, more = {}) => ({ name: "liar", size: bytes.length, read, ...more });

test("a server that sends other bytes than those asked for is not believed", async (context) => {
  const { url } = await serve(context, "plain.qcow2", (answer, request) => {
    const [start, end] = request.headers.range.match(/\d+/g).map(Number);
    if (start === 0) return;
    answer.body = readFileSync(path("plain.qcow2")).subarray(0, Math.min(end, bytes.length - 1) - start + 1);
    answer.headers["Content-Range"] = `bytes 0-${answer.body.length - 1}/${bytes.length}`;
  });
  const image = await open(url);
  await assert.rejects(image.read(0, source.length), isSource(/sent other bytes than those asked for/));
  await image.close();
});

test("a file that grows on a server without versions is noticed", async (context) => {
  let more = 0;
  const { url } = await serve(context, "plain.qcow2", (answer) => {
    delete answer.headers.ETag;
    answer.headers["Content-Range"] = answer.headers["Content-Range"].replace(/\d+$/, String(bytes.length + more));
  });
  const image = await open(url);
  more = 512;
  await assert.rejects(image.read(0, source.length), isSource(/changed on the server/));
  await image.close();
});

test("a server that never stops sending is left", async (context) => {
  let sent = 0;
  const server = createServer((request, response) => {
    response.writeHead(206, { "Content-Range": `bytes 0-262143/${bytes.length}` });
    const send = () => {
      while (!response.destroyed && sent < 1 << 30 && response.write(Buffer.alloc(1 << 20))) sent += 1 << 20;
    };
    response.on("drain", send);
    send();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  await assert.rejects(open(`http://127.0.0.1:${server.address().port}/`), isSource(/more than the 262144 bytes/));
  assert.ok(sent < 64 << 20, `${sent} bytes were taken`);
});

test("a file on a server that is too large to count is refused as that", async (context) => {
  const { url } = await serve(context, "plain.qcow2", (answer) => (answer.headers["Content-Range"] = `bytes 0-262143/${2n ** 60n}`));
  await assert.rejects(open(url), RangeTooLargeError);
});

test("a signal ends an opening from a server that never answers, with its own reason", async (context) => {
  const server = createServer((request, response) => {
    if (request.url === "/body") response.writeHead(206, { "Content-Range": "bytes 0-262143/1000000" }).flushHeaders();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  const base = `http://127.0.0.1:${server.address().port}`;
  for (const place of ["head", "body"]) {
    await assert.rejects(open(`${base}/${place}`, { signal: AbortSignal.timeout(50) }), { name: "TimeoutError" }, place);
    const controller = new AbortController();
    setTimeout(() => controller.abort("enough"), 50);
    await assert.rejects(open(`${base}/${place}`, { signal: controller.signal }), (reason) => reason === "enough", place);
  }
});

test("a source that answers with something else than bytes is an error, not zeroes", async () => {
  const wrong = [(length) => "x".repeat(length), (length) => Array(length).fill(1), (length) => new Uint16Array(length), (length) => new DataView(new ArrayBuffer(length)), () => null, () => 7];
  for (const answer of wrong) {
    for (const read of [(offset, length) => answer(length), async (offset, length) => answer(length)]) {
      await assert.rejects(open(answering(read), { format: "qcow2" }), isSource(/a Uint8Array, not with/));
      let lying = false;
      const image = await open(answering((offset, length) => (lying ? read(offset, length) : bytes.slice(offset, offset + length))));
      lying = true;
      await assert.rejects(image.read(0, 512), isSource(/a Uint8Array, not with/));
      await assert.rejects(image.readFile(0, 512), isSource(/a Uint8Array, not with/));
      await image.close();
    }
  }
  const image = await open(answering((offset, length) => bytes.slice(offset, offset + length).buffer));
  assert.deepEqual(await image.read(0, 512), source.slice(0, 512));
  assert.deepEqual(await image.readFile(0, 512), bytes.slice(0, 512));
  await image.close();
});

test("whatever a source throws ends in a typed error", async () => {
  for (const thrown of [null, undefined, 5, "text", { message: 7, kind: 5 }, new DOMException("gone", "NotReadableError"), new Error(""), Object.create(null)]) {
    for (const read of [() => { throw thrown; }, () => Promise.reject(thrown)]) {
      await assert.rejects(open(answering(read)), DisketteError);
      let broken = false;
      const image = await open(answering((offset, length) => (broken ? read() : bytes.slice(offset, offset + length))));
      broken = true;
      await assert.rejects(image.read(0, 512), DisketteError);
      await assert.rejects(image.readFile(0, 512), (error) => error instanceof SourceError && error.cause === thrown && error.path === "liar");
      await image.close();
    }
  }
  const gone = () => { throw new DOMException("the handle is closed", "InvalidStateError"); };
  await assert.rejects(open({ getSize: gone, read: gone }), isSource(/the handle is closed/));
  const missing = async () => { throw new DOMException("no such entry", "NotFoundError"); };
  await assert.rejects(open({ getFile: missing }), (error) => error instanceof SourceError && error.kind === "not-found");
});

test("a failure that says nothing does not explain another", async () => {
  let silent = true;
  const image = await open(answering((offset, length) => {
    if (offset >= 0x50000 && silent) throw new Error("");
    return bytes.slice(offset, offset + length - Number(offset >= 0x50000));
  }));
  await assert.rejects(image.read(0, 512), (error) => error instanceof SourceError && error.cause?.message === "");
  silent = false;
  await assert.rejects(image.read(0, 512), (error) => isSource(/511 bytes where 512/)(error) && error.cause instanceof SourceError);
  await image.close();
});

test("every source is closed, whatever closing one of them throws", async () => {
  const closed = [];
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("top.qcow2"));
  const given = (name) => {
    const bytes = new Uint8Array(readFileSync(path(name)));
    const close = async () => {
      closed.push(name);
      throw new Error(`${name} does not close`);
    };
    return { name, size: bytes.length, read: (offset, length) => bytes.slice(offset, offset + length), close };
  };
  const image = await open(given("top.qcow2"), { onOpen: ({ name }) => given(name) });
  await assert.rejects(image.close(), /top\.qcow2 does not close/);
  assert.deepEqual(closed, ["top.qcow2", "plain.qcow2"]);
  await assert.rejects(open(given("source.raw"), { format: "qcow2" }), DisketteError, "the error is that of opening");
});

test("a source may count its size in a bigint, and its name may be anything", async () => {
  const image = await open(answering((offset, length) => bytes.slice(offset, offset + length), { size: BigInt(bytes.length), name: 7 }));
  assert.deepEqual(image.files, [{ name: "7", size: bytes.length }]);
  assert.deepEqual(await image.readFile(1n, 3n), bytes.slice(1, 4));
  assert.deepEqual(await image.readFile(bytes.length - 1, 100), bytes.slice(-1));
  await assert.rejects(image.readFile(0, 1, { file: 1 }), (error) => error instanceof RangeTooLargeError && /1 are open/.test(error.message));
  await image.close();
  for (const size of [-1, 1.5, NaN, 2n ** 53n, "9", null]) {
    await assert.rejects(open(answering(() => new Uint8Array(), { size })), RangeTooLargeError, String(size));
  }
});

test("readInto fills arrays of bytes only, and read wants a length", async () => {
  const image = await open(bytes);
  for (const into of [new ArrayBuffer(16), new Uint16Array(16), new DataView(new ArrayBuffer(16)), Array(16), null]) {
    await assert.rejects(image.readInto(0, into), UnsupportedError);
  }
  assert.deepEqual(new Uint8Array(await image.readInto(3, Buffer.alloc(9))), source.slice(3, 12));
  const shared = await image.readInto(3, new Uint8Array(new SharedArrayBuffer(9)));
  assert.deepEqual(Uint8Array.from(shared), source.slice(3, 12));
  await assert.rejects(image.read(0), RangeTooLargeError);
  await image.close();
});

test("many reads at once agree with one", async () => {
  const image = await open(answering(async (offset, length) => {
    await new Promise((resolve) => setTimeout(resolve, (offset / 512) % 3));
    return bytes.slice(offset, offset + length);
  }));
  const places = Array.from({ length: 200 }, (_, index) => [(index * 14_983) % 2_900_000, 1 + ((index * 7919) % 90_000)]);
  const parts = await Promise.all(places.map(([at, length]) => image.read(at, length)));
  places.forEach(([at, length], index) => assert.equal(Buffer.compare(parts[index], source.subarray(at, at + length)), 0, `${at} + ${length}`));
  await image.close();
});
