// New images in paths: what was there stays until there is a whole image to take its place. Changes by others between ours.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import fs, { appendFileSync, chmodSync, chownSync, closeSync, existsSync, linkSync, lstatSync, mkdirSync, openSync, readFileSync, readdirSync, readlinkSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";

import { ReferenceDeniedError, SourceError, convert, create, fromStream, open } from "../src/full-node.js";
import { Pool } from "../src/worker.js";
import { path, pattern, qemuImg } from "./support.mjs";

const MIB = 1024 * 1024;
const source = pattern(9 * MIB);
const earlier = Buffer.from("what was there before");
const run = promisify(execFile);

before(() => {
  writeFileSync(path("source.raw"), source);
  qemuImg("convert", "-O", "qcow2", path("source.raw"), path("source.qcow2"));
});

/** A folder with a file `disk` in it, or none. */
function place(name, content = earlier) {
  mkdirSync(path(name));
  if (content) writeFileSync(path(`${name}/disk`), content);
  return path(`${name}/disk`);
}

const isPart = (name) => /^\.diskette-[0-9a-f]{12}\.part$/.test(name);

test("a copy into a path shows when it is whole, and not before", async () => {
  for (const [name, content] of [["shows-old", earlier], ["shows-new", null]]) {
    const target = place(name, content);
    const image = await open(path("source.qcow2"));
    let looks = 0;
    const onProgress = () => {
      looks++;
      if (content) assert.deepEqual(readFileSync(target), earlier);
      else assert.ok(!existsSync(target));
      assert.equal(readdirSync(path(name)).filter(isPart).length, 1);
    };
    await convert(image, target, { onProgress });
    assert.ok(looks > 2);
    await image.close();
    qemuImg("compare", "-q", target, path("source.raw"));
    assert.deepEqual(readdirSync(path(name)), ["disk"]);
  }
});

test("a copy into a path that is stopped or fails leaves no trace", async () => {
  let failing = false;
  const bytes = new Uint8Array(readFileSync(path("source.qcow2")));
  const read = (offset, length) => {
    if (failing) throw new Error("the cable is out");
    return bytes.slice(offset, offset + length);
  };
  const image = await open({ name: "source", size: bytes.length, read });
  const stopped = () => {
    const stop = new AbortController();
    return { signal: stop.signal, onProgress: () => stop.abort(new Error("that will do")) };
  };
  const works = [
    [(target) => convert(image, target, stopped()), /that will do/],
    [(target) => convert(image, target, { compressed: true, onProgress: () => (failing = true) }), /the cable is out/],
    [(target) => fromStream(image.stream({ length: MIB }), target, { size: image.size }), /ended after 1048576 of/],
    [(target) => convert(image, target, { clusterSize: 3 }), /cluster/i],
    [(target) => create(target, { size: MIB, backingFile: "other", onOpen: () => null }), (error) => error instanceof ReferenceDeniedError],
    [(target) => create(target, { size: MIB, backingFile: "other", onOpen: () => Promise.reject(new Error("not today")) }), /not today/],
  ];
  for (const [index, [work, isExpected]] of works.entries()) {
    for (const content of [earlier, null]) {
      failing = false;
      const target = place(`trace-${index}-${Boolean(content)}`, content);
      await assert.rejects(work(target), isExpected);
      assert.deepEqual(readdirSync(path(`trace-${index}-${Boolean(content)}`)), content ? ["disk"] : [], `case ${index}`);
      if (content) assert.deepEqual(readFileSync(target), earlier);
      failing = false;
      await convert(image, target);
      qemuImg("compare", "-q", target, path("source.raw"));
    }
  }
  await image.close();
});

test("a copy by a worker leaves no trace either, however it ends", async (context) => {
  const target = place("by-worker");
  const url = await stalling(context);
  const ends = [
    [(image, pool, begun) => {
      const stop = new AbortController();
      begun.then(() => stop.abort(new Error("enough")));
      return image.convert(target, { signal: stop.signal, onProgress: begun.note });
    }, /enough/],
    [(image, pool, begun) => image.convert(target, { onProgress: () => { begun.note(); throw new Error("not like this"); } }), /not like this/],
    [(image, pool, begun) => {
      begun.then(() => pool.close());
      return image.convert(target, { onProgress: begun.note });
    }, /the worker is gone: it was stopped/],
  ];
  for (const [end, isExpected] of ends) {
    const pool = new Pool({ size: 1 });
    const image = await pool.open(url, { format: "raw" });
    let note;
    const begun = Object.assign(new Promise((resolve) => (note = resolve)), { note: () => note() });
    await assert.rejects(end(image, pool, begun), isExpected);
    await pool.close();
    assert.deepEqual(readFileSync(target), earlier);
    assert.deepEqual(readdirSync(path("by-worker")), ["disk"]);
  }
  const pool = new Pool({ size: 1 });
  const image = await pool.open(path("source.qcow2"));
  await image.convert(target);
  await pool.close();
  qemuImg("compare", "-q", target, path("source.raw"));
});

/** A server that answers for the first half of the source, and never for the rest. */
async function stalling(context) {
  const server = createServer((request, response) => {
    const [start, end] = (request.headers.range ?? "").match(/\d+/g).map(Number);
    if (start >= 4 * MIB) return;
    const part = source.subarray(start, end + 1);
    response.writeHead(206, { "Content-Range": `bytes ${start}-${start + part.length - 1}/${source.length}` }).end(part);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  return `http://127.0.0.1:${server.address().port}/`;
}

test("a new image is there as soon as it is made", async () => {
  for (const content of [earlier, null]) {
    const target = place(`made-${Boolean(content)}`, content);
    const image = await create(target, { size: 4 * MIB });
    assert.match(qemuImg("info", "-U", target), /virtual size: 4 MiB/);
    assert.deepEqual(readdirSync(path(`made-${Boolean(content)}`)), ["disk"]);
    await assert.rejects(open(target, { writable: true }), { kind: "busy" });
    await image.write(0, source.subarray(0, 100_000));
    await image.abandon();
    assert.ok(existsSync(target), "what is given up is not removed any more");
    await (await open(target, { writable: true })).close();
    await (await create(target, { size: MIB })).close();
  }
});

test("a path is made anew by one at a time", async () => {
  const target = place("twice", null);
  const image = await open(path("source.qcow2"));
  const outcomes = await Promise.allSettled([convert(image, target), convert(image, target)]);
  assert.deepEqual(outcomes.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
  assert.equal(outcomes.find(({ reason }) => reason).reason.kind, "busy");
  qemuImg("compare", "-q", target, path("source.raw"));
  await image.close();
});

test("the new file is what the old one was", async () => {
  const image = await open(path("source.qcow2"));
  const moded = place("mode");
  chmodSync(moded, 0o604);
  if (process.getuid() === 0) chownSync(moded, 65534, 65533);
  const was = statSync(moded);
  await convert(image, moded);
  const is = statSync(moded);
  assert.deepEqual([is.mode, is.uid, is.gid], [was.mode, was.uid, was.gid]);
  assert.notEqual(is.ino, was.ino);

  const linked = place("symlink");
  symlinkSync("disk", path("symlink/link"));
  await convert(image, path("symlink/link"));
  assert.equal(readlinkSync(path("symlink/link")), "disk");
  assert.ok(lstatSync(linked).isFile());
  qemuImg("compare", "-q", linked, path("source.raw"));

  // The file of two names is one still, and the link to nothing leads to something.
  const named = place("hard");
  linkSync(named, path("hard/other"));
  await convert(image, named);
  assert.equal(statSync(named).ino, statSync(path("hard/other")).ino);
  qemuImg("compare", "-q", path("hard/other"), path("source.raw"));
  const nothing = place("dangling", null);
  symlinkSync(nothing, path("dangling/link"));
  await convert(image, path("dangling/link"));
  assert.ok(lstatSync(path("dangling/link")).isSymbolicLink());
  qemuImg("compare", "-q", nothing, path("source.raw"));
  await image.close();
});

/** Runs a program with our package at hand. */
const program = (text) => run(process.execPath, ["--input-type=module", "-e", `import * as diskette from ${JSON.stringify(new URL("../src/full-node.js", import.meta.url))};\n${text}`]);

test("where no file can be made beside it, the image is made in the file that is there", async () => {
  const target = place("closed");
  chmodSync(path("closed"), 0o555);
  chmodSync(target, 0o666);
  chmodSync(path("."), 0o755);
  const { ino } = statSync(target);
  const text = `
    const image = await diskette.open(${JSON.stringify(path("source.qcow2"))});
    if (process.getuid() === 0) process.seteuid(65534);
    await diskette.convert(image, ${JSON.stringify(target)});
    await image.close();`;
  await program(text);
  assert.equal(statSync(target).ino, ino);
  qemuImg("compare", "-q", target, path("source.raw"));
  chmodSync(path("closed"), 0o755);
});

test("a process that ends within a copy takes its traces along", async () => {
  const target = place("ends");
  const text = `
    const image = await diskette.open(${JSON.stringify(path("source.qcow2"))});
    await diskette.convert(image, ${JSON.stringify(target)}, { onProgress: () => process.exit(3) });`;
  await assert.rejects(program(text), { code: 3 });
  assert.deepEqual(readdirSync(path("ends")), ["disk"]);
  assert.deepEqual(readFileSync(target), earlier);
});

test("a finished copy does not take the place of what others put there meanwhile, and is found", async () => {
  const image = await open(path("source.qcow2"));
  const others = [
    [null, (target) => mkdirSync(target)],
    [null, (target) => writeFileSync(target, "new")],
    [earlier, (target) => appendFileSync(target, "more")],
    [earlier, (target) => (writeFileSync(`${target}.2`, "other"), renameSync(`${target}.2`, target))],
    [earlier, (target) => rmSync(target)],
  ];
  for (const [index, [content, change]] of others.entries()) {
    const target = place(`taken-${index}`, content);
    let done = false;
    const onProgress = () => (done ||= (change(target), true));
    let kept;
    await assert.rejects(convert(image, target, { onProgress }), (error) => {
      kept = /what was written is in '([^']+)': it could not take its place/.exec(error.message)?.[1];
      return error instanceof SourceError && error.path === target && error.kind === "busy";
    });
    qemuImg("compare", "-q", kept, path("source.raw"));
    if (index > 0 && index < 4) assert.match(readFileSync(target, "utf8"), /new|more$|other/);
    // The next one finds it as it is.
    if (index > 0) {
      await convert(image, target);
      qemuImg("compare", "-q", target, path("source.raw"));
    }
  }
  await image.close();
});

test("an image is not made over its own backing file, however that is spelled", async () => {
  const dir = path("own");
  const base = place("own", null);
  for (const name of ["./disk", `${dir}/disk`, "disk", "link"]) {
    if (!existsSync(base)) await (await create(base, { size: MIB })).close();
    if (name === "link") symlinkSync("disk", path("own/link"));
    const was = readFileSync(base);
    const onOpen = ({ name }) => (name.startsWith("/") ? name : `${dir}/${name}`);
    await assert.rejects(create(base, { size: MIB, backingFile: name, backingFormat: "qcow2", onOpen }), SourceError, name);
    assert.deepEqual(readFileSync(base), was);
  }
  // Where it would be made in the file that is there, too.
  linkSync(base, path("own/other"));
  const was = readFileSync(base);
  await assert.rejects(create(path("own/other"), { size: MIB, backingFile: "./disk", onOpen: () => base }), SourceError);
  assert.deepEqual(readFileSync(base), was);
  assert.deepEqual(readdirSync(dir).sort(), ["disk", "link", "other"]);
  const over = { size: MIB, backingFile: "source.qcow2", backingFormat: "qcow2", onOpen: () => path("source.qcow2") };
  await assert.rejects(create(path("own/other"), over), /what is in it would be lost if the backing file cannot be opened.*empty it first/);
  assert.deepEqual(readFileSync(base), was);
  writeFileSync(base, "");
  await (await create(path("own/other"), over)).close();
  assert.match(qemuImg("info", base), /backing file: source.qcow2/);
});

test("a signal that comes while an image is made, or at the last moment of a copy, leaves what was there", async () => {
  const target = place("late");
  const stop = new AbortController();
  const onOpen = async () => {
    setTimeout(() => stop.abort(new Error("too late")), 10);
    await sleep(60);
    return path("source.qcow2");
  };
  await assert.rejects(create(target, { size: MIB, backingFile: "source.qcow2", signal: stop.signal, onOpen }), /too late/);
  await sleep(150);
  assert.deepEqual(readFileSync(target), earlier);
  const image = await open(path("source.qcow2"));
  const end = new AbortController();
  await assert.rejects(convert(image, target, { signal: end.signal, onProgress: ({ done, total }) => done === total && end.abort(new Error("at the end")) }), /at the end/);
  await sleep(20);
  assert.deepEqual(readFileSync(target), earlier);
  assert.deepEqual(readdirSync(path("late")), ["disk"]);
  await image.close();
});

test("an image that is given up while its backing file never answers leaves nothing, and its place is free", async () => {
  const never = () => new Promise(() => {});
  const answers = [never, () => ({ name: "stuck", size: MIB, read: never })];
  for (const [index, onOpen] of answers.entries()) {
    const target = place(`stuck-${index}`);
    const open = readdirSync("/proc/self/fd").length;
    const options = { size: MIB, backingFile: "base", onOpen, signal: AbortSignal.timeout(30) };
    const keep = setTimeout(() => {}, 1000);
    await assert.rejects(create(target, options), { name: "TimeoutError" });
    await sleep(20);
    clearTimeout(keep);
    assert.deepEqual(readFileSync(target), earlier);
    assert.deepEqual(readdirSync(path(`stuck-${index}`)), ["disk"]);
    assert.equal(readdirSync("/proc/self/fd").length, open);
    await (await create(target, { size: MIB })).close();
  }
});

test("what was begun when an image is given up goes into no other file", async (context) => {
  // As on NFS, where no time shows that it is another file.
  context.mock.method(fs, "statfsSync", () => ({ type: 0x6969 }));
  const victim = path("victim");
  const begin = [
    async () => [await create(path("begun.raw"), { format: "raw", size: 16 * MIB }), (image) => image.write(0, new Uint8Array(4096).fill(9))],
    async () => [await open(path("begun.raw"), { format: "raw", writable: true }), (image) => image.zero(0, 8 * MIB, { unmap: false })],
  ];
  for (const make of begin) {
    writeFileSync(victim, source);
    const [image, change] = await make();
    const outcome = change(image).catch((error) => error);
    const abandoned = image.abandon();
    // It gets the number that the image's file had.
    const other = openSync(victim, "r+");
    assert.equal((await outcome).kind, "closed");
    await abandoned;
    await sleep(20);
    closeSync(other);
    assert.equal(Buffer.compare(readFileSync(victim), source), 0);
  }
});

test("a file that others put where a link leads to is not removed with what failed", async () => {
  const nothing = place("theirs", null);
  symlinkSync(nothing, path("theirs/link"));
  const image = await open(path("source.qcow2"));
  const onProgress = () => {
    writeFileSync(`${nothing}.new`, earlier);
    renameSync(`${nothing}.new`, nothing);
    throw new Error("no more");
  };
  await assert.rejects(convert(image, path("theirs/link"), { onProgress }), /no more/);
  assert.deepEqual(readFileSync(nothing), earlier);
  await assert.rejects(create(`${path("theirs")}/new/`, { size: MIB }), /the name of a folder/);
  await image.close();
});

test("what an image took the place of keeps nobody from anything", async () => {
  const images = [];
  for (let index = 0; index < 8; index++) images.push(await create(place(`again-${index}`, index % 2 ? earlier : null), { size: MIB }));
  for (const image of images) await image.close();
});

test("an image that is being made in a file is read by nobody", async () => {
  const target = place("half");
  linkSync(target, path("half/other"));
  const image = await open(path("source.qcow2"));
  let reading;
  await convert(image, target, { onProgress: () => (reading ??= open(path("half/other")).catch((error) => error)) });
  assert.equal((await reading).kind, "busy");
  await (await open(target)).close();
  const nothing = place("half-dangling", null);
  symlinkSync(nothing, path("half-dangling/link"));
  const made = await create(path("half-dangling/link"), { size: MIB });
  await assert.rejects(open(nothing, { writable: true }), { kind: "busy" });
  await made.close();
  rmSync(nothing);
  await assert.rejects(convert(image, path("half-dangling/link"), { onProgress: () => { throw new Error("no more"); } }), /no more/);
  assert.ok(!existsSync(nothing), "what was made through a link goes as well");
  await image.close();
});

const wrote = (error) => error instanceof SourceError && error.kind === "busy" && /another program wrote to it.*open the image again/.test(error.message);

test("what others write between two changes of ours is noticed by the next, or by the flush", async () => {
  for (const next of ["write", "flush"]) {
    const target = path(`between-${next}.raw`);
    writeFileSync(target, source);
    const image = await open(target, { writable: true, format: "raw" });
    await image.write(0, new Uint8Array(4096).fill(1));
    await image.write(8192, new Uint8Array(4096).fill(2));
    await program(`
      const other = await diskette.open(${JSON.stringify(target)}, { writable: true, format: "raw" });
      await other.write(4096, new Uint8Array(4096).fill(9));
      await other.close();`);
    await assert.rejects(next === "write" ? image.write(0, new Uint8Array(4096).fill(3)) : image.flush(), wrote);
    await image.abandon();
    const now = readFileSync(target);
    assert.deepEqual([now[0], now[4096], now[8192]], [1, 9, 2], "nothing is written over what the other wrote");
  }
});

test("two threads that write to one image notice each other", async () => {
  const target = path("threads.qcow2");
  await (await create(target, { size: 64 * MIB })).close();
  const image = await open(target, { writable: true });
  await image.write(0, new Uint8Array(65536).fill(1));
  const thread = new Worker(`
    import(${JSON.stringify(new URL("../src/full-node.js", import.meta.url))}).then(async ({ open }) => {
      const image = await open(${JSON.stringify(target)}, { writable: true });
      await image.write(32 << 20, new Uint8Array(65536).fill(2));
      await image.close();
    });`, { eval: true });
  await new Promise((resolve, reject) => thread.on("exit", resolve).on("error", reject));
  await assert.rejects(image.write(MIB, new Uint8Array(65536).fill(3)), (error) => error.kind === "busy" && /another program/.test(error.message));
  await image.abandon();
});

test("writing without a pause is not taken for the work of others", async () => {
  const target = path("steady.qcow2");
  const image = await create(target, { size: 64 * MIB });
  const writes = [];
  for (let index = 0; index < 300; index++) {
    writes.push(image.write(((index * 37) % 300) * 200_000, source.subarray(0, 1 + ((index * 997) % 200_000))));
    if (index % 50 === 0) writes.push(image.flush());
    if (index % 70 === 0) await sleep(5);
  }
  await Promise.all(writes);
  await image.close();
  qemuImg("check", "-q", target);
});
