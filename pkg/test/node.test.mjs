import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, openAsBlob, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { open as openHandle } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { ClosedError, CorruptImageError, RangeTooLargeError, ReferenceDeniedError, SourceError, UnsupportedError, open } from "../src/node.js";

let folder;
const path = (name) => join(folder, name);
const qemuImg = (...args) => execFileSync("qemu-img", args, { encoding: "utf8" });

/** Bytes that differ from place to place, with a hole. */
function pattern(length) {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = at % 600_000 < 300_000 ? (at * 7 + (at >> 9)) & 0xff : 0;
  return bytes;
}

const source = pattern(3_000_320);
const IMAGES = {
  "plain.qcow2": ["-O", "qcow2"],
  "small-clusters.qcow2": ["-O", "qcow2", "-o", "cluster_size=512"],
  "zlib.qcow2": ["-c", "-O", "qcow2"],
  "zstd.qcow2": ["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
  "extended.qcow2": ["-O", "qcow2", "-o", "extended_l2=on"],
  "v2.qcow2": ["-O", "qcow2", "-o", "compat=0.10"],
};

before(() => {
  folder = mkdtempSync(join(tmpdir(), "diskette-node-"));
  writeFileSync(path("source.raw"), source);
  for (const [name, options] of Object.entries(IMAGES)) qemuImg("convert", ...options, path("source.raw"), path(name));
});
after(() => rmSync(folder, { recursive: true, force: true }));

for (const name of Object.keys(IMAGES)) {
  test(`${name} reads like its source, however it is opened`, async () => {
    const handle = await openHandle(path(name));
    const bytes = readFileSync(path(name));
    for (const input of [path(name), handle, await openAsBlob(path(name)), new Uint8Array(bytes), new URL(`file://${path(name)}`)]) {
      const image = await open(input);
      assert.equal(image.size, source.length);
      assert.deepEqual(Buffer.compare(await image.read(0, source.length), source), 0);
      for (const [at, length] of [[1, 1], [65_535, 2], [299_000, 3000], [2_999_000, 1320]]) {
        assert.deepEqual(await image.read(at, length), source.slice(at, at + length));
      }
      await image.close();
    }
    await handle.close();
  });

  test(`${name} maps and checks like qemu-img`, async () => {
    const image = await open(path(name));
    const theirs = JSON.parse(qemuImg("map", "--output=json", path(name)));
    const ours = (await image.map()).map(({ start, length, depth, present, zero, data, compressed, offset }) => ({
      start, length, depth, present, zero, data, compressed, ...(offset === null ? {} : { offset }),
    }));
    assert.deepEqual(ours, theirs);
    const check = await image.check();
    assert.equal(check.leaks + check.corruptions + check.checkErrors, 0);
    assert.equal(check.imageEndOffset, JSON.parse(qemuImg("check", "--output=json", path(name)))["image-end-offset"]);
    const info = JSON.parse(qemuImg("info", "--output=json", path(name)));
    assert.equal(image.info().virtualSize, info["virtual-size"]);
    assert.deepEqual(image.info().properties, info["format-specific"].data);
    await image.close();
  });
}

test("a stream gives the disk in order", async () => {
  const image = await open(path("zlib.qcow2"));
  const parts = [];
  for await (const part of image.stream({ offset: 1000, length: 2_500_000 })) parts.push(part);
  assert.equal(Buffer.compare(Buffer.concat(parts), source.subarray(1000, 2_501_000)), 0);
  await image.close();
});

test("a backing file is opened only when onOpen allows it", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("top.qcow2"));
  const asked = [];
  const image = await open(path("top.qcow2"), {
    onOpen(reference) {
      asked.push(reference);
      return path(reference.name);
    },
  });
  assert.deepEqual(asked, [{ name: "plain.qcow2", format: "qcow2", role: "backing", from: path("top.qcow2") }]);
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  assert.equal(image.info().chain.length, 2);
  await image.close();

  const alone = await open(path("top.qcow2"));
  assert.equal(alone.info().backingFile.name, "plain.qcow2");
  assert.equal(alone.info().backingOpened, false);
  await assert.rejects(alone.read(0, 512), (error) => error instanceof ReferenceDeniedError && /plain\.qcow2/.test(error.message));
  await alone.close();
  await assert.rejects(open(path("top.qcow2"), { onOpen: () => null }), ReferenceDeniedError);
});

test("an external data file is opened through onOpen", async () => {
  qemuImg("convert", "-O", "qcow2", "-o", `data_file=${path("data.raw")}`, path("source.raw"), path("external.qcow2"));
  const image = await open(path("external.qcow2"), { onOpen: ({ name }) => name });
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
});

test("an address is read by ranges, few of them, and a server without ranges is refused", async (context) => {
  const bytes = readFileSync(path("plain.qcow2"));
  let requests = 0;
  const server = createServer((request, response) => {
    requests++;
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    if (request.url === "/no-ranges" || !range) return response.end(bytes);
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)];
    response.writeHead(206, { "Content-Range": `bytes ${start}-${end}/${bytes.length}` });
    response.end(bytes.subarray(start, end + 1));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  const base = `http://127.0.0.1:${server.address().port}`;
  const image = await open(`${base}/plain.qcow2`);
  await image.map();
  assert.ok(requests <= 4, `${requests} requests for the metadata`);
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
  await assert.rejects(open(`${base}/no-ranges`), UnsupportedError);
});

test("requests of one read overlap", async () => {
  const bytes = readFileSync(path("small-clusters.qcow2"));
  let flying = 0;
  let most = 0;
  // Clusters out of order, so that one read has several extents.
  qemuImg("create", "-q", "-f", "qcow2", path("scattered.qcow2"), "4M");
  for (const at of [8, 6, 4, 2, 0]) execFileSync("qemu-io", ["-c", `write -P ${at + 1} ${at * 64}k 64k`, path("scattered.qcow2")]);
  const scattered = readFileSync(path("scattered.qcow2"));
  const image = await open({
    name: "slow",
    size: scattered.length,
    async read(offset, length) {
      most = Math.max(most, ++flying);
      await new Promise((resolve) => setTimeout(resolve, 2));
      flying--;
      return new Uint8Array(scattered.subarray(offset, offset + length));
    },
  });
  await image.read(0, 640 * 1024);
  assert.ok(most >= 5, `${most} requests in flight`);
  await image.close();
  assert.ok(bytes.length > 0);
});

test("numbers are checked", async () => {
  const image = await open(path("plain.qcow2"));
  for (const bad of [-1, 1.5, 2 ** 53, 2n ** 64n, -1n, NaN]) {
    await assert.rejects(async () => image.read(bad, 1), RangeTooLargeError);
  }
  assert.deepEqual(await image.read(5n, 3n), source.slice(5, 8));
  await assert.rejects(image.read(source.length - 1, 2), SourceError);
  await assert.rejects(image.read(0, 2 ** 52), SourceError);
  const into = new Uint8Array(100);
  assert.equal(await image.readInto(7, into), into);
  assert.deepEqual(into, source.slice(7, 107));
  await image.close();
  await assert.rejects(async () => image.read(0, 1), ClosedError);
});

test("a job can be aborted", async () => {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  const bytes = readFileSync(path("plain.qcow2"));
  let slow = false;
  const image = await open({
    size: bytes.length,
    async read(offset, length) {
      if (slow) await gate;
      return new Uint8Array(bytes.subarray(offset, offset + length));
    },
  });
  slow = true;
  const controller = new AbortController();
  const reading = image.read(0, 4096, { signal: controller.signal });
  controller.abort();
  await assert.rejects(reading, { name: "AbortError" });
  release();
  slow = false;
  assert.deepEqual(await image.read(0, 16), source.slice(0, 16));
  await image.close();
});

test("hostile and broken images give typed errors", async () => {
  const good = readFileSync(path("plain.qcow2"));
  const damaged = (at, ...values) => {
    const bytes = new Uint8Array(good);
    bytes.set(values, at);
    return bytes;
  };
  await assert.rejects(open(damaged(20, 0, 0, 0, 40)), (error) => error instanceof CorruptImageError && error.offset === 20);
  await assert.rejects(open(damaged(72, 0, 0, 0, 0, 0, 0, 1, 0)), UnsupportedError);
  for (let length = 0; length < 110; length += 7) {
    await assert.rejects(open(new Uint8Array(good.subarray(0, length)), { format: "qcow2" }), CorruptImageError);
  }
  await assert.rejects(open("/does/not/exist"), (error) => error instanceof SourceError && error.kind === "not-found");
  await assert.rejects(open(folder), SourceError);
  writeFileSync(path("shrinks.qcow2"), good);
  const image = await open(path("shrinks.qcow2"));
  truncateSync(path("shrinks.qcow2"), 400_000);
  await assert.rejects(image.read(0, source.length), SourceError);
  await image.close();
});

test("a large sparse disk is mapped without reading its data", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("large.qcow2"), "100G");
  execFileSync("qemu-io", ["-c", "write -P 1 50G 1M", path("large.qcow2")]);
  const started = performance.now();
  const image = await open(path("large.qcow2"));
  const extents = await image.map();
  assert.equal(extents.filter((extent) => extent.data).length, 1);
  assert.ok(performance.now() - started < 10_000);
  await image.close();
});
