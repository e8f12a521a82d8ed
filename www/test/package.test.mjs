// The package itself in a browser: every kind of source that only browsers have, over the same images as in Node.js.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { CORPUS, assertFindings, findings, makeCorpus } from "../../pkg/test/corpus.mjs";
import { folder, path } from "../../pkg/test/support.mjs";
import { ARGS, sendFile } from "./browser.mjs";

const PACKAGE = fileURLToPath(new URL("../../pkg/", import.meta.url));

/** Runs in a worker of the page: opens an image in one way, and says what it found. */
const WORKER = `
import { open } from "/pkg/src/web.js";
const findings = ${findings};
const base64 = (bytes) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.readAsDataURL(new Blob([bytes]));
});
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
self.onmessage = async ({ data: { entry, kind } }) => {
  try {
    const given = [];
    const enter = async (name) => {
      given.push(await inputs[kind](name, await (await fetch("/images/" + name)).blob()));
      return given.at(-1);
    };
    const image = await open(await enter(entry.open), { onOpen: ({ name }) => enter(name) });
    const found = await findings(image, entry);
    await image.close();
    if (kind === "opfs") for (const handle of given) handle.close();
    found.parts &&= await Promise.all(found.parts.map(base64));
    postMessage(found);
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
    return sendFile(request, response, file);
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
  test(`every image of the table is what it should be: ${kind}`, async () => {
    await page.evaluate(() => {
      globalThis.worker?.terminate();
      globalThis.worker = new Worker("/worker.js", { type: "module" });
    });
    for (const entry of CORPUS) {
      const result = await page.evaluate((question) => new Promise((resolve) => {
        const { worker } = globalThis;
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = (event) => resolve({ error: event.message });
        worker.postMessage(question);
      }), { entry, kind });
      assert.equal(result.error, undefined, entry.name);
      result.parts &&= result.parts.map((part) => Buffer.from(part, "base64"));
      assertFindings(entry, result, kind);
    }
  });
}
