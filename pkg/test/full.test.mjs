// Images that are made, changed and copied here are what qemu-img takes them for.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { open as openHandle } from "node:fs/promises";
import { before, test } from "node:test";
import { Readable } from "node:stream";

import { open as openOnlyReading } from "../src/node.js";
import { ClosedError, DisketteError, Memory, RangeTooLargeError, ReadOnlyError, ReferenceDeniedError, UnsupportedError, convert, create, fromStream, open } from "../src/full-node.js";
import { ourNames } from "../src/options.js";
import { CORPUS, assertFindings, findings, makeCorpus } from "./corpus.mjs";
import { path, pattern, qemuImg, qemuIo } from "./support.mjs";
import { pickedHandle, syncHandle } from "./targets.mjs";

const KIB = 1024;
const MIB = 1024 * KIB;

const clean = (name) => execFileSync("qemu-img", ["check", "-q", path(name)]);
const same = (name, other, format = "raw") => qemuImg("compare", "-q", "-F", format, path(name), path(other));
const inRaw = (name, bytes) => writeFileSync(path(name), bytes);

before(makeCorpus);

test("every image of the table is what it should be with everything built in", async () => {
  for (const entry of CORPUS) {
    const image = await open(path(entry.open), { onOpen: ({ name }) => path(name) });
    const found = await findings(image, entry);
    // Without a key, encrypted images are refused alike.
    assertFindings(entry, found, "full");
    await image.close();
  }
});

test("a copy to LUKS is the disk, also where that is zero", async () => {
  const disk = new Uint8Array(6 * MIB);
  disk.fill(0x41, 0, MIB);
  disk.fill(0x42, 5 * MIB, 5 * MIB + 512);
  inRaw("half.raw", disk);
  const image = await open(path("half.raw"), { format: "raw" });
  await convert(image, path("half.luks"), { format: "luks", passphrase: "x" });
  await fromStream(image.stream(), path("streamed.luks"), { format: "luks", passphrase: "x", size: disk.length });
  await image.close();
  for (const name of ["half.luks", "streamed.luks"]) {
    const other = `driver=luks,key-secret=s,file.filename=${path(name)}`;
    const raw = `driver=raw,file.filename=${path("half.raw")}`;
    qemuImg("compare", "--object", "secret,id=s,data=x", "--image-opts", raw, other);
  }
});

test("what is encrypted asks for its passphrase, whether it is to be read or written", async () => {
  for (const options of [{ format: "luks" }, { encryption: "luks" }]) {
    const made = new Memory();
    const image = await create(made, { size: MIB, passphrase: "abc", iterationMilliseconds: 10, ...options });
    await image.write(0, new Uint8Array(4096).fill(7));
    await image.close();
    const locked = (error) => error instanceof ReferenceDeniedError && error.kind === "denied" && /the data is encrypted and no passphrase was given/.test(error.message) && !/key/.test(error.message);
    const closed = await open(made);
    await assert.rejects(closed.read(0, 512), locked);
    await closed.close();
    await assert.rejects(open(made, { writable: true }), locked);
    const opened = await open(made, { writable: true, passphrase: "abc" });
    assert.equal((await opened.read(0, 512))[0], 7);
    await opened.close();
  }
});

test("options that make no image are refused as such", async () => {
  for (const options of [{ clusterSize: 3 }, { format: "luks" }, { refcountBits: 7 }]) {
    await assert.rejects(create(new Memory(), { size: MIB, ...options }), (error) => error instanceof UnsupportedError && error.kind === "invalid" && error.code === "DISKETTE_INVALID" && error.operation === "create", JSON.stringify(options));
  }
});

test("what QEMU calls options is called as it is here", async () => {
  const onOpen = () => new Uint8Array(512);
  const cases = [
    [{ clusterSize: "x" }, "clusterSize"], [{ encryption: "luks" }, "passphrase"], [{ format: "luks", passphrase: "x", iterationMilliseconds: 0 }, "iterationMilliseconds"],
    [{ encryption: "luks", passphrase: "x", iterationMilliseconds: 0 }, "iterationMilliseconds"], [{ encryption: "rot13", passphrase: "x" }, "encryption"],
    [{ compat: "7" }, "compat"], [{ compressionType: "lz" }, "compressionType"], [{ extendedL2: "x" }, "extendedL2"], [{ lazyRefcounts: "x" }, "lazyRefcounts"],
    [{ refcountBits: "x" }, "refcountBits"], [{ compat: "0.10", lazyRefcounts: true }, 'compat: "1.1"'], [{ preallocation: "x" }, "preallocation"],
    [{ backingFile: "a", backingFormat: "nope", onOpen }, "backingFormat"], [{ backingFile: "a", backingFormat: "raw", preallocation: "full", onOpen }, "extendedL2"],
  ];
  for (const [options, name] of cases) {
    const { message } = await create(new Memory(), { size: MIB, ...options }).catch((error) => error);
    assert.ok(message.includes(name), message);
    assert.doesNotMatch(message, /\w_\w|\w-(?:secret|fmt|type|time)|version=/);
  }
  assert.equal(ourNames("'cluster_size' is in /a/cluster_size, cluster_size.raw, my-cluster_size. Not in cluster_size."), "'clusterSize' is in /a/cluster_size, cluster_size.raw, my-cluster_size. Not in clusterSize.");
});

test("what is no option, passphrase or date is refused as that", async () => {
  const made = new Memory();
  await (await create(made, { format: "luks", size: MIB, passphrase: "abc", iterationMilliseconds: 10 })).close();
  const invalid = (text) => (error) => error instanceof UnsupportedError && error.kind === "invalid" && text.test(error.message);
  for (const passphrase of [5, true, null, Buffer.from("abc"), {}]) {
    for (const work of [
      () => open(made, { passphrase }),
      () => create(new Memory(), { size: MIB, format: "luks", passphrase }),
      () => convert({ size: MIB }, new Memory(), { format: "luks", passphrase }),
    ]) await assert.rejects(work(), invalid(/a passphrase is a text, not/));
  }
  for (const name of ["constructor", "__proto__2", "toString"]) await assert.rejects(create(new Memory(), { size: MIB, [name]: 1 }), invalid(/has no option/));
  const image = await create(new Memory(), { size: MIB });
  for (const date of [5, "today", new Date(NaN), null]) await assert.rejects(image.snapshots.create("a", { date }), invalid(/is of a Date, not of/));
  assert.deepEqual(image.snapshots.list(), []);
  await image.close();
});

test("a file whose size is no number is closed again", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "raw", path("over-base.qcow2"), "1M");
  const bytes = new Uint8Array(readFileSync(path("over-base.qcow2")));
  let closed = 0;
  const onOpen = () => ({ name: "base", size: 2 ** 60, read() {}, close: () => closed++ });
  await assert.rejects(open(bytes, { onOpen }), RangeTooLargeError);
  assert.equal(closed, 1);
});

test("a stream of Node.js is refused with what to do", async () => {
  await assert.rejects(fromStream(Readable.from([]), new Memory(), { size: MIB }), (error) => error instanceof UnsupportedError && /Readable\.toWeb/.test(error.message));
});

test("an image over one that is not opened is refused before its target is touched", async () => {
  const options = { size: MIB, backingFile: "base", backingFormat: "qcow2" };
  inRaw("precious", new Uint8Array([1, 2, 3]));
  await assert.rejects(create(path("precious"), options), ReferenceDeniedError);
  assert.deepEqual([...readFileSync(path("precious"))], [1, 2, 3]);
  // Whoever answers late refuses what only shows when it is complete.
  const handle = pickedHandle(new Uint8Array([1, 2, 3]));
  await assert.rejects(create(handle, { ...options, onOpen: () => null }), ReferenceDeniedError);
  assert.deepEqual([...handle.bytes], [1, 2, 3]);
  await assert.rejects(open(handle, { writable: true, format: "qcow2" }), DisketteError);
  assert.deepEqual([...handle.bytes], [1, 2, 3]);
});

test("an image that is made and written is what it should be, by every option", async () => {
  const variants = [
    {}, { clusterSize: 512 }, { clusterSize: 2 * MIB }, { compat: "0.10" }, { lazyRefcounts: true }, { refcountBits: 64 },
    { extendedL2: true }, { compressionType: "zstd" }, { preallocation: "metadata" }, { format: "raw" },
  ];
  for (const [index, options] of variants.entries()) {
    const name = `made-${index}`;
    const model = new Uint8Array(8 * MIB);
    const image = await create(path(name), { size: model.length, ...options });
    const put = async (at, bytes) => {
      model.set(bytes, at);
      await image.write(at, bytes);
    };
    await put(0, pattern(70_000));
    await put(5_000_001, pattern(2_000_000));
    await image.zero(5_500_000, 900_000);
    model.fill(0, 5_500_000, 6_400_000);
    await put(6_000_000, new Uint8Array(10).fill(9));
    await image.flush();
    assert.deepEqual(await image.read(0, model.length), model);
    await image.close();
    inRaw("model.raw", model);
    if (options.format !== "raw") clean(name);
    qemuImg("compare", "-q", "-f", options.format ?? "qcow2", "-F", "raw", path(name), path("model.raw"));
  }
});

test("an image of qemu-img is changed, by whatever it is given as", async () => {
  const targets = {
    path: (file) => ({ input: file }),
    handle: async (file) => {
      const handle = await openHandle(file, "r+");
      return { input: handle, after: () => handle.close() };
    },
    memory: (file) => {
      const memory = new Memory(new Uint8Array(readFileSync(file)));
      return { input: memory, after: () => writeFileSync(file, memory.bytes) };
    },
    object: (file) => {
      const memory = new Memory(new Uint8Array(readFileSync(file)));
      const [read, write, resize] = ["read", "write", "resize"].map((verb) => async (...args) => memory[verb](...args));
      return { input: { size: memory.size, read, write, resize }, after: () => writeFileSync(file, memory.bytes) };
    },
    opfs: (file) => {
      const memory = new Memory(new Uint8Array(readFileSync(file)));
      return { input: syncHandle(memory), after: () => writeFileSync(file, memory.bytes) };
    },
    picked: (file) => {
      const handle = pickedHandle(new Uint8Array(readFileSync(file)));
      return { input: handle, after: () => writeFileSync(file, handle.bytes) };
    },
  };
  for (const [how, target] of Object.entries(targets)) {
    qemuImg("convert", "-O", "qcow2", path("source.raw"), path("changed"));
    const model = new Uint8Array(readFileSync(path("source.raw")));
    const size = Math.ceil(model.length / 512) * 512 + 4 * MIB;
    const grown = new Uint8Array(size);
    grown.set(model);
    const { input, after } = await target(path("changed"));
    const image = await open(input, { writable: true });
    await image.resize(size);
    assert.equal(image.size, size);
    for (const [at, length] of [[1000, 100_000], [size - 700_000, 700_000], [2_900_000, 10]]) {
      const bytes = new Uint8Array(length).fill(at % 251 || 1);
      await image.write(at, bytes);
      grown.set(bytes, at);
    }
    await image.discard(0, 64 * KIB);
    grown.fill(0, 0, 64 * KIB);
    assert.deepEqual(await image.read(0, size), grown, how);
    await image.close();
    await after?.();
    inRaw("grown.raw", grown);
    clean("changed");
    same("changed", "grown.raw");
  }
});

test("snapshots are made, applied and deleted", async () => {
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("snap"));
  const image = await open(path("snap"), { writable: true });
  const old = await image.read(0, image.size);
  await image.snapshots.create("before", { date: new Date(1_700_000_000_500) });
  await image.write(100, new Uint8Array(500_000).fill(7));
  await image.snapshots.create("after");
  assert.deepEqual(image.snapshots.list().map(({ name }) => name), ["before", "after"]);
  assert.equal(image.snapshots.list()[0].dateSeconds, 1_700_000_000);
  await image.snapshots.apply("before");
  assert.deepEqual(await image.read(0, image.size), old);
  await image.snapshots.delete("after");
  await assert.rejects(image.snapshots.delete("none"), /snapshot not found/);
  await assert.rejects(image.snapshots.create(""), { kind: "invalid" });
  await image.close();
  clean("snap");
  assert.match(qemuImg("snapshot", "-l", path("snap")), /before/);
  for (const options of [{}, { structureOnly: true }, { structureOnly: true, writable: true }]) {
    const again = await open(path("snap"), options);
    assert.deepEqual(again.info().snapshots.map(({ name }) => name), ["before"], JSON.stringify(options));
    await again.close();
  }
});

test("a disk is shown as it was at a snapshot, by either entry", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("then"), "4M");
  qemuIo("then", "write -P 1 0 1M");
  qemuImg("snapshot", "-c", "old", path("then"));
  qemuIo("then", "write -P 2 512k 1M");
  qemuImg("resize", "-q", path("then"), "8M");
  qemuImg("convert", "-l", "snapshot.name=old", "-O", "raw", path("then"), path("then.raw"));
  const expected = readFileSync(path("then.raw")).subarray(0, 4 * MIB);
  for (const opened of [open, openOnlyReading]) {
    for (const snapshot of ["1", "old", 1]) {
      const image = await opened(path("then"), { snapshot });
      assert.deepEqual(Buffer.from(await image.read(0, 4 * MIB)), expected);
      assert.equal(image.size, 4 * MIB);
      await image.close();
    }
    await assert.rejects(opened(path("then"), { snapshot: "none" }), { kind: "not-found" });
  }
  await assert.rejects(open(path("then"), { snapshot: "old", writable: true }), /only be opened read-only/);
});

test("the backing file is another one, or none, and need not be there for that", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "gone.qcow2", "-F", "qcow2", "-u", path("top"), "4M");
  const named = () => {
    const { "backing-filename": name, "backing-filename-format": format } = JSON.parse(qemuImg("info", "-U", "--output=json", path("top")));
    return [name, format];
  };
  assert.deepEqual(named(), ["gone.qcow2", "qcow2"]);
  await assert.rejects(open(path("top"), { writable: true }), ReferenceDeniedError);
  for (const [name, format, expected] of [["other.raw", "raw", ["other.raw", "raw"]], ["guess", undefined, ["guess", undefined]], [null, undefined, [undefined, undefined]]]) {
    const image = await open(path("top"), { writable: true, noBacking: true });
    assert.equal(image.info().backingOpened, false);
    await image.setBacking(name, format);
    await image.close();
    assert.deepEqual(named(), expected);
  }
  clean("top");
  const image = await open(path("top"), { writable: true });
  for (const wrong of ["", undefined, 5]) await assert.rejects(image.setBacking(wrong), { kind: "invalid" });
  for (const format of ["nope", "vmdk", "", 5, {}]) {
    await assert.rejects(image.setBacking("other", format), (error) => error instanceof UnsupportedError && error.kind === "unsupported" && error.operation === "set-backing");
  }
  assert.equal(image.info().backingFile, null);
  await image.close();
  const reading = await open(path("top"));
  await assert.rejects(reading.setBacking(null), ReadOnlyError);
  await reading.close();
});

test("a snapshot is deleted without the backing image", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("base-of"), "4M");
  qemuImg("create", "-q", "-f", "qcow2", "-b", path("base-of"), "-F", "qcow2", path("based"));
  qemuIo("based", "write 0 64k");
  qemuImg("snapshot", "-c", "old", path("based"));
  const image = await open(path("based"), { writable: true, noBacking: true });
  await image.snapshots.delete("old");
  await assert.rejects(image.read(MIB, 512), ReferenceDeniedError);
  await image.close();
  clean("based");
  assert.equal(qemuImg("snapshot", "-l", path("based")).trim(), "");
});

test("a bitmap says what was written to", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("dirty"), "64M");
  qemuImg("bitmap", "--add", "-g", "64k", path("dirty"), "changes");
  qemuIo("dirty", "write 1M 100k", "write 1100k 10k", "write 60M 4M");
  const image = await open(path("dirty"));
  const ranges = await image.readBitmap("changes");
  assert.ok(ranges instanceof Float64Array);
  assert.deepEqual([...ranges], [MIB, 128 * KIB, 60 * MIB, 4 * MIB]);
  await assert.rejects(image.readBitmap("other"), { kind: "not-found" });
  await image.close();
});

test("the disk shrinks only when that is meant", async () => {
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("less"));
  const image = await open(path("less"), { writable: true });
  await assert.rejects(image.resize(MIB), (error) => error instanceof RangeTooLargeError && /shrink: true/.test(error.message));
  await image.resize(MIB, { shrink: true });
  assert.equal(image.size, MIB);
  await image.close();
  clean("less");
});

test("leaks and corruptions are repaired", async () => {
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("leaky"));
  const file = readFileSync(path("leaky"));
  const end = Math.ceil(file.length / 65536);
  const bytes = Buffer.concat([file], (end + 1) * 65536);
  const table = Number(bytes.readBigUInt64BE(48));
  const block = Number(bytes.readBigUInt64BE(table));
  bytes.writeUInt16BE(1, block + 2 * end);
  writeFileSync(path("leaky"), bytes);
  const image = await open(path("leaky"), { writable: true });
  assert.equal((await image.check()).leaks, 1);
  const report = await image.check({ repair: "leaks" });
  assert.deepEqual([report.leaks, report.leaksFixed], [0, 1]);
  await image.close();
  clean("leaky");
  bytes.writeUInt16BE(0, block);
  writeFileSync(path("broken"), bytes);
  const broken = await open(path("broken"), { writable: true, structureOnly: true });
  assert.ok((await broken.check({ repair: "all" })).corruptionsFixed > 0);
  await assert.rejects(broken.check({ repair: "some" }), { kind: "invalid" });
  await broken.close();
  clean("broken");
});

test("what cannot be written is refused, and says what can", async () => {
  const cases = [
    ["https://example.org/a.qcow2", /only read/], [new Blob(["x"]), /never changes/], [new Uint8Array(512), /new Memory/],
    [{ size: 5, read() {} }, /cannot be written/], [5, /cannot be written/],
  ];
  for (const [input, text] of cases) {
    await assert.rejects(open(input, { writable: true }), (error) => error instanceof ReadOnlyError && error.code === "DISKETTE_READ_ONLY" && text.test(error.message));
  }
  await assert.rejects(openOnlyReading(path("plain.qcow2"), { writable: true }), (error) => error instanceof UnsupportedError && /diskette\/full/.test(error.message));
  await assert.rejects(openOnlyReading(path("plain.qcow2"), { passphrase: "x" }), /diskette\/full/);
  const image = await open(path("plain.qcow2"));
  await assert.rejects(image.write(0, new Uint8Array(1)), (error) => error instanceof ReadOnlyError && /writable: true/.test(error.message));
  await image.close();
  const writable = await create(new Memory(), { size: MIB });
  await assert.rejects(writable.write(MIB - 1, new Uint8Array(2)), RangeTooLargeError);
  await assert.rejects(writable.write(0, "text"), UnsupportedError);
  for (const bad of [-1, 2 ** 53, 2n ** 63n]) await assert.rejects(writable.zero(bad, 1), RangeTooLargeError);
  for (const bad of [2 ** 53, 2n ** 63n, 2 ** 52]) await assert.rejects(writable.resize(bad), (error) => error.kind === "too-large" || error.kind === "invalid", String(bad));
  await writable.close();
  await assert.rejects(writable.write(0, new Uint8Array(1)), ClosedError);
  await assert.rejects(create(new Memory(), { size: 2 ** 53 }), RangeTooLargeError);
  await assert.rejects(create(new Memory(), { size: MIB, colour: "red" }), /no option 'colour'/);
  await assert.rejects(create(new Memory(), { size: MIB, format: "vmdk" }), UnsupportedError);
  inRaw("kept", "what was here");
  const source = await open(path("plain.qcow2"));
  for (const options of [{ compressed: true, format: "raw" }, { compressed: true, compressionType: "zstd" }, { format: "vmdk" }, { clusterSize: 5 }]) {
    await assert.rejects(convert(source, path("kept"), options), DisketteError);
    await assert.rejects(fromStream(new Blob().stream(), path("kept"), { ...options, size: 512 }), DisketteError);
  }
  await source.close();
  assert.equal(readFileSync(path("kept"), "utf8"), "what was here");
});

test("addresses of what is no file of this machine are refused as such, with what can be opened", async () => {
  for (const address of [new URL("ftp://x/y"), new URL("data:,x"), "file:///%zz", "file://elsewhere/x", new URL("file:///a%2fb")]) {
    const isRefused = (instead) => (error) =>
      error instanceof UnsupportedError && error.kind === "unsupported" && error.cause instanceof Error && error.message.includes(`'${address}'`) && instead.test(error.message);
    const image = await open(path("plain.qcow2"));
    for (const reading of [open, openOnlyReading]) await assert.rejects(reading(address), isRefused(/give a path, .* http/));
    for (const writing of [() => open(address, { writable: true }), () => create(address, { size: MIB }), () => convert(image, address)]) {
      await assert.rejects(writing, isRefused(/give a path or the address of a file/));
    }
    await image.close();
  }
});

test("options that do not go together leave a file as it is", async () => {
  inRaw("kept", "what was here");
  await assert.rejects(create(path("kept"), { size: MIB, clusterSize: 1000 }), /Cluster size/);
  assert.equal(readFileSync(path("kept"), "utf8"), "what was here");
});

test("backing files are opened for an overlay that is written, when onOpen allows it", async () => {
  const overlay = await create(path("overlay"), { size: 8 * MIB, backingFile: "plain.qcow2", backingFormat: "qcow2", onOpen: ({ name }) => path(name) });
  await overlay.write(100_000, new Uint8Array(10).fill(3));
  await overlay.close();
  clean("overlay");
  const before = readFileSync(path("plain.qcow2"));
  await assert.rejects(open(path("overlay"), { writable: true }), ReferenceDeniedError);
  const again = await open(path("overlay"), { writable: true, onOpen: ({ name }) => path(name) });
  assert.equal((await again.read(100_005, 1))[0], 3);
  await again.close();
  assert.deepEqual(readFileSync(path("plain.qcow2")), before);
});

test("encrypted images are made and opened with a passphrase", async () => {
  for (const [name, options] of [["secret.luks", { format: "luks" }], ["secret.qcow2", { encryption: "luks" }]]) {
    const size = 4 * MIB;
    const image = await create(path(name), { size, passphrase: "hunter2", iterationMilliseconds: 10, ...options });
    await image.write(5000, pattern(300_000));
    await image.close();
    assert.throws(() => assert.ok(readFileSync(path(name)).includes(pattern(300_000).subarray(0, 512))));
    const locked = await open(path(name));
    await assert.rejects(locked.read(0, 512), ReferenceDeniedError);
    await locked.close();
    await assert.rejects(open(path(name), { passphrase: "wrong" }), /[Ii]nvalid password/);
    const opened = await open(path(name), { passphrase: "hunter2" });
    assert.deepEqual(await opened.read(5000, 300_000), pattern(300_000));
    await convert(opened, path("plaintext.raw"), { format: "raw" });
    await opened.close();
    const key = name.endsWith("luks") ? "driver=luks,key-secret=s" : "driver=qcow2,encrypt.key-secret=s";
    qemuImg("compare", "-q", "--object", "secret,id=s,data=hunter2", "--image-opts", `${key},file.filename=${path(name)}`, `driver=raw,file.filename=${path("plaintext.raw")}`);
  }
});

test("a disk is copied into every format, and says how far it is", async () => {
  for (const from of ["plain.qcow2", "zlib.qcow2", "c512.qcow2", "source.raw"]) {
    for (const options of [{ format: "raw" }, { format: "qcow2" }, { compressed: true }, { clusterSize: 512 }]) {
      const image = await open(path(from));
      const seen = [];
      await convert(image, path("copy"), { ...options, onProgress: ({ done, total }) => seen.push([done, total]) });
      assert.deepEqual(seen.at(-1), [image.size, image.size]);
      assert.ok(seen.every(([done], index) => index === 0 || done >= seen[index - 1][0]));
      await image.close();
      if (options.format !== "raw") clean("copy");
      qemuImg("compare", "-q", path("copy"), path(from));
    }
  }
  assert.ok(statSync(path("copy")).size < 4 * MIB);
});

test("a disk is filled from streams of the web and of Node.js", async () => {
  const source = readFileSync(path("source.raw"));
  const size = Math.ceil(source.length / 512) * 512;
  const padded = Buffer.concat([source, Buffer.alloc(size - source.length)]);
  const streams = { web: () => new Blob([padded]).stream(), node: () => Readable.toWeb(Readable.from([padded.subarray(0, 7), padded.subarray(7)])) };
  for (const [how, stream] of Object.entries(streams)) {
    await fromStream(stream(), path("streamed"), { format: "qcow2", size, compressed: how === "web" });
    clean("streamed");
    same("streamed", "source.raw");
  }
  const image = await open(path("streamed"));
  const chunks = await Readable.fromWeb(image.stream()).toArray();
  assert.deepEqual(Buffer.concat(chunks), padded);
  await image.close();
  await assert.rejects(fromStream(streams.web(), new Memory(), { size: size + 512 }), /ended after \d+ of \d+ bytes/);
  await assert.rejects(fromStream(streams.web(), new Memory(), { size: size - 512 }), RangeTooLargeError);
});

test("changes of an image overlap with reads and with each other", async () => {
  const memory = new Memory();
  const image = await create(memory, { size: 16 * MIB, clusterSize: 4096 });
  const writes = Array.from({ length: 200 }, (_, index) => image.write(index * 50_000, new Uint8Array(50_000).fill(index + 1)));
  await Promise.all([...writes, image.read(0, image.size), image.flush()]);
  for (let index = 0; index < 200; index++) assert.equal((await image.read(index * 50_000 + 49_999, 1))[0], index + 1);
  const closing = image.close();
  assert.equal(closing, image.close());
  await closing;
  writeFileSync(path("many"), memory.bytes);
  clean("many");
});

test("budgets bound what an image may cost", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "plain.qcow2", "-F", "qcow2", path("deep"));
  for (const entry of [open, openOnlyReading]) {
    const onOpen = ({ name }) => path(name);
    await assert.rejects(entry(path("deep"), { onOpen, budgets: { chainDepth: 1 } }), { kind: "over-budget", code: "DISKETTE_OVER_BUDGET" });
    await assert.rejects(entry(path("deep"), { onOpen, budgets: { chainDepth: -1 } }), RangeTooLargeError);
    const image = await entry(path("zlib.qcow2"), { budgets: { expandedBytes: 512, checkBytes: 1 } });
    await assert.rejects(image.read(0, 512), { kind: "over-budget" });
    await assert.rejects(image.check(), { kind: "over-budget" });
    await image.close();
  }
  qemuIo("deep", "write 0 1");
});

test("budgets that bound nothing are refused, before anything is made", async () => {
  inRaw("kept", "what was here");
  for (const budgets of [{ metadata: 5 }, { chainDepth: 5, memory: 1 }, null, 5, "x", [1]]) {
    const isRefused = (error) => error instanceof UnsupportedError && error.kind === "invalid" && /metadataBytes, chainDepth, expandedBytes, checkBytes/.test(error.message);
    for (const entry of [open, openOnlyReading]) await assert.rejects(entry(path("plain.qcow2"), { budgets }), isRefused, String(budgets));
    await assert.rejects(create(path("kept"), { size: MIB, budgets }), isRefused, String(budgets));
  }
  await assert.rejects(create(path("kept"), { size: MIB, budgets: { chainDepth: -1 } }), RangeTooLargeError);
  assert.equal(readFileSync(path("kept"), "utf8"), "what was here");
  for (const budgets of [undefined, {}, { chainDepth: undefined }]) await (await open(path("plain.qcow2"), { budgets })).close();
});

test("the data file of an image is written, when onOpen gives one that can be", async () => {
  qemuImg("convert", "-O", "qcow2", "-o", `data_file=${path("data.raw")}`, path("source.raw"), path("external"));
  const image = await open(path("external"), { writable: true, onOpen: ({ name }) => name });
  await image.write(700_000, new Uint8Array(300_000).fill(5));
  await image.close();
  clean("external");
  const model = new Uint8Array(readFileSync(path("source.raw")));
  model.fill(5, 700_000, 1_000_000);
  inRaw("model.raw", model);
  same("external", "model.raw");
  const blob = new Blob([readFileSync(path("data.raw"))]);
  await assert.rejects(open(path("external"), { writable: true, onOpen: () => blob }), /never changes/);
});

test("changes that overtake each other in a slow target lose nothing", async () => {
  const memory = new Memory();
  const later = (work, milliseconds) => new Promise((resolve) => setTimeout(() => resolve(work()), milliseconds));
  const target = {
    size: 0,
    read: (offset, length) => memory.read(offset, length),
    write: (offset, bytes) => memory.write(offset, bytes.slice()),
    resize: (length) => later(() => memory.resize(length), 5),
  };
  const image = await create(target, { size: 64 * MIB });
  const model = new Uint8Array(64 * MIB);
  const changes = [];
  for (let number = 0; number < 40; number++) {
    const [at, bytes] = [number * 1_000_003, pattern(number % 2 ? 65_536 : 512)];
    model.set(bytes, at);
    changes.push(image.write(at, bytes));
  }
  await Promise.all(changes);
  assert.deepEqual(await image.read(0, model.length), model);
  await image.close();
  inRaw("slow.qcow2", memory.bytes);
  clean("slow.qcow2");
});
