// Damaged and hostile images give typed errors with a place, and never hang or take memory by an unchecked length.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";

import { CorruptImageError, DisketteError, ReferenceDeniedError, SourceError, UnsupportedError, open } from "../src/node.js";
import { path, pattern, qemuImg } from "./support.mjs";

let good;
let table;

before(() => {
  writeFileSync(path("source.raw"), pattern(3_000_320));
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("plain.qcow2"));
  good = new Uint8Array(readFileSync(path("plain.qcow2")));
  const view = new DataView(good.buffer);
  table = Number(view.getBigUint64(Number(view.getBigUint64(40))) & 0x00fffffffffffe00n);
});

/** The good image with a big-endian number of `size` bytes at `at`. */
function damaged(at, size, value) {
  const bytes = good.slice();
  for (let index = size - 1, rest = BigInt(value); index >= 0; index--, rest >>= 8n) bytes[at + index] = Number(rest & 255n);
  return bytes;
}

test("a header cut off at every byte", async () => {
  for (let length = 0; length < 112; length++) {
    await assert.rejects(open(good.slice(0, length), { format: "qcow2" }), (error) => error instanceof CorruptImageError, `${length} bytes`);
  }
});

test("fields out of range name their offset", async () => {
  const cases = [
    [4, 4, 4, UnsupportedError],
    [20, 4, 40, CorruptImageError],
    [20, 4, 8, CorruptImageError],
    [36, 4, 0xffffffff, DisketteError],
    [40, 8, 0x1001, CorruptImageError],
    [40, 8, 1n << 60n, CorruptImageError],
    [48, 8, 3, CorruptImageError],
    [56, 4, 0xffffffff, DisketteError],
    [96, 4, 7, CorruptImageError],
    [100, 4, 0xffff, CorruptImageError],
  ];
  for (const [at, size, value, Kind] of cases) {
    await assert.rejects(open(damaged(at, size, value)), (error) => {
      assert.ok(error instanceof Kind, `${at}: ${error.name}: ${error.message}`);
      return error.offset !== null || error.kind === "unsupported" || /size|version/.test(error.message);
    }, `${value} at ${at}`);
  }
});

test("an unknown incompatible feature is refused by its number", async () => {
  await assert.rejects(open(damaged(72, 8, 1n << 40n)), (error) => error instanceof UnsupportedError && /40/.test(error.message));
});

test("a format that is not known is refused as that, wherever it is named", async () => {
  for (const format of ["vmdk", "", 5, {}, null]) {
    await assert.rejects(open(good, { format }), (error) => error instanceof UnsupportedError && /format .* is not known here/.test(error.message), String(format));
  }
  qemuImg("create", "-q", "-f", "vmdk", path("base.vmdk"), "1M");
  qemuImg("create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", path("over-vmdk.qcow2"));
  const opened = [];
  const onOpen = ({ name }) => (opened.push(name), path(name));
  await assert.rejects(open(path("over-vmdk.qcow2"), { onOpen }), (error) => error instanceof UnsupportedError && /base\.vmdk.*'vmdk'/.test(error.message));
  assert.deepEqual(opened, [], "there is no use in opening it");
  const image = await open(path("over-vmdk.qcow2"));
  assert.equal(image.info().backingFile.format, "vmdk");
  await image.close();
});

test("an encrypted image can be looked at and not read", async () => {
  const image = await open(damaged(32, 4, 1));
  assert.equal(image.info().encryption, "aes");
  assert.ok((await image.map()).length > 0);
  await assert.rejects(image.read(0, 512), (error) => error instanceof ReferenceDeniedError && /encrypted/.test(error.message));
  await image.close();
});

test("table entries outside the file, at themselves and unaligned", async () => {
  for (const entry of [1n << 55n, BigInt(table), 0x12345n, 0n - 1n & ((1n << 62n) - 1n), (1n << 62n) | 0xffffffffffffffn >> 8n]) {
    const image = await open(damaged(table, 8, entry));
    const outcome = await image.read(0, 65536).then(() => "read", (error) => error);
    assert.ok(outcome === "read" || outcome instanceof CorruptImageError || outcome instanceof SourceError, String(outcome));
    const report = await image.check();
    assert.ok(report.corruptions + report.leaks + report.checkErrors > 0, `entry ${entry.toString(16)}`);
    await image.close();
  }
});

test("120 bytes that claim gigabytes cost nothing", async () => {
  const small = damaged(24, 8, 1n << 50n).slice(0, 120);
  const before = process.memoryUsage().rss;
  await assert.rejects(open(small), DisketteError);
  assert.ok(process.memoryUsage().rss - before < 64 << 20);
});

test("a map of one table referenced a million times over can be stopped", async () => {
  // Every L1 entry of 2 PiB points at the same L2 table.
  const bytes = new Uint8Array(40 << 20);
  qemuImg("create", "-q", "-f", "qcow2", path("alias.qcow2"), "1T");
  bytes.set(readFileSync(path("alias.qcow2")).subarray(0, 65536 * 3));
  const view = new DataView(bytes.buffer);
  const [l1, l2, entries] = [8 << 20, 4 << 20, 4_000_000];
  view.setBigUint64(24, BigInt(entries) * (1n << 29n));
  view.setUint32(36, entries);
  view.setBigUint64(40, BigInt(l1));
  for (let index = 0; index < entries; index++) view.setBigUint64(l1 + index * 8, BigInt(l2));
  for (let index = 0; index < 8192; index += 2) view.setBigUint64(l2 + index * 8, 1n);
  const image = await open(bytes);
  const started = performance.now();
  await assert.rejects(image.map({ signal: AbortSignal.timeout(100) }), { name: "TimeoutError" });
  assert.ok(performance.now() - started < 5000);
  await image.close();
});

test("random damage of the metadata never does worse than an error", async () => {
  let seed = 1;
  const random = (limit) => (seed = (seed * 48271) % 0x7fffffff) % limit;
  for (let round = 0; round < 300; round++) {
    const bytes = good.slice();
    const places = [() => random(112), () => 65536 + random(16), () => table + random(512), () => random(0x50000)];
    for (let times = 1 + random(4); times > 0; times--) bytes[places[random(4)]()] = random(256);
    try {
      const image = await open(bytes);
      image.info();
      await image.map();
      await image.check();
      await image.read(0, Math.min(image.size, 1 << 20));
      await image.close();
    } catch (error) {
      assert.ok(error instanceof DisketteError && error.kind !== "internal", `round ${round}: ${error?.stack}`);
    }
  }
});
