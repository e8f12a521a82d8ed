// Where bytes come from: how often sources are asked, what happens when they fail, and how work is stopped.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";

import { cached } from "../src/cache.js";
import { open as openFull } from "../src/full-node.js";
import { ClosedError, DisketteError, RangeTooLargeError, ReferenceDeniedError, SourceError, UnsupportedError, open } from "../src/node.js";
import { Pump } from "../src/pump.js";
import { path, pattern, qemuImg, qemuIo, serve, slowSource } from "./support.mjs";

const KIB = 1024;
const MIB = KIB * KIB;
const source = pattern(3_000_320);

before(() => {
  writeFileSync(path("source.raw"), source);
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  qemuImg("create", "-q", "-f", "qcow2", path("scattered.qcow2"), "4M");
  // Clusters out of order, so that one read has several extents.
  qemuIo("scattered.qcow2", ...[8, 6, 4, 2, 0].map((at) => `write -P ${at + 1} ${at * 64}k 64k`));
});

test("the cache asks once for what several want, and ahead when reads are in order", async () => {
  const slow = slowSource(pattern(4 * MIB));
  const { read } = cached(slow);
  const parts = await Promise.all([read(0, 512), read(512, 512), read(1000, 4096)]);
  assert.deepEqual(parts[2], pattern(4 * MIB).slice(1000, 5096));
  assert.deepEqual(slow.reads, [[0, 256 * KIB]]);
  for (let at = 0; at < 4 * MIB; at += 64 * KIB) await read(at, 64 * KIB);
  // 256 KiB, then three times 1 MiB, then the rest.
  assert.deepEqual(slow.reads.map(([, length]) => length / KIB), [256, 1024, 1024, 1024, 768]);
  assert.ok(read(100, 200) instanceof Uint8Array, "what is known is answered at once");
});

test("the cache joins blocks at every border", async () => {
  const bytes = pattern(MIB + 77);
  const { read } = cached(slowSource(bytes, { delay: 0 }));
  for (const at of [0, 1, 256 * KIB - 1, 256 * KIB, 512 * KIB - 3, MIB, MIB + 76]) {
    for (const length of [1, 2, 255, 256 * KIB, 256 * KIB + 1, 700_000]) {
      const end = Math.min(bytes.length, at + length);
      assert.equal(Buffer.compare(await read(at, end - at), bytes.subarray(at, end)), 0, `${at} + ${length}`);
    }
  }
});

test("the cache is bounded, and large reads go past it", async () => {
  const slow = slowSource(new Uint8Array(), { size: 2 ** 40, read: async (offset, length) => (slow.reads.push(offset), new Uint8Array(length)) });
  const { read } = cached(slow);
  for (let block = 0; block < 400; block += 2) await read(block * 256 * KIB, 16);
  slow.reads.length = 0;
  await read(0, 16);
  assert.equal(slow.reads.length, 1, "the oldest block was given up");
  await read(398 * 256 * KIB, 16);
  assert.equal(slow.reads.length, 1, "the newest was kept");
  await read(2 ** 30, 8 * MIB);
  await read(398 * 256 * KIB, 16);
  assert.equal(slow.reads.length, 2);
});

test("the cache forgets failures and limits what is in flight", async () => {
  const bytes = pattern(16 * MIB);
  const slow = slowSource(bytes);
  const { read } = cached(slow);
  await Promise.all(Array.from({ length: 64 }, (_, block) => read(block * 256 * KIB, 1)));
  assert.equal(slow.most, 16);
  let broken = true;
  const flaky = cached(slowSource(bytes, { read: async (offset, length) => bytes.slice(offset, offset + length - Number(broken)) }));
  await assert.rejects(async () => flaky.read(0, 10), SourceError);
  broken = false;
  assert.deepEqual(await flaky.read(0, 10), bytes.slice(0, 10));
});

test("an address is read by ranges, few of them", async (context) => {
  const { url, requests } = await serve(context, "plain.qcow2");
  const image = await open(url);
  image.info();
  await image.map();
  assert.ok(requests.length <= 2, `${requests.length} requests for the metadata`);
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
});

test("a server whose Content-Range a page is not shown is asked for the size", async (context) => {
  const { url, requests } = await serve(context, "plain.qcow2");
  // What a page gets from a server of another origin that does not expose the header.
  const hiding = async (...args) => {
    const response = await fetch(...args);
    const headers = new Headers(response.headers);
    headers.delete("content-range");
    return Object.defineProperty(new Response(response.body, { status: response.status, headers }), "type", { value: "cors" });
  };
  const image = await open(url, { fetch: hiding });
  assert.deepEqual(requests.slice(0, 2), ["GET bytes=0-262143", "HEAD"]);
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
});

test("a server that does not say which bytes it sent is not believed", async (context) => {
  const { url } = await serve(context, "plain.qcow2", (answer) => delete answer.headers["Content-Range"]);
  await assert.rejects(open(url), (error) => error instanceof SourceError && /206 without Content-Range/.test(error.message) && error.operation === "fetch");
  let from = Infinity;
  const { url: later } = await serve(context, "plain.qcow2", (answer, request) => {
    if (Number(/\d+/.exec(request.headers.range)[0]) >= from) answer.headers["Content-Range"] = "about there";
  });
  const image = await open(later);
  from = 1;
  await assert.rejects(image.read(0, source.length), (error) => error instanceof SourceError && /other bytes than those asked for \(Content-Range: about there\)/.test(error.message));
  await image.close();
});

test("servers that do not do what is needed are explained", async (context) => {
  const cases = [
    [(answer) => (answer.status = 200), UnsupportedError, /does not answer range requests/],
    [(answer) => (answer.status = 404), SourceError, /answered 404/],
    [(answer) => (answer.headers["Content-Range"] = "bytes 0-1/*"), UnsupportedError, /does not tell the size/],
    [(answer) => (answer.body = answer.body.subarray(0, 10), answer.headers["Content-Length"] = 10), DisketteError, /bytes/],
  ];
  for (const [change, Kind, text] of cases) {
    const { url } = await serve(context, "plain.qcow2", change);
    await assert.rejects(open(url), (error) => error instanceof Kind && text.test(error.message) && error.path === url && (Kind === DisketteError || error.operation === "fetch"));
  }
  await assert.rejects(open("http://127.0.0.1:1/gone.qcow2"), (error) => error instanceof SourceError && /could not be fetched/.test(error.message));
});

test("a file that changes on the server is noticed", async (context) => {
  let tag = '"1"';
  const { url } = await serve(context, "plain.qcow2", (answer) => (answer.headers.ETag = tag));
  const image = await open(url);
  tag = '"2"';
  await assert.rejects(image.read(0, source.length), (error) => error instanceof SourceError && /changed on the server/.test(error.message) && error.cause instanceof SourceError && error.operation === "fetch");
  await image.close();
});

test("an empty file on a server is an empty disk", async (context) => {
  writeFileSync(path("nothing.raw"), "");
  const { url } = await serve(context, "nothing.raw");
  const image = await open(url);
  assert.equal(image.size, 0);
  assert.deepEqual(await image.map(), []);
  await image.close();
});

test("what is encrypted is not taken for raw unless that is said, and no more is read for that", async (context) => {
  const bytes = pattern(700_000);
  bytes.set([0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe, 0, 1]);
  writeFileSync(path("secret"), bytes);
  for (const name of ["over", "named"]) qemuImg("create", "-q", "-f", "qcow2", "-u", "-b", "secret", "-F", "raw", path(`${name}.qcow2`), "1M");
  const over = await openFull(path("over.qcow2"), { writable: true, noBacking: true });
  await over.setBacking("secret");
  await over.close();
  const { url, requests } = await serve(context, "secret");
  let closedTimes = 0;
  const slow = slowSource(bytes, { name: "secret", close: () => closedTimes++ });
  const prompt = { size: bytes.length, read: (at, length) => bytes.slice(at, at + length) };
  for (const input of [path("secret"), url, slow, prompt, bytes, new Blob([bytes])]) {
    await assert.rejects(open(input), (error) => error instanceof UnsupportedError && error.kind === "unsupported" && /encrypted \(LUKS\).*diskette\/full.*format: "raw"/.test(error.message));
    const image = await open(input, { format: "raw" });
    assert.deepEqual(await image.read(0, 10), bytes.slice(0, 10));
    await image.close();
  }
  assert.equal(closedTimes, 2);
  assert.equal(requests.length, 2, "an address is asked once each time it is opened");
  slow.reads.length = 0;
  await assert.rejects(open(slow), UnsupportedError);
  const plain = slowSource(pattern(bytes.length));
  await (await open(plain)).close();
  assert.deepEqual(slow.reads, plain.reads);
  const onOpen = () => path("secret");
  await assert.rejects(open(path("over.qcow2"), { onOpen }), (error) => error instanceof UnsupportedError && /secret' cannot be read: .*LUKS/.test(error.message) && error.path === path("secret"));
  for (const [name, options] of [["over.qcow2", {}], ["named.qcow2", { onOpen }]]) await (await open(path(name), options)).close();
  for (let length = 0; length < 6; length++) await (await open(bytes.slice(0, length))).close();
  await assert.rejects(open(bytes.slice(0, 6)), UnsupportedError);
});

test("the requests of one read overlap", async () => {
  const slow = slowSource(new Uint8Array(readFileSync(path("scattered.qcow2"))), { delay: 2 });
  const image = await open(slow);
  await image.read(0, 640 * KIB);
  assert.ok(slow.most >= 5, `${slow.most} requests in flight`);
  await image.close();
});

test("numbers are checked", async () => {
  const image = await open(path("plain.qcow2"));
  for (const bad of [-1, 1.5, 2 ** 53, 2n ** 64n, -1n, NaN, "1", undefined]) {
    await assert.rejects(image.read(bad, 1), RangeTooLargeError);
    await assert.rejects(image.readInto(bad, new Uint8Array(1)), RangeTooLargeError);
  }
  assert.throws(() => image.stream({ offset: -1 }), RangeTooLargeError);
  assert.deepEqual(await image.read(5n, 3n), source.slice(5, 8));
  await assert.rejects(image.read(source.length - 1, 2), (error) => error instanceof SourceError && /beyond the end/.test(error.message));
  await assert.rejects(image.read(0, 2 ** 52), SourceError);
  await assert.rejects(image.map({ offset: source.length + 1 }), SourceError);
  const into = new Uint8Array(100);
  assert.equal(await image.readInto(7, into), into);
  assert.deepEqual(into, source.slice(7, 107));
  assert.deepEqual(await image.read(10, 0), new Uint8Array());
  await image.close();
  await assert.rejects(image.read(0, 1), ClosedError);
  assert.throws(() => image.info(), ClosedError);
});

test("a disk that JavaScript cannot count is refused, and so is a read that memory cannot hold", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path("vast.qcow2"), "16P");
  await assert.rejects(open(path("vast.qcow2")), (error) => error instanceof RangeTooLargeError && /2\^53/.test(error.message));
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path("great.qcow2"), "4P");
  const image = await open(path("great.qcow2"));
  await assert.rejects(image.read(0, 2 ** 50), RangeTooLargeError);
  assert.equal((await image.map()).length, 1);
  await image.close();
});

test("a large read is cut into pieces and equals the source", async () => {
  const bytes = pattern(21_000_000);
  writeFileSync(path("pieces.raw"), bytes);
  qemuImg("convert", "-O", "qcow2", path("pieces.raw"), path("pieces.qcow2"));
  const image = await open(path("pieces.qcow2"));
  assert.equal(Buffer.compare(await image.read(100, 20_000_000), bytes.subarray(100, 20_000_100)), 0);
  await image.close();
});

test("a read can be aborted, and asks for nothing more", async () => {
  const bytes = new Uint8Array(readFileSync(path("plain.qcow2")));
  let release;
  let gate;
  const slow = slowSource(bytes);
  const read = slow.read;
  slow.read = async (offset, length) => {
    await gate;
    return read(offset, length);
  };
  const image = await open(slow);
  gate = new Promise((resolve) => (release = resolve));
  const controller = new AbortController();
  const reading = image.read(0, source.length, { signal: controller.signal });
  controller.abort();
  await assert.rejects(reading, { name: "AbortError" });
  await assert.rejects(image.check({ signal: controller.signal }), { name: "AbortError" });
  await assert.rejects(image.map({ signal: AbortSignal.abort() }), { name: "AbortError" });
  release();
  gate = undefined;
  await new Promise((resolve) => setTimeout(resolve, 20));
  const asked = slow.reads.length;
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(slow.reads.length, asked, "the aborted read goes on");
  assert.deepEqual(await image.read(0, 16), source.slice(0, 16));
  await image.close();
  await assert.rejects(open(slowSource(bytes), { signal: AbortSignal.timeout(0) }), { name: "TimeoutError" });
  await assert.rejects(open(slowSource(bytes), { signal: AbortSignal.abort("enough") }), (reason) => reason === "enough");
});

test("streams can be cancelled and aborted, and end what is ahead", async () => {
  const image = await open(slowSource(new Uint8Array(readFileSync(path("plain.qcow2")))));
  const reader = image.stream().getReader();
  assert.equal((await reader.read()).value.length, MIB);
  await reader.cancel();
  const controller = new AbortController();
  const aborted = image.stream({ signal: controller.signal }).getReader();
  await aborted.read();
  controller.abort();
  await assert.rejects(async () => {
    while (!(await aborted.read()).done);
  }, { name: "AbortError" });
  await image.close();
});

test("closing ends what is running and closes what was opened", async () => {
  let closedTimes = 0;
  const bytes = new Uint8Array(readFileSync(path("plain.qcow2")));
  const image = await open(slowSource(bytes, { delay: 5, close: () => closedTimes++ }));
  const reading = image.read(0, source.length);
  const disposing = image[Symbol.asyncDispose]();
  await assert.rejects(reading, ClosedError);
  await disposing;
  await image.close();
  assert.equal(closedTimes, 1);
  await assert.rejects(open({ ...slowSource(new Uint8Array(100)), close: () => closedTimes++ }, { format: "qcow2" }), DisketteError);
  assert.equal(closedTimes, 2, "closed after a failed open");
});

test("what onOpen throws is the cause of the error", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("top.qcow2"));
  const reason = new Error("no such luck");
  const rejected = open(path("top.qcow2"), { onOpen: () => { throw reason; } });
  await assert.rejects(rejected, (error) => error instanceof SourceError && error.cause === reason && /no such luck/.test(error.message));
});

test("files that are no images: directories, FIFOs, missing, empty, shrinking", async () => {
  mkdirSync(path("folder"));
  execFileSync("mkfifo", [path("fifo")]);
  for (const name of ["folder", "fifo"]) {
    await assert.rejects(open(path(name)), (error) => error instanceof SourceError && /not a regular file/.test(error.message));
  }
  await assert.rejects(open(path("missing")), (error) => error instanceof SourceError && error.kind === "not-found");
  await assert.rejects(open(42), UnsupportedError);
  const empty = await open(new Uint8Array());
  assert.equal(empty.size, 0);
  await empty.close();
  writeFileSync(path("shrinks.qcow2"), readFileSync(path("plain.qcow2")));
  const image = await open(path("shrinks.qcow2"));
  truncateSync(path("shrinks.qcow2"), 400_000);
  await assert.rejects(image.read(0, source.length), (error) => error instanceof SourceError && /has 400000 bytes instead of \d+ since it was opened/.test(error.message));
  await image.close();
});

test("backing loops and endless chains end with an error", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-u", "-b", "loop.qcow2", "-F", "qcow2", path("loop.qcow2"), "1M");
  const bytes = readFileSync(path("loop.qcow2"));
  await assert.rejects(open(path("loop.qcow2"), { onOpen: ({ name }) => path(name) }), DisketteError);
  await assert.rejects(open(new Uint8Array(bytes), { onOpen: () => new Uint8Array(bytes) }), DisketteError);
  let count = 0;
  const endless = () => slowSource(new Uint8Array(bytes), { name: `link ${++count}`, delay: 0 });
  await assert.rejects(open(endless(), { onOpen: endless }), (error) => error instanceof RangeTooLargeError && error.kind === "over-budget");
  assert.ok(count <= 202);
  await assert.rejects(open(path("loop.qcow2"), { onOpen: () => false }), ReferenceDeniedError);
});

test("a module that breaks rejects what is running instead of hanging", async () => {
  const broken = () => {
    throw new WebAssembly.RuntimeError("unreachable");
  };
  let closedTimes = 0;
  const pump = new Pump({ poll: broken, free: broken }, { name: "any", size: 0, close: () => closedTimes++ }, () => null);
  await assert.rejects(pump.run(() => 1), (error) => error instanceof DisketteError && error.kind === "internal" && /unreachable/.test(error.message));
  await pump.close();
  assert.equal(closedTimes, 1);
});
