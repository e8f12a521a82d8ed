// What the tests of the page share: a server for it and for images, Chromium, and what is done with a page again and again.

import assert from "node:assert/strict";
import { createReadStream, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { ARGS, sendFile } from "./browser.mjs";

export const DIST = fileURLToPath(new URL("../dist/", import.meta.url));

let folder;
let server;
let proxy;
export let base;
export let context;
/** What our server was asked for, and what went to the proxy: everything else. */
export const requested = [];
export const outside = [];
export const path = (name) => join(folder, name);

/** Sets everything up around the tests of a file; `prepare` makes its images. */
export function setUp(prepare) {
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "diskette-page-"));
    server = createServer((request, response) => {
      requested.push(request.url);
      const name = request.url === "/" ? "index.html" : request.url.slice(1);
      const file = name === "norange.qcow2" ? path("top.qcow2") : name.startsWith("images/") ? path(name.slice(7)) : join(DIST, name);
      // One file is given as a whole, whatever is asked for.
      if (name === "norange.qcow2") return createReadStream(file).pipe(response);
      return sendFile(request, response, file);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    base = `http://127.0.0.1:${server.address().port}/`;
    await prepare();
    proxy = createServer((request, response) => (outside.push(request.url), response.writeHead(502).end()));
    proxy.on("connect", (request, socket) => (outside.push(request.url), socket.destroy()));
    await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    context = await chromium.launchPersistentContext(path("profile"), {
      executablePath: "/usr/bin/chromium",
      headless: true,
      chromiumSandbox: false,
      args: [...ARGS, `--proxy-server=127.0.0.1:${proxy.address().port}`],
      viewport: { width: 1100, height: 900 },
    });
  });

  after(async () => {
    await context?.close();
    server?.closeAllConnections();
    server?.close();
    proxy?.closeAllConnections();
    proxy?.close();
    rmSync(folder, { recursive: true, force: true });
  });
}

export async function fresh(options = {}) {
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.emulateMedia({ colorScheme: options.dark ? "dark" : "light" });
  await page.goto(base);
  return page;
}

/**
 * Waits until `check` holds in the page. What it looks for may not be there yet, or be replaced just then: that it throws
 * is only reported where the time is over. (`waitForFunction` needs eval, which the page's policy forbids.)
 */
export async function until(page, check, what = String(check)) {
  let thrown;
  for (const end = Date.now() + 10_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 30))) {
    try {
      if (await page.evaluate(check)) return;
      thrown = undefined;
    } catch (error) {
      if (page.isClosed()) throw error;
      thrown = error;
    }
  }
  const status = await page.textContent("#status", { timeout: 1000 }).catch(() => "none");
  assert.fail(`waited for ${what}; status: ${status}; ${thrown ? `thrown: ${thrown}; ` : ""}problems: ${page.problems.join("; ")}`);
}

export const opened = (page) => until(page, () => /opened in/.test(document.querySelector("#status").textContent));
export const checked = (page) => until(page, () => !/Checking/.test(document.querySelector("#check-summary").textContent));

export async function sample(options) {
  const page = await fresh(options);
  await page.click("#sample");
  await opened(page);
  await checked(page);
  return page;
}

/** Goes to a view by its tab. */
export const view = (page, title) => page.getByRole("tab", { name: title, exact: true }).click();

export async function shoot(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, name), fullPage: true });
}

export async function assertAccessible(page) {
  const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
  assert.deepEqual(page.problems, []);
}

