// What goes wrong around the page: servers, the browser's storage, a worker that ends, somebody else who writes. Each gives a message
// that helps, and leaves files as they were.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, test } from "node:test";

import { assertAccessible, base, checked, context, fresh, opened, path, setUp, shoot, until, view } from "./support.mjs";

let server;
let address;
let sample;

setUp(async () => {
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path("sound.qcow2"), "8M"]);
  execFileSync("qemu-io", ["-c", "write -P 1 0 4M", path("sound.qcow2")]);
  sample = readFileSync(path("sound.qcow2"));
  server = createServer((request, response) => {
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [start, end] = [Number(range?.[1] ?? 0), Math.min(Number(range?.[2] ?? Infinity), sample.length - 1)];
    const part = sample.subarray(start, end + 1);
    const answer = (total, headers = {}) => response.writeHead(206, { "Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Content-Range, ETag", "Content-Range": `bytes ${start}-${end}/${total}`, ...headers });
    switch (request.url) {
      case "/short":
        return answer(sample.length + 5_000_000).end(part.subarray(0, 10));
      case "/drops":
        answer(sample.length, { "Content-Length": part.length }).write(part.subarray(0, 10));
        return setTimeout(() => response.destroy(), 50);
      case "/refuses":
        return response.writeHead(206, { "Content-Range": `bytes ${start}-${end}/${sample.length}` }).end(part);
      case "/whole":
        return response.writeHead(200, { "Access-Control-Allow-Origin": "*" }).end(sample);
      case "/forbidden":
        return response.writeHead(403, { "Access-Control-Allow-Origin": "*" }).end();
      case "/changes":
        return answer(sample.length, { ETag: `"${Math.random()}"` }).end(part);
      default:
        // Never an answer.
        return undefined;
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  address = `http://127.0.0.1:${server.address().port}`;
});

after(() => {
  server?.closeAllConnections();
  server?.close();
});

async function openAddress(page, name) {
  await page.fill("#url", `${address}/${name}`);
  await page.press("#url", "Enter");
}

for (const [name, message, advice] of [
  ["short", /short|ends|fewer|bytes/i, /range requests|still there/],
  ["drops", /could not|failed|network|bytes/i, /range requests|still there/],
  ["refuses", /./, /CORS/],
  ["whole", /does not answer range requests/, /download the file and choose it/],
  ["forbidden", /403/, /asks for a login/],
]) {
  test(`a server that ${name === "short" ? "lies about length" : name}`, async () => {
    const page = await fresh();
    await openAddress(page, name);
    await page.waitForSelector("#status.failed");
    const text = await page.textContent("#status");
    assert.match(text, message);
    assert.match(text, advice);
    await shoot(page, `server-${name}.png`);
    await page.close();
  });
}

test("a file that changes on the server while it is read", async () => {
  const page = await fresh();
  await openAddress(page, "changes");
  await opened(page);
  await view(page, "Data");
  await page.fill("#view-data hex-view input", "0x400000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /the file changed on the server/.test(document.querySelector("#view-data .rows .error")?.textContent ?? ""));
  await page.close();
});

test("a server that never answers does not keep the next image from being opened", async () => {
  const page = await fresh();
  await openAddress(page, "silent");
  await until(page, () => /Opening/.test(document.querySelector("#status").textContent));
  await page.click("#sample");
  await opened(page);
  assert.equal(await page.textContent("#title"), "sample.qcow2");
  await page.close();
});

test("a server that never answers is given up on, and that is said", async () => {
  const page = await fresh();
  await openAddress(page, "silent");
  await page.waitForSelector("#status.failed", { timeout: 45_000 });
  assert.match(await page.textContent("#status"), /the server sent nothing for 30 s/);
  await page.close();
});

test("a disk of 2^63 bytes is refused by its size", async () => {
  const page = await fresh();
  const bytes = Buffer.from(sample);
  bytes.writeBigUInt64BE(1n << 63n, 24);
  await page.setInputFiles("#files", { name: "endless.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await page.waitForSelector("#status.failed");
  assert.match(await page.textContent("#status"), /size|9223372036854775808|too large/i);
  await page.close();
});

test("a worker that ends is replaced, and the image can be opened again", async () => {
  const page = await fresh();
  await page.click("#sample");
  await opened(page);
  await checked(page);
  const ends = [() => void setTimeout(() => { throw new WebAssembly.RuntimeError("unreachable"); }), () => self.close()];
  for (const end of ends) {
    await page.workers()[0].evaluate(end);
    await view(page, "Data");
    await until(page, () => document.querySelector("#status.failed") !== null);
    assert.match(await page.textContent("#status"), /Open the image again/);
    page.problems.length = 0;
    await assertAccessible(page);
    await page.click("#sample");
    await opened(page);
    await checked(page);
  }
  assert.match(await page.textContent("#verdict"), /no errors/);
  await page.close();
});

test("a copy for which there is no room says so", async () => {
  const page = await fresh();
  await page.addInitScript(() => delete globalThis.showSaveFilePicker);
  await page.reload();
  const session = await context.newCDPSession(page);
  await session.send("Storage.overrideQuotaForOrigin", { origin: base.slice(0, -1), quotaSize: 1_000_000 });
  await page.setInputFiles("#files", path("sound.qcow2"));
  await opened(page);
  await view(page, "Convert");
  await page.selectOption("#convert-format", "raw");
  await page.click("#convert-begin");
  await until(page, () => /Not copied/.test(document.querySelector("#convert-status").textContent));
  assert.match(await page.textContent("#convert-status"), /quota|space|room|no more/i);
  await shoot(page, "quota.png");
  await session.send("Storage.overrideQuotaForOrigin", { origin: base.slice(0, -1) });
  await page.close();
});

test("two tabs do not write the same file", async () => {
  const make = async () => {
    const page = await fresh();
    await page.addInitScript(() => {
      globalThis.showSaveFilePicker = async ({ suggestedName }) => (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true });
      globalThis.showOpenFilePicker = async () => [await (await navigator.storage.getDirectory()).getFileHandle("shared.qcow2", { create: true })];
    });
    await page.reload();
    return page;
  };
  const [one, two] = [await make(), await make()];
  copyFileSync(path("sound.qcow2"), path("shared.qcow2"));
  execFileSync("qemu-img", ["snapshot", "-c", "gone", path("shared.qcow2")]);
  const bytes = readFileSync(path("shared.qcow2"));
  await one.evaluate(async (text) => {
    const handle = await (await navigator.storage.getDirectory()).getFileHandle("shared.qcow2", { create: true });
    const first = await handle.createWritable();
    await first.write(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
    await first.close();
    globalThis.held = await handle.createWritable({ keepExistingData: true, mode: "exclusive" });
  }, bytes.toString("base64"));
  await two.setInputFiles("#files", path("shared.qcow2"));
  await opened(two);
  await view(two, "Edit");
  await two.getByRole("button", { name: "Delete…" }).click();
  await two.waitForSelector("#preview table");
  await two.click("#edit-undo");
  await until(two, () => /is saved/.test(document.querySelector("#edit-status").textContent));
  await two.click("#edit-apply");
  await until(two, () => /Nothing was changed: /.test(document.querySelector("#edit-status").textContent));
  assert.match(await two.textContent("#edit-status"), /another tab|open elsewhere|locked|modif/i);
  await one.evaluate(() => globalThis.held.abort());
  const length = await one.evaluate(async () => (await (await (await navigator.storage.getDirectory()).getFileHandle("shared.qcow2")).getFile()).size);
  assert.equal(length, bytes.length);
  await two.click("#edit-apply");
  await until(two, () => /was changed/.test(document.querySelector("#edit-status").textContent));
  await one.close();
  await two.close();
});
