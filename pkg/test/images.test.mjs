// Images made by qemu-img read, map, check and describe alike here.

import assert from "node:assert/strict";
import { openAsBlob, readFileSync, writeFileSync } from "node:fs";
import { open as openHandle } from "node:fs/promises";
import { before, test } from "node:test";

import { ReferenceDeniedError, open } from "../src/node.js";
import { CORPUS, assertFindings, findings, makeCorpus } from "./corpus.mjs";
import { path, qemuImg, qemuIo } from "./support.mjs";

let source;

before(() => {
  makeCorpus();
  source = new Uint8Array(readFileSync(path("source.raw")));
});

const INPUTS = {
  "by path": (name) => path(name),
  "by address": (name) => new URL(`file://${path(name)}`),
  "by handle": (name) => openHandle(path(name)),
  "as a Blob": (name) => openAsBlob(path(name)),
  "as bytes": (name) => new Uint8Array(readFileSync(path(name))),
};

for (const [how, input] of Object.entries(INPUTS)) {
  test(`every image of the table is what it should be: ${how}`, async () => {
    for (const entry of CORPUS) {
      const opened = [];
      const enter = async (name) => {
        opened.push(await input(name));
        return opened.at(-1);
      };
      const image = await open(await enter(entry.open), { onOpen: ({ name }) => enter(name) });
      assertFindings(entry, await findings(image, entry), how);
      await image.close();
      for (const given of opened) if (how === "by handle") await given.close();
    }
  });
}

test("reads at any offset and of any length", async () => {
  for (const name of ["plain.qcow2", "zlib.qcow2", "c512.qcow2", "ext-data.qcow2"]) {
    const image = await open(path(name), { onOpen: ({ name }) => path(name) });
    const whole = await image.read(0, image.size);
    for (const [at, length] of [[1, 1], [65_535, 2], [299_000, 3000], [image.size - 1320, 1320]]) {
      assert.deepEqual(await image.read(at, length), whole.slice(at, at + length));
    }
    await image.close();
  }
});

test("a stream gives the disk in order", async () => {
  const image = await open(path("zlib.qcow2"));
  const parts = [];
  for await (const part of image.stream({ offset: 1000, length: 2_500_000 })) parts.push(part);
  assert.equal(Buffer.compare(Buffer.concat(parts), source.subarray(1000, 2_501_000)), 0);
  await image.close();
});

test("a raw image reads, maps and checks", async () => {
  for (const options of [{}, { format: "raw" }]) {
    const image = await open(path("source.raw"), options);
    assert.equal(image.info().format, "raw");
    assert.equal(image.info().probed, !options.format);
    assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
    assert.deepEqual((await image.map()).map(({ start, length, data }) => [start, length, data]), [[0, source.length, true]]);
    await image.close();
  }
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

test("a File whose name is a path is called by it, another one as the image calls it", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("middle.qcow2"));
  qemuImg("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", path("upper.qcow2"));
  const file = (name, as) => new File([readFileSync(path(name))], as);
  for (const [as, from] of [["folder/middle.qcow2", "folder/middle.qcow2"], ["other", "middle.qcow2"]]) {
    const asked = [];
    const onOpen = (reference) => {
      asked.push(reference.from);
      return asked.length === 1 ? file("middle.qcow2", as) : file("plain.qcow2", "plain.qcow2");
    };
    const image = await open(file("upper.qcow2", "upper.qcow2"), { onOpen });
    assert.deepEqual(asked, ["upper.qcow2", from]);
    assert.deepEqual(image.files.map(({ name }) => name), ["upper.qcow2", from, "plain.qcow2"]);
    await image.close();
  }
});

test("a path whose file is changed in place while it is read says so", async () => {
  for (const change of [() => qemuIo("moving.raw", "write -P 9 1M 4k"), () => writeFileSync(path("moving.raw"), "short")]) {
    writeFileSync(path("moving.raw"), source);
    const image = await open(path("moving.raw"), { format: "raw" });
    await image.read(0, 512);
    await new Promise((resolve) => setTimeout(resolve, 20));
    change();
    await assert.rejects(image.read(1 << 20, 512), (error) => error.kind === "io" && /moving\.raw.*since it was opened; open the image again/s.test(error.message));
    await image.close();
  }
});

test("an external data file is opened through onOpen", async () => {
  qemuImg("convert", "-O", "qcow2", "-o", `data_file=${path("data.raw")}`, path("source.raw"), path("external.qcow2"));
  const image = await open(path("external.qcow2"), { onOpen: ({ name }) => name });
  assert.equal(Buffer.compare(await image.read(0, source.length), source), 0);
  await image.close();
});


test("extents say in which file they are stored", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("over.qcow2"));
  qemuIo("over.qcow2", "write -P 9 0 64k");
  const image = await open(path("over.qcow2"), { onOpen: ({ name }) => path(name) });
  const stored = (await image.map()).filter(({ data }) => data).map(({ depth, file }) => [depth, file]);
  assert.deepEqual(stored[0], [0, path("over.qcow2")]);
  assert.deepEqual(stored[1], [1, path("plain.qcow2")]);
  assert.deepEqual(image.files.map(({ name }) => name), [path("over.qcow2"), path("plain.qcow2")]);
  const magic = Buffer.from([0x51, 0x46, 0x49, 0xfb]);
  for (const file of [0, 1]) assert.deepEqual(Buffer.from(await image.readFile(0, 4, { file })), magic);
  await image.close();
});

test("a backing image that is shorter or longer than the overlay", async () => {
  for (const size of ["1M", "8M"]) {
    qemuImg("create", "-q", "-f", "qcow2", "-b", "source.raw", "-F", "raw", path("sized.qcow2"), size);
    const image = await open(path("sized.qcow2"), { onOpen: ({ name }) => path(name) });
    const expected = new Uint8Array(image.size);
    expected.set(source.subarray(0, image.size));
    assert.equal(Buffer.compare(await image.read(0, image.size), expected), 0);
    await image.close();
  }
});

test("a fragmented map comes in pages and equals that of qemu-img", async () => {
  const speckled = new Uint8Array(16 << 20);
  for (let at = 0; at < speckled.length; at += 1024) speckled.fill(1 + (at % 251), at, at + 512);
  writeFileSync(path("speckled.raw"), speckled);
  qemuImg("convert", "-S", "512", "-O", "qcow2", "-o", "cluster_size=512", path("speckled.raw"), path("speckled.qcow2"));
  const image = await open(path("speckled.qcow2"));
  let pages = 0;
  for await (const { end } of image.mapPages()) assert.ok(++pages < 100 && end <= image.size);
  assert.ok(pages > 1, `${pages} pages`);
  const theirs = JSON.parse(qemuImg("map", "--output=json", path("speckled.qcow2")));
  const ours = (await image.map()).map(({ start, length, data, offset }) => [start, length, data, offset ?? undefined]);
  assert.deepEqual(ours, theirs.map(({ start, length, data, offset }) => [start, length, data, offset]));
  assert.equal(Buffer.compare(await image.read(0, speckled.length), speckled), 0);
  await image.close();
});

test("snapshots, bitmaps and feature bits are listed", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path("listed.qcow2"), "10M");
  qemuImg("snapshot", "-c", "before", path("listed.qcow2"));
  qemuImg("bitmap", "--add", path("listed.qcow2"), "changes");
  const image = await open(path("listed.qcow2"));
  const { snapshots, bitmaps, features } = image.info();
  assert.deepEqual(snapshots.map(({ name, diskSize }) => [name, diskSize]), [["before", 10 << 20]]);
  assert.deepEqual(bitmaps.map(({ name, granularity }) => [name, granularity]), [["changes", 65536]]);
  assert.deepEqual(features.map(({ kind, bit, known }) => [kind, bit, known]), [["compatible", 0, true], ["autoclear", 0, true]]);
  await image.close();
});

test("a disk of 100 GiB and a raw file of 1 TiB cost only what is looked at", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("large.qcow2"), "100G");
  qemuIo("large.qcow2", "write -P 1 50G 1M");
  qemuImg("create", "-q", "-f", "raw", path("large.raw"), "1T");
  qemuIo("large.raw", "write -P 7 1023G 4k");
  const started = performance.now();
  const image = await open(path("large.qcow2"));
  assert.equal((await image.map()).filter((extent) => extent.data).length, 1);
  await image.close();
  const raw = await open(path("large.raw"), { format: "raw" });
  assert.equal((await raw.read(1023 * 2 ** 30, 1))[0], 7);
  assert.equal((await raw.read(2 ** 40 - 1, 1))[0], 0);
  await raw.close();
  assert.ok(performance.now() - started < 10_000);
});
