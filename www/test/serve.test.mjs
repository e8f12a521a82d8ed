// The page of `diskette serve`: it opens what is served, with what that names, and changes it where it may.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { test } from "node:test";

import { assertAccessible, checked, context, opened, path, setUp, shoot, until, view } from "./support.mjs";

const DISKETTE = process.env.DISKETTE ?? new URL("../../target/debug/diskette", import.meta.url).pathname;

setUp(() => {
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path("base.qcow2"), "16M"]);
  execFileSync("qemu-io", ["-c", "write -P 0x41 1M 64k", path("base.qcow2")]);
  copyFileSync(path("base.qcow2"), path("copy.qcow2"));
  execFileSync("qemu-io", ["-c", "write -P 0x43 1M 64k", path("copy.qcow2")]);
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path("top.qcow2")]);
  execFileSync("qemu-io", ["-c", "write -P 0x42 2M 64k", path("top.qcow2")]);
  execFileSync("qemu-img", ["snapshot", "-c", "before", path("top.qcow2")]);
});

/** Starts the server; gives its address, and what ends it. */
async function serve(context, ...args) {
  const server = spawn(DISKETTE, ["serve", ...args], { stdio: ["ignore", "pipe", "ignore"] });
  const exit = once(server, "exit");
  const end = async () => {
    server.kill("SIGTERM");
    await exit;
  };
  context.after(end);
  const [address] = await once(createInterface({ input: server.stdout }), "line");
  return { address, end };
}

async function visit(address) {
  const page = await context.newPage();
  // As in browsers that cannot write to files that are picked.
  await page.addInitScript(() => delete globalThis.showSaveFilePicker);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.problems.push(message.text()));
  await page.goto(address);
  await opened(page);
  await checked(page);
  return page;
}

async function previewDeletion(page) {
  await view(page, "Edit");
  await page.getByRole("button", { name: "Delete…" }).click();
  await page.waitForSelector("#preview table");
}

test("what is served is open at once, with the files that it names, and only read", async (t) => {
  const { address } = await serve(t, "--follow", path("top.qcow2"));
  const page = await visit(address);
  assert.equal(await page.textContent("#title"), path("top.qcow2"));
  assert.equal(await page.locator("#chain button").count(), 2);
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 2 });
  await page.fill("#view-data hex-view input", "0x100000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /AAAA/.test(document.querySelector("#view-data .rows").textContent));
  await view(page, "Edit");
  assert.match(await page.textContent("#edits"), /served to be read only\. Start diskette serve with --writable/);
  assert.equal(await page.evaluate(async () => (await navigator.serviceWorker.getRegistrations()).length), 0);
  await shoot(page, "served.png");
  await assertAccessible(page);
  await page.close();
});

test("what else is served is a click away from a comparison", async (t) => {
  const { address } = await serve(t, path("base.qcow2"), path("copy.qcow2"));
  const page = await visit(address);
  await view(page, "Compare");
  assert.deepEqual(await page.locator("#compare-served button").allTextContents(), [path("copy.qcow2")]);
  await page.click("#compare-served button");
  await until(page, () => /1 place differs, 64 KiB in all/.test(document.querySelector("#compare-summary").textContent));
  await assertAccessible(page);
  await page.close();
});

test("a snapshot is deleted in a file that is served to be changed", async (t) => {
  copyFileSync(path("top.qcow2"), path("changed.qcow2"));
  const { address, end } = await serve(t, "--writable", path("changed.qcow2"));
  const page = await visit(address);
  await previewDeletion(page);
  const before = readFileSync(path("changed.qcow2"));
  await Promise.all([page.waitForEvent("download"), page.click("#edit-undo")]);
  assert.deepEqual(readFileSync(path("changed.qcow2")), before);
  await page.click("#edit-apply");
  await until(page, () => /was changed/.test(document.querySelector("#edit-status").textContent));
  await assertAccessible(page);
  await page.close();
  await end();
  assert.match(execFileSync("qemu-img", ["check", path("changed.qcow2")], { encoding: "utf8" }), /No errors/);
  assert.equal(execFileSync("qemu-img", ["snapshot", "-l", path("changed.qcow2")], { encoding: "utf8" }), "");
  assert.match(execFileSync("qemu-img", ["compare", path("changed.qcow2"), path("top.qcow2")], { encoding: "utf8" }), /identical/);
});

test("a first change that may have been made is put back", async (t) => {
  copyFileSync(path("top.qcow2"), path("half-made.qcow2"));
  const before = readFileSync(path("half-made.qcow2"));
  const { address } = await serve(t, "--writable", path("half-made.qcow2"));
  const page = await visit(address);
  await previewDeletion(page);
  await Promise.all([page.waitForEvent("download"), page.click("#edit-undo")]);
  let changes = 0;
  await page.route("**/images/**", async (route) => {
    if (!["PATCH", "PUT"].includes(route.request().method()) || changes++ > 0) return route.continue();
    // It is made, and yet answered as one that failed.
    const response = await route.fetch();
    return route.fulfill({ response, status: 507, headers: { "Diskette-Error": "no-space" }, body: "no room" });
  });
  await page.click("#edit-apply");
  await until(page, () => /Nothing was changed: no room/.test(document.querySelector("#edit-status").textContent));
  assert.ok(changes > 1);
  assert.deepEqual(readFileSync(path("half-made.qcow2")), before);
  await page.close();
});

for (const [how, race, said] of [
  ["in place", (bytes) => bytes.fill(1, bytes.length - 1), /Nothing was changed: .*is not the file that was looked at, or was changed since/],
  ["in length", (bytes) => Buffer.concat([bytes, Buffer.from("more")]), /Nothing was changed: .*another program has changed it/],
]) {
  test(`a file that is changed by others ${how} just before it is written is left as it is`, async (t) => {
    copyFileSync(path("top.qcow2"), path("raced.qcow2"));
    const { address } = await serve(t, "--writable", path("raced.qcow2"));
    const page = await visit(address);
    await previewDeletion(page);
    await Promise.all([page.waitForEvent("download"), page.click("#edit-undo")]);
    const raced = race(readFileSync(path("raced.qcow2")));
    let changes = 0;
    await page.route("**/images/**", async (route) => {
      if (["PATCH", "PUT"].includes(route.request().method()) && changes++ === 0) writeFileSync(path("raced.qcow2"), raced);
      await route.continue();
    });
    await page.click("#edit-apply");
    await until(page, () => /changed: /.test(document.querySelector("#edit-status").textContent));
    assert.match(await page.textContent("#edit-status"), said);
    assert.deepEqual(readFileSync(path("raced.qcow2")), raced);
    assert.equal(changes, 1, "nothing is put back where nothing was done");
    await page.close();
  });
}

test("a change that is interrupted and cannot be put back is undone with the undo file", async (t) => {
  copyFileSync(path("top.qcow2"), path("half.qcow2"));
  const before = readFileSync(path("half.qcow2"));
  const { address } = await serve(t, "--writable", path("half.qcow2"));
  const page = await visit(address);
  await previewDeletion(page);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#edit-undo")]);
  await download.saveAs(path("half.undo.json"));
  let written = 0;
  await page.route("**/images/**", (route) => {
    const changes = ["PATCH", "PUT"].includes(route.request().method());
    return changes && ++written > 1 ? route.abort() : route.continue();
  });
  await page.click("#edit-apply");
  await until(page, () => /is changed in part, and could not be put back.*Use the undo file/.test(document.querySelector("#edit-status").textContent));
  assert.notDeepEqual(readFileSync(path("half.qcow2")), before);
  await page.unroute("**/images/**");
  await page.reload();
  await opened(page);
  await view(page, "Edit");
  await page.setInputFiles("#undo-file", path("half.undo.json"));
  await page.waitForSelector("#preview table");
  await page.click("#edit-apply");
  await until(page, () => /was changed/.test(document.querySelector("#edit-status").textContent));
  assert.deepEqual(readFileSync(path("half.qcow2")), before);
  await page.close();
});
