import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createReadStream, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const DIST = fileURLToPath(new URL("../dist/", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

let folder;
let server;
let base;
let context;
const requested = [];
const path = (name) => join(folder, name);

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "diskette-page-"));
  server = createServer((request, response) => {
    const name = request.url === "/" ? "index.html" : request.url.slice(1);
    const file = name.startsWith("images/") ? path(name.slice(7)) : join(DIST, name);
    let length;
    try {
      length = statSync(file).size;
    } catch {
      response.writeHead(404);
      return response.end();
    }
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" };
    if (!range) {
      response.writeHead(200, headers);
      return createReadStream(file).pipe(response);
    }
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]), length - 1)];
    response.writeHead(206, { ...headers, "Content-Range": `bytes ${start}-${end}/${length}`, "Content-Length": end - start + 1 });
    createReadStream(file, { start, end }).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  base = `http://127.0.0.1:${server.address().port}/`;
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path("large.qcow2"), "100G"]);
  execFileSync("qemu-io", ["-c", "write -P 65 50G 1M", path("large.qcow2")]);
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "large.qcow2", "-F", "qcow2", path("top.qcow2")]);
  context = await chromium.launchPersistentContext(path("profile"), {
    executablePath: "/usr/bin/chromium",
    headless: true,
    chromiumSandbox: false,
    args: ARGS,
    viewport: { width: 1100, height: 900 },
  });
  context.on("request", (request) => requested.push(request.url()));
});

after(async () => {
  await context?.close();
  server?.closeAllConnections();
  server?.close();
  rmSync(folder, { recursive: true, force: true });
});

async function fresh(options = {}) {
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.emulateMedia({ colorScheme: options.dark ? "dark" : "light" });
  await page.goto(base);
  return page;
}

/** Waits until `check` holds in the page. (`waitForFunction` needs eval, which the page's policy forbids.) */
async function until(page, check, what = String(check)) {
  for (const end = Date.now() + 10_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 30))) {
    if (await page.evaluate(check)) return;
  }
  assert.fail(`waited for ${what}; status: ${await page.textContent("#status")}; problems: ${page.problems.join("; ")}`);
}

const opened = (page) => until(page, () => /opened in/.test(document.querySelector("#status").textContent));

async function shoot(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, name), fullPage: true });
}

for (const dark of [false, true]) {
  test(`the sample is shown and nothing on the page is out of reach (${dark ? "dark" : "light"})`, async () => {
    const page = await fresh({ dark });
    await page.click("#sample");
    await opened(page);
    await until(page, () => /No errors/.test(document.querySelector("#check-summary").textContent));
    assert.match(await page.textContent("#facts"), /qcow2.*1 MiB/s);
    assert.match(await page.textContent("hex-view pre"), /QFI/);
    await shoot(page, dark ? "dark.png" : "light.png");
    const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
    assert.deepEqual(page.problems, []);
    await page.close();
  });
}

test("a field of the header leads to its bytes", async () => {
  const page = await fresh();
  await page.click("#sample");
  await opened(page);
  await page.getByRole("button", { name: "cluster_bits" }).click();
  await page.waitForSelector("hex-view mark");
  assert.equal((await page.locator("hex-view mark").allTextContents()).join(""), "00 00 00 0c ");
  await page.close();
});

test("the map zooms by keyboard and leads to the bytes of the disk", async () => {
  const page = await fresh();
  await page.click("#sample");
  await opened(page);
  await until(page, () => /1 MiB/.test(document.querySelector(".caption").textContent));
  await page.focus("map-view canvas");
  await page.keyboard.press("+");
  await until(page, () => /512 KiB/.test(document.querySelector(".caption").textContent));
  await page.keyboard.press("-");
  await page.locator("map-view canvas").click({ position: { x: 3, y: 3 } });
  await until(page, () => /diskette sample/.test(document.querySelector("hex-view pre").textContent));
  await page.close();
});

test("an image of 100 GiB opens at once", async () => {
  const page = await fresh();
  await page.setInputFiles("#files", path("large.qcow2"));
  await opened(page);
  const took = Number(/in (\d+) ms/.exec(await page.textContent("#status"))[1]);
  assert.ok(took < 5000, `${took} ms`);
  assert.match(await page.textContent("#facts"), /100 GiB/);
  await page.close();
});

test("files that an image names are taken from those given, and missed by name", async () => {
  const page = await fresh();
  await page.setInputFiles("#files", path("top.qcow2"));
  await opened(page);
  assert.match(await page.textContent("#chain"), /large\.qcow2 — not opened/);
  await page.setInputFiles("#files", [path("top.qcow2"), path("large.qcow2")]);
  await until(page, () => document.querySelectorAll("#chain li").length === 2 && !document.querySelector("#chain .missing"));
  await page.close();
});

test("an address is read by ranges", async () => {
  const page = await fresh();
  await page.fill("#url", `${base}images/large.qcow2`);
  await page.press("#url", "Enter");
  await opened(page);
  assert.match(await page.textContent("#facts"), /100 GiB/);
  await page.close();
});

test("what is no image says so and what to do", async () => {
  const page = await fresh();
  const bytes = Buffer.alloc(200);
  bytes.write("QFI\xfb\0\0\0\x03", "latin1");
  await page.setInputFiles("#files", { name: "broken.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await page.waitForSelector("#status.error");
  assert.match(await page.textContent("#status"), /cluster_bits is 0.*expected.*damaged/s);
  await page.close();
});

test("nothing left this machine", () => {
  assert.deepEqual(requested.filter((url) => !url.startsWith(base) && !url.startsWith("data:")), []);
});
