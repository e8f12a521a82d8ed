// The package itself in a browser: every kind of source that only browsers have, over the same images as in Node.js.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { CORPUS, makeCorpus } from "../../pkg/test/corpus.mjs";
import { folder, path, qemuImg } from "../../pkg/test/support.mjs";
import { ARGS, TYPES } from "./browser.mjs";

const PACKAGE = fileURLToPath(new URL("../../pkg/", import.meta.url));
const digest = createHash("sha256").update(CORPUS.source).digest("hex");

/** Runs in a worker of the page: opens an image in one way, and says what it found. */
const WORKER = `
import { open } from "/pkg/src/web.js";
const sha256 = async (bytes) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const inputs = {
  file: async (name, blob) => new File([blob], name),
  bytes: (name, blob) => blob.arrayBuffer(),
  address: (name) => new URL("/images/" + name, location.href),
  async opfs(name, blob) {
    const root = await navigator.storage.getDirectory();
    const file = await root.getFileHandle(name, { create: true });
    const handle = await file.createSyncAccessHandle();
    handle.truncate(0);
    handle.write(await blob.arrayBuffer(), { at: 0 });
    handle.flush();
    return handle;
  },
  async handle(name, blob) {
    const handle = await inputs.opfs(name, blob);
    handle.close();
    return (await navigator.storage.getDirectory()).getFileHandle(name);
  },
};
self.onmessage = async ({ data: { name, kind } }) => {
  try {
    const input = await inputs[kind](name, await (await fetch("/images/" + name)).blob());
    const image = await open(input);
    const map = (await image.map()).map(({ start, length, data, zero }) => [start, length, data, zero]);
    const { leaks, corruptions, checkErrors } = await image.check();
    const read = await sha256(await image.read(0, image.size));
    const streamed = await sha256(await new Response(image.stream()).arrayBuffer());
    await image.close();
    if (kind === "opfs") input.close();
    postMessage({ map, errors: leaks + corruptions + checkErrors, read, streamed });
  } catch (error) {
    postMessage({ error: error.name + ": " + error.message });
  }
};`;

let server;
let context;
let page;

before(async () => {
  makeCorpus();
  server = createServer((request, response) => {
    if (request.url === "/") return response.setHeader("Content-Type", "text/html").end("<!doctype html><title>package</title>");
    if (request.url === "/worker.js") return response.setHeader("Content-Type", "text/javascript").end(WORKER);
    const file = request.url.startsWith("/images/") ? path(request.url.slice(8)) : PACKAGE + request.url.slice(5);
    const { size } = statSync(file, { throwIfNoEntry: false }) ?? {};
    if (size === undefined) return response.writeHead(404).end();
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [start, end] = range ? [Number(range[1]), Math.min(Number(range[2]), size - 1)] : [0, size - 1];
    const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Length": end - start + 1 };
    if (range) headers["Content-Range"] = `bytes ${start}-${end}/${size}`;
    response.writeHead(range ? 206 : 200, headers);
    createReadStream(file, { start, end }).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context = await chromium.launchPersistentContext(`${folder}/profile`, { executablePath: "/usr/bin/chromium", headless: true, chromiumSandbox: false, args: ARGS });
  page = await context.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
});

after(async () => {
  await context?.close();
  server?.closeAllConnections();
  server?.close();
});

for (const kind of ["file", "bytes", "address", "opfs", "handle"]) {
  test(`every image reads, maps and checks as it should: ${kind}`, async () => {
    for (const name of CORPUS.names) {
      const result = await page.evaluate((question) => {
        const worker = new Worker("/worker.js", { type: "module" });
        return new Promise((resolve) => {
          worker.onmessage = ({ data }) => resolve(data);
          worker.onerror = (event) => resolve({ error: event.message });
          worker.postMessage(question);
        }).finally(() => worker.terminate());
      }, { name, kind });
      assert.equal(result.error, undefined, name);
      assert.equal(result.read, digest, name);
      assert.equal(result.streamed, digest, name);
      assert.equal(result.errors, 0, name);
      const theirs = JSON.parse(qemuImg("map", "--output=json", path(name)));
      assert.deepEqual(joined(result.map), joined(theirs.map(({ start, length, data, zero }) => [start, length, data, zero])), name);
    }
  });
}

/** Neighbours that are alike are one; qemu-img tells them apart by where they are stored. */
function joined(extents) {
  const result = [];
  for (const [start, length, data, zero] of extents) {
    const last = result.at(-1);
    if (last && last[2] === data && last[3] === zero) last[1] += length;
    else result.push([start, length, data, zero]);
  }
  return result;
}
