// What the browser inspector has of an image: its parts are what stands in the file, and its regions are all of it.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { Memory, MAP_COLUMNS, REGION_COLUMNS, load, look, open } from "../inspector/index.js";
import { path, qemuImg, qemuIo, slowSource } from "./support.mjs";

const MIB = 1 << 20;

let bytes;

before(async () => {
  await load(readFileSync(fileURLToPath(new URL("../dist/inspector_bg.wasm", import.meta.url))));
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path("image"), "16M");
  qemuIo("image", "write -P 1 0 300k", "write -c -P 2 8M 1M");
  qemuImg("snapshot", "-c", "first", path("image"));
  qemuIo("image", "write -P 3 100k 20k", "write -z 4M 64k");
  qemuImg("bitmap", "--add", path("image"), "changes");
  bytes = readFileSync(path("image"));
});

/** Every part, with its path; of long tables the first few. */
async function* walk(image, parent = []) {
  const { total, parts } = await image.structure(parent, { count: 30 });
  assert.equal(parts.length, Math.min(total, 30));
  for (const [index, part] of parts.entries()) {
    const here = [...parent, index];
    yield [here, part, total];
    if (part.children > 0) yield* walk(image, here);
  }
}

const number = ({ offset, length }) => Number(BigInt(`0x${bytes.toString("hex", offset, offset + length)}`));

test("parts are where they say, and say what stands there", async () => {
  const image = await open(new Uint8Array(bytes));
  let seen = 0;
  for await (const [here, part] of walk(image)) {
    seen += 1;
    assert.equal(part.problem, null, `${here} ${JSON.stringify(part)}`);
    assert.ok(part.doc && part.name && part.file === "file" && part.offset + part.length <= bytes.length, JSON.stringify(part));
    if (part.kind === "field" && part.length <= 8 && /^\d/.test(part.value)) assert.equal(parseInt(part.value, 10), number(part), part.name);
    if (part.kind === "bits") {
      const { low, count } = part.bits;
      const shown = BigInt(number(part)) >> BigInt(low % 8) & ((1n << BigInt(count)) - 1n);
      if (count === 1) assert.equal(part.value, shown ? "set" : "not set", JSON.stringify(part));
    }
  }
  assert.ok(seen > 300, `${seen}`);
  const { parts } = await image.structure();
  assert.deepEqual(parts.map(({ name }) => name), ["header", "header extensions", "refcount table", "L1 table", "snapshot table", "bitmap directory"]);
  const header = await image.structure([0]);
  for (const field of image.info().header) {
    const part = header.parts.find(({ name }) => name === field.name);
    assert.deepEqual([part.offset, part.length, part.doc], [field.offset, field.length, field.doc], field.name);
  }
  await image.close();
});

test("entries lead to where the map says that data is", async () => {
  const image = await open(new Uint8Array(bytes));
  const stored = new Map();
  for await (const { columns } of image.mapPages()) {
    for (let at = 0; at < columns.length; at += MAP_COLUMNS) {
      const [start, length, , flags, offset] = columns.subarray(at, at + MAP_COLUMNS);
      for (let done = 0; done < length && flags & 4 && offset >= 0; done += 4096) stored.set(start + done, offset + done);
    }
  }
  const found = new Map();
  const l1 = (await image.structure()).parts.findIndex(({ name }) => name === "L1 table");
  for (let index = 0; index < (await image.structure([3])).total; index++) {
    const inside = (await image.structure([l1, index])).parts;
    const l2 = inside.findIndex(({ name }) => name === "L2 table");
    if (l2 < 0) continue;
    for (let from = 0, total = 1; from < total; from += 100) {
      const page = await image.structure([l1, index, l2], { from, count: 100 });
      total = page.total;
      for (const { value, guest, target } of page.parts) if (value.startsWith("data")) found.set(guest.start, target.offset);
    }
  }
  assert.ok(found.size > 70);
  assert.deepEqual(found, stored);
  await image.close();
});

test("every byte of a file is in one region", async () => {
  const image = await open(new Uint8Array(bytes));
  const sums = {};
  let at = 0;
  for await (const { columns, kinds, end } of image.regions()) {
    for (let index = 0; index < columns.length; index += REGION_COLUMNS) {
      const [offset, length, kind] = columns.subarray(index, index + REGION_COLUMNS);
      assert.equal(offset, at);
      at += length;
      sums[kinds[kind]] = (sums[kinds[kind]] ?? 0) + length;
    }
    assert.equal(end, at);
  }
  assert.equal(at, bytes.length);
  const report = JSON.parse(qemuImg("check", "--output=json", path("image")));
  assert.equal(sums.data, (report["allocated-clusters"] - report["compressed-clusters"]) * 4096);
  assert.equal(sums["snapshot-data"], 20 * 1024);
  assert.ok(sums.compressed > 0 && !sums.leaked && !sums.contested, JSON.stringify(sums));
  await image.close();
  await assert.rejects(image.regions().next(), { kind: "closed" });
});

test("what cannot be opened can be looked at", async () => {
  const broken = Buffer.from(bytes);
  broken.writeBigUInt64BE(1n << 50n, 40);
  await assert.rejects(open(new Uint8Array(broken)), { kind: "invalid" });
  const file = await look(slowSource(new Uint8Array(broken)));
  const { total, parts } = await file.structure();
  assert.equal(total, parts.length);
  const { problem, offset } = parts.find(({ name }) => name === "L1 table");
  assert.match(problem, /beyond the end of the file/);
  assert.equal(offset, 2 ** 50);
  assert.equal((await file.readFile(0, 4)).length, 4);
  await assert.rejects(file.structure([99]), { kind: "not-found" });
  await assert.rejects(file.structure([-1]), { kind: "too-large" });
  await file.close();
  await assert.rejects(file.structure(), { kind: "closed" });
  const raw = await look(new Uint8Array(1000));
  assert.deepEqual((await raw.structure()).parts.map(({ kind, length }) => [kind, length]), [["data", 1000]]);
  await raw.close();
});

test("an image that is being changed is shown as it is on disk", async () => {
  const memory = new Memory(new Uint8Array(bytes));
  const image = await open(memory, { writable: true });
  await image.write(12 * MIB, new Uint8Array(4096).fill(7));
  await image.flush();
  const entry = await image.structure([3, 6]);
  const l2 = entry.parts.findIndex(({ name }) => name === "L2 table");
  const [{ value, guest, target }] = (await image.structure([3, 6, l2], { count: 1 })).parts;
  assert.deepEqual([value, guest.start], [`data at 0x${target.offset.toString(16)}`, 12 * MIB]);
  assert.equal(memory.bytes[target.offset], 7);
  await image.close();
  writeFileSync(path("changed"), memory.bytes);
  qemuImg("check", "-q", path("changed"));
});
