// What people come to the page for besides looking: searching, exporting, comparing, copying, changing, working without a network.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { test } from "node:test";

import { assertAccessible, base, checked, context, fresh, opened, path, sample, setUp, shoot, until, view } from "./support.mjs";

const MIB = 1024 * 1024;
const qemuImg = (...args) => execFileSync("qemu-img", args, { encoding: "utf8" });
const qemuIo = (name, ...commands) => execFileSync("qemu-io", [...commands.flatMap((command) => ["-c", command]), path(name)]);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

setUp(() => {
  qemuImg("create", "-q", "-f", "qcow2", path("work.qcow2"), "64M");
  qemuIo("work.qcow2", "write -P 0x41 1M 1M", "write -P 0x42 40M 256k", "write -c -P 0x43 50M 64k", "write -z 60M 1M");
  qemuImg("snapshot", "-c", "first", path("work.qcow2"));
  qemuIo("work.qcow2", "write -P 0x44 1M 64k");
  qemuImg("snapshot", "-c", "second", path("work.qcow2"));
  qemuImg("convert", "-O", "raw", path("work.qcow2"), path("work.raw"));
  copyFileSync(path("work.raw"), path("other.raw"));
  execFileSync("qemu-io", ["-f", "raw", "-c", "write -P 0x45 30M 3", "-c", "write -P 0x46 40M 64k", path("other.raw")]);
  const bytes = readFileSync(path("work.qcow2"));
  const table = Number(bytes.readBigUInt64BE(48));
  const block = Number(bytes.readBigUInt64BE(table));
  const end = Math.ceil(bytes.length / 65536);
  const leaky = Buffer.concat([bytes], (end + 1) * 65536);
  leaky.writeUInt16BE(1, block + end * 2);
  writeFileSync(path("leaky.qcow2"), leaky);
});

/** A page whose file pickers give files of the browser's own storage, by the names in `picks`. */
async function withPickers() {
  const page = await fresh();
  await page.addInitScript(() => {
    const storage = () => navigator.storage.getDirectory();
    globalThis.picks = [];
    globalThis.showSaveFilePicker = async ({ suggestedName }) => (await storage()).getFileHandle(globalThis.picks.shift() ?? suggestedName, { create: true });
    globalThis.showOpenFilePicker = async () => [await (await storage()).getFileHandle(globalThis.picks.shift())];
  });
  await page.reload();
  return page;
}

/** Puts a file into the browser's storage. */
async function store(page, name, bytes) {
  await page.evaluate(async ({ name, text }) => {
    const handle = await (await navigator.storage.getDirectory()).getFileHandle(name, { create: true });
    const writable = await handle.createWritable();
    await writable.write(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
    await writable.close();
  }, { name, text: bytes.toString("base64") });
}

/** Takes a file out of it. */
async function stored(page, name) {
  const text = await page.evaluate(async (name) => {
    const file = await (await (await navigator.storage.getDirectory()).getFileHandle(name)).getFile();
    const reader = new FileReader();
    await new Promise((resolve) => {
      reader.onload = resolve;
      reader.readAsDataURL(file);
    });
    return reader.result.slice(reader.result.indexOf(",") + 1);
  }, name);
  return Buffer.from(text, "base64");
}

async function openFile(page, ...names) {
  await page.setInputFiles("#files", names.map(path));
  await opened(page);
  await checked(page);
}


async function previewRepair(page) {
  await view(page, "Edit");
  await page.getByRole("button", { name: "Repair leaks…" }).click();
  await page.waitForSelector("#preview table");
}

/** Saves the undo file of what is previewed; the file pickers give one of the browser's own storage. */
async function saveUndo(page, name) {
  await page.click("#edit-undo");
  await told(page, "edit-status", /\.undo\.json is saved/);
  return stored(page, `${name}.undo.json`);
}

/** Waits for a text in an element; the pattern travels as source, for the page forbids eval. */
async function told(page, id, pattern) {
  for (const end = Date.now() + 30_000; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 30))) {
    if (pattern.test(await page.textContent(`#${id}`))) return;
  }
  assert.fail(`waited for ${pattern} in ${id}: ${await page.textContent(`#${id}`)}`);
}

test("text and bytes are found on the disk, across what is not stored", async () => {
  const page = await fresh();
  await openFile(page, "work.qcow2");
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  const find = async (text, next = "Find first") => {
    await page.fill("#search", text);
    await page.getByRole("button", { name: next }).click();
  };
  await find("DDDD");
  await told(page, "data-status", /Found at 0x100000\./);
  assert.equal(await page.inputValue("#view-data hex-view input"), "0x100000");
  await find("BBBB");
  await told(page, "data-status", /Found at 0x2800000\./);
  await find("BBBB", "Find next");
  await told(page, "data-status", /Found at 0x2800001\./);
  await find("CC");
  await told(page, "data-status", /Found at 0x3200000\./);
  // The last byte of a stretch, and the zero that follows it and is stored nowhere.
  await find("0x41 00");
  await told(page, "data-status", /Found at 0x1fffff\./);
  await find("0x00 00 42");
  await told(page, "data-status", /Found at 0x27ffffe\./);
  await find("nowhere to be found");
  await told(page, "data-status", /Not found/);
  await find("0x123");
  await told(page, "data-status", /Two digits for each byte/);
  await shoot(page, "search.png");
  await assertAccessible(page);
  await page.close();
});

test("bytes are selected, copied and exported", async () => {
  const page = await withPickers();
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: base });
  await openFile(page, "work.qcow2");
  await view(page, "Data");
  await page.locator('#view-data .bytes [data-at="0"]').click();
  await page.locator('#view-data .bytes [data-at="3"]').click({ modifiers: ["Shift"] });
  await page.getByRole("button", { name: "Copy as hex" }).click();
  await told(page, "data-status", /4 bytes copied/);
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "51 46 49 fb");
  assert.equal(await page.inputValue("#export-length"), "4");
  await page.selectOption("#view-data select", { index: 1 });
  await page.fill("#export-from", "0xff000");
  await page.fill("#export-length", "2097152");
  await page.evaluate(() => globalThis.picks.push("part.bin"));
  await page.getByRole("button", { name: "Export…" }).click();
  await told(page, "data-status", /2,097,152 bytes exported/);
  assert.equal(sha256(await stored(page, "part.bin")), sha256(readFileSync(path("work.raw")).subarray(0xff000, 0xff000 + 2 * MIB)));
  await page.fill("#export-length", "99999999999");
  await page.getByRole("button", { name: "Export…" }).click();
  await told(page, "data-status", /within 67,108,864 bytes/);
  await assertAccessible(page);
  await page.close();
});

test("two disks are compared byte by byte, whatever they are stored as", async () => {
  const page = await fresh();
  await openFile(page, "work.qcow2");
  await view(page, "Compare");
  await page.setInputFiles("#compare-files", path("work.raw"));
  await told(page, "compare-summary", /Every byte of the disk is alike/);
  await page.setInputFiles("#compare-files", path("other.raw"));
  await told(page, "compare-summary", /2 places differ, 64 KiB in all/);
  assert.match(await page.textContent("#differences"), /0x1e00000 3 bytes.*0x2800000 64 KiB/s);
  // Every byte is in one run of the picture.
  assert.match(await page.textContent("#view-compare .legend"), /different 64 KiB, < 0\.1 %alike 63\.94 MiB, > 99\.9 %/);
  await page.getByRole("button", { name: "0x2800000" }).click();
  await until(page, () => [...document.querySelectorAll("#view-compare .rows")].map((rows) => rows.querySelector(".marked")?.textContent).join() === "42,46");
  await shoot(page, "compare.png");
  await assertAccessible(page);
  await page.fill("#compare-url", `${base}images/other.raw`);
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await told(page, "compare-summary", /2 places differ, 64 KiB in all/);
  await page.fill("#compare-url", `${base}images/none.raw`);
  await page.getByRole("button", { name: "Compare", exact: true }).click();
  await told(page, "compare-summary", /404 Not Found/);
  await page.close();
});

test("an encrypted disk is compared once its passphrase is given", async () => {
  const page = await fresh();
  const secret = ["--object", "secret,id=s,data=correct"];
  qemuImg("create", "-q", "-f", "luks", ...secret, "-o", "key-secret=s,iter-time=10", path("secret.luks"), "64M");
  qemuImg("convert", "-n", "-f", "raw", "--target-image-opts", ...secret, path("other.raw"), `driver=luks,key-secret=s,file.filename=${path("secret.luks")}`);
  await openFile(page, "work.qcow2");
  await view(page, "Compare");
  await page.setInputFiles("#compare-files", path("secret.luks"));
  await told(page, "compare-summary", /secret\.luks is encrypted: its passphrase is needed/);
  await assertAccessible(page);
  await page.getByLabel("Passphrase of the other image").fill("wrong");
  await page.getByRole("button", { name: "Unlock and compare" }).click();
  await until(page, () => document.querySelector("#compare-summary").classList.contains("bad"));
  await until(page, () => document.activeElement.ariaLabel === "Passphrase of the other image");
  await page.getByLabel("Passphrase of the other image").fill("correct");
  await page.getByRole("button", { name: "Unlock and compare" }).click();
  await told(page, "compare-summary", /2 places differ, 64 KiB in all/);
  assert.ok(await page.isHidden("#compare-unlock"));
  await page.close();
});

for (const [choice, format] of [["qcow2", "qcow2"], ["compressed", "qcow2"], ["raw", "raw"]]) {
  test(`the disk is saved as another image: ${choice}`, async () => {
    const page = await withPickers();
    await openFile(page, "work.qcow2");
    await view(page, "Convert");
    await page.selectOption("#convert-format", choice);
    await page.evaluate((name) => globalThis.picks.push(name), `copy-${choice}`);
    await page.click("#convert-begin");
    await told(page, "convert-status", /is complete/);
    const bytes = await stored(page, `copy-${choice}`);
    writeFileSync(path(`copy-${choice}`), bytes);
    assert.match(qemuImg("compare", "-f", format, "-F", "raw", path(`copy-${choice}`), path("work.raw")), /identical/);
    if (format === "qcow2") assert.match(qemuImg("check", path(`copy-${choice}`)), /No errors/);
    if (choice === "compressed") assert.ok(bytes.length < 1.5 * MIB, `${bytes.length} bytes`);
    await shoot(page, `convert-${choice}.png`);
    await assertAccessible(page);
    await page.close();
  });
}

test("without a picker the copy is a download", async () => {
  const page = await fresh();
  await page.addInitScript(() => delete globalThis.showSaveFilePicker);
  await page.reload();
  await openFile(page, "work.qcow2");
  await view(page, "Convert");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#convert-begin")]);
  await download.saveAs(path("downloaded"));
  assert.equal(download.suggestedFilename(), "work-copy.qcow2");
  assert.match(qemuImg("compare", path("downloaded"), path("work.raw")), /identical/);
  await page.close();
});

test("a copy is paused, goes on, and is cancelled without a trace", async () => {
  const page = await withPickers();
  execFileSync("sh", ["-c", `head -c 200000000 /dev/urandom > '${path("long.raw")}'`]);
  await openFile(page, "long.raw");
  await view(page, "Convert");
  await store(page, "kept", Buffer.from("what was there"));
  await page.evaluate(() => globalThis.picks.push("kept"));
  await page.selectOption("#convert-format", "compressed");
  await page.click("#convert-begin");
  await told(page, "convert-status", /MiB of/);
  assert.equal(await page.getAttribute("#convert-status", "aria-busy"), "true", "progress is not read out");
  await page.getByRole("button", { name: "Pause" }).click();
  await told(page, "convert-status", /paused/);
  const still = async () => /([\d.]+ \w+) of/.exec(await page.textContent("#convert-status"))?.[1];
  await new Promise((resolve) => setTimeout(resolve, 300));
  const before = await still();
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.equal(await still(), before);
  await page.getByRole("button", { name: "Go on" }).click();
  await until(page, () => !/paused/.test(document.querySelector("#convert-status").textContent));
  await page.getByRole("button", { name: "Cancel" }).click();
  await told(page, "convert-status", /Cancelled/);
  // While it is paused as well.
  await page.evaluate(() => globalThis.picks.push("kept"));
  await page.click("#convert-begin");
  await told(page, "convert-status", /MiB of/);
  await page.getByRole("button", { name: "Pause" }).click();
  await told(page, "convert-status", /paused/);
  await page.getByRole("button", { name: "Cancel" }).click();
  await told(page, "convert-status", /Cancelled/);
  assert.equal(await page.getAttribute("#convert-status", "aria-busy"), "false");
  assert.ok(await page.isEnabled("#convert-begin"));
  assert.equal((await stored(page, "kept")).toString(), "what was there");
  await page.close();
});

test("a repair of leaks shows every byte first, keeps an undo file, and can be undone", async () => {
  const page = await withPickers();
  const before = readFileSync(path("leaky.qcow2"));
  await store(page, "leaky.qcow2", before);
  await openFile(page, "leaky.qcow2");
  assert.match(await page.textContent("#verdict"), /1 leaked cluster/);
  await previewRepair(page);
  assert.ok(await page.isDisabled("#edit-apply"), "nothing is written without an undo file");
  await shoot(page, "preview.png");
  await assertAccessible(page);
  await page.evaluate(() => globalThis.picks.push("leaky.qcow2"));
  await page.click("#edit-undo");
  await told(page, "edit-status", /That is the image itself/);
  assert.ok(await page.isDisabled("#edit-apply"));
  writeFileSync(path("leaky.undo.json"), await saveUndo(page, "leaky.qcow2"));
  assert.deepEqual(await stored(page, "leaky.qcow2"), before);
  await page.evaluate(() => globalThis.picks.push("leaky.qcow2"));
  await page.click("#edit-apply");
  await told(page, "edit-status", /was changed/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "view-edit", "who writes goes on there");
  const after = await stored(page, "leaky.qcow2");
  writeFileSync(path("mended.qcow2"), after);
  assert.match(qemuImg("check", path("mended.qcow2")), /No errors/);
  assert.match(qemuImg("compare", path("mended.qcow2"), path("work.raw")), /identical/);
  await checked(page);
  assert.match(await page.textContent("#verdict"), /no errors/);
  // What was made for other bytes, or says what nobody looked at, is no undo file for this image.
  const undo = JSON.parse(readFileSync(path("leaky.undo.json")));
  for (const [change, pattern] of [
    [{ after: Buffer.from("?").toString("base64") }, /is not the file that was looked at/],
    [{ after: "" }, /does not fit the others or the file/],
    [{ offset: -1 }, /a number in it is none/],
    [{ before: 5 }, /bytes in it are none/],
  ]) {
    writeFileSync(path("false.undo.json"), JSON.stringify({ ...undo, changes: [{ ...undo.changes[0], ...change }] }));
    await page.setInputFiles("#undo-file", path("false.undo.json"));
    await told(page, "edit-status", pattern);
    assert.ok(await page.isHidden("#preview"));
  }
  await page.setInputFiles("#undo-file", path("leaky.undo.json"));
  await page.waitForSelector("#preview table");
  await page.evaluate(() => globalThis.picks.push("leaky.qcow2"));
  await page.click("#edit-apply");
  await until(page, () => /1 leaked cluster/.test(document.querySelector("#verdict").textContent));
  assert.deepEqual(await stored(page, "leaky.qcow2"), before);
  await page.close();
});

test("an edit or its undoing that is not right any more is refused, although the bytes it changes are as they were", async () => {
  const page = await withPickers();
  const before = readFileSync(path("leaky.qcow2"));
  await store(page, "leaky.qcow2", before);
  await openFile(page, "leaky.qcow2");
  await previewRepair(page);
  const undo = await saveUndo(page, "leaky.qcow2");
  // Elsewhere the lost cluster is given back and taken again.
  copyFileSync(path("leaky.qcow2"), path("moved-on.qcow2"));
  qemuImg("check", "-q", "-r", "leaks", path("moved-on.qcow2"));
  writeFileSync(path("repaired.qcow2"), readFileSync(path("moved-on.qcow2")));
  qemuIo("moved-on.qcow2", "write -P 9 20M 64k");
  const moved = readFileSync(path("moved-on.qcow2"));
  const { changes: [{ offset }] } = JSON.parse(undo);
  assert.deepEqual([moved.length, moved[offset]], [before.length, before[offset]]);
  await store(page, "leaky.qcow2", moved);
  await page.evaluate(() => globalThis.picks.push("leaky.qcow2"));
  await page.click("#edit-apply");
  await told(page, "edit-status", /Nothing was changed: leaky\.qcow2 is not the file that was looked at, or was changed since/);
  assert.deepEqual(await stored(page, "leaky.qcow2"), moved);
  // What was repaired here is written to by others: a place that it made free is in use when it is undone.
  qemuIo("repaired.qcow2", "write -P 9 20M 64k");
  qemuImg("snapshot", "-c", "later", path("repaired.qcow2"));
  const used = readFileSync(path("repaired.qcow2"));
  const plan = JSON.parse(undo);
  plan.name = "leaky-now.qcow2";
  plan.sizeBefore = plan.sizeAfter = used.length;
  const old = used.subarray(offset, offset + 1);
  plan.changes = [{ offset, before: Buffer.from([0]).toString("base64"), after: Buffer.from(old).toString("base64") }];
  writeFileSync(path("late.undo.json"), JSON.stringify(plan));
  copyFileSync(path("repaired.qcow2"), path("leaky-now.qcow2"));
  await store(page, "leaky-now.qcow2", used);
  await openFile(page, "leaky-now.qcow2");
  await page.setInputFiles("#undo-file", path("late.undo.json"));
  await page.waitForSelector("#preview table");
  await page.evaluate(() => globalThis.picks.push("leaky-now.qcow2"));
  await page.click("#edit-apply");
  await told(page, "edit-status", /Nothing was changed: leaky-now\.qcow2 was changed since the undo file was saved: it would contradict itself/);
  assert.deepEqual(await stored(page, "leaky-now.qcow2"), used);
  await page.close();
});

test("a snapshot is deleted in the file, and nothing if the file changed meanwhile", async () => {
  const page = await withPickers();
  const before = readFileSync(path("work.qcow2"));
  await store(page, "work.qcow2", before);
  await openFile(page, "work.qcow2");
  await view(page, "Edit");
  await page.locator(".edit", { hasText: "first" }).getByRole("button", { name: "Delete…" }).click();
  await page.waitForSelector("#preview table");
  await saveUndo(page, "work.qcow2");
  const other = Buffer.from(before);
  other.writeUInt8(other.readUInt8(before.length - 1) ^ 1, before.length - 1);
  other.writeUInt32BE(1, 60);
  await store(page, "work.qcow2", other);
  await page.evaluate(() => globalThis.picks.push("work.qcow2", "work.qcow2"));
  await page.click("#edit-apply");
  await told(page, "edit-status", /Nothing was changed: work\.qcow2 is not the file that was looked at/);
  assert.deepEqual(await stored(page, "work.qcow2"), other);
  await store(page, "work.qcow2", before);
  await page.click("#edit-apply");
  await told(page, "edit-status", /was changed/);
  writeFileSync(path("fewer.qcow2"), await stored(page, "work.qcow2"));
  assert.match(qemuImg("check", path("fewer.qcow2")), /No errors/);
  assert.match(qemuImg("compare", path("fewer.qcow2"), path("work.raw")), /identical/);
  const list = qemuImg("snapshot", "-l", path("fewer.qcow2"));
  assert.doesNotMatch(list, /first/);
  assert.match(list, /second/);
  await page.close();
});

test("the name of a backing file is changed in the header", async () => {
  qemuImg("create", "-q", "-f", "qcow2", "-b", "gone.qcow2", "-F", "qcow2", "-u", path("based.qcow2"), "8M");
  const page = await withPickers();
  await store(page, "based.qcow2", readFileSync(path("based.qcow2")));
  await openFile(page, "based.qcow2");
  assert.match(await page.textContent("#warnings"), /gone\.qcow2 \(backing file\) is not open/);
  await view(page, "Edit");
  await page.fill("#backing-name", "found.raw");
  await page.fill("#backing-format", "raw");
  await page.getByRole("button", { name: "Change the name…" }).click();
  await page.waitForSelector("#preview table");
  await saveUndo(page, "based.qcow2");
  await page.evaluate(() => globalThis.picks.push("based.qcow2"));
  await page.click("#edit-apply");
  await told(page, "edit-status", /was changed/);
  writeFileSync(path("renamed.qcow2"), await stored(page, "based.qcow2"));
  const { "backing-filename": name, "backing-filename-format": format } = JSON.parse(qemuImg("info", "-U", "--output=json", path("renamed.qcow2")));
  assert.deepEqual([name, format], ["found.raw", "raw"]);
  await page.close();
});

test("the disk is looked at as it was at a snapshot", async () => {
  const page = await fresh();
  await openFile(page, "work.qcow2");
  await view(page, "Snapshots");
  await page.getByRole("button", { name: "Look through: first" }).click();
  await told(page, "banner", /as it was at “first”/);
  await shoot(page, "snapshot.png");
  await assertAccessible(page);
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  await page.fill("#view-data hex-view input", "0x100000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /AAAA/.test(document.querySelector("#view-data .rows").textContent));
  await view(page, "Edit");
  assert.match(await page.textContent("#edits"), /Go back to the present/);
  await page.getByRole("button", { name: "Back to the present" }).click();
  await until(page, () => document.querySelector("#banner").childElementCount === 0 && /opened in/.test(document.querySelector("#status").textContent));
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  await page.fill("#view-data hex-view input", "0x100000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /DDDD/.test(document.querySelector("#view-data .rows").textContent));
  await page.close();
});

test("what a bitmap holds dirty is marked on the map", async () => {
  qemuImg("create", "-q", "-f", "qcow2", path("recorded.qcow2"), "64M");
  qemuImg("bitmap", "--add", "-g", "64k", path("recorded.qcow2"), "changes");
  qemuIo("recorded.qcow2", "write 1M 100k", "write 60M 4M");
  const page = await fresh();
  await openFile(page, "recorded.qcow2");
  await view(page, "Snapshots");
  await page.getByRole("button", { name: "Show on the map: changes" }).click();
  await told(page, "map-bitmap", /changes holds dirty: 4\.125 MiB in 2 ranges/);
  await shoot(page, "bitmap.png");
  await assertAccessible(page);
  await page.getByRole("button", { name: "Take the dots away" }).click();
  assert.equal(await page.textContent("#map-bitmap"), "");
  await page.close();
});

test("the maps of disk and file are linked", async () => {
  const page = await fresh();
  await openFile(page, "leaky.qcow2");
  await view(page, "Map");
  await until(page, () => /leaked 64 KiB/.test(document.querySelector("#file-map .legend").textContent));
  assert.match(await page.textContent("#file-map .legend"), /header.*l2 table.*refcount block.*compressed.*snapshot data.*data/s);
  const map = JSON.parse(qemuImg("map", "--output=json", path("work.qcow2")));
  const { offset } = map.find(({ start }) => start === 40 * MIB);
  // The place in the file of what is at 40 MiB on the disk, and back.
  await page.goto(`${base}#view=map&space=0&at=${offset}`);
  await told(page, "view-map", /It is at 0x2800000 on the disk/);
  await shoot(page, "linked.png");
  await page.close();
});

test("a link to a place on the map is followed when the map has arrived", async () => {
  const page = await fresh();
  await page.goto(`${base}#view=map&space=disk&at=0x2800000`);
  await page.reload();
  await page.setInputFiles("#files", path("work.qcow2"));
  await opened(page);
  await until(page, () => /^0x2800000 to /.test(document.querySelector("#disk-map .extent").textContent));
  await page.close();
});

test("overlays whose other files are missing are not called alike", async () => {
  for (const name of ["one", "two"]) qemuImg("create", "-q", "-f", "qcow2", "-b", `${name}-base.qcow2`, "-F", "qcow2", "-u", path(`${name}.qcow2`), "8M");
  const page = await fresh();
  await openFile(page, "one.qcow2");
  await view(page, "Compare");
  await page.setInputFiles("#compare-files", path("two.qcow2"));
  await told(page, "compare-summary", /one-base\.qcow2|not open|was not opened|backing/);
  assert.doesNotMatch(await page.textContent("#compare-summary"), /alike/);
  await page.close();
});

test("a file that is no sound image is taken apart all the same", async () => {
  const page = await fresh();
  const bytes = Buffer.from(readFileSync(path("work.qcow2")));
  bytes.writeBigUInt64BE(0x123456789n << 16n, 40);
  await page.setInputFiles("#files", { name: "broken.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await page.waitForSelector("#status.failed");
  await page.getByRole("button", { name: "Show its bytes" }).click();
  await opened(page);
  await view(page, "Structure");
  await until(page, () => /header/.test(document.querySelector("#structure-tree").textContent) && /L1 table/i.test(document.querySelector("#structure-tree").textContent));
  assert.match(await page.textContent("#structure-tree"), /✗ wrong/);
  await shoot(page, "broken-structure.png");
  await assertAccessible(page);
  await page.close();
});

test("an image behind an address is not changed, and says so", async () => {
  const page = await fresh();
  await page.fill("#url", `${base}images/work.qcow2`);
  await page.press("#url", "Enter");
  await opened(page);
  await view(page, "Edit");
  assert.match(await page.textContent("#edits"), /behind an address cannot be changed here/);
  await assertAccessible(page);
  await page.close();
});

test("an encrypted disk is unlocked with its passphrase, and a wrong one says so", async () => {
  const page = await fresh();
  const secret = ["--object", "secret,id=s,data=correct"];
  qemuImg("create", "-q", "-f", "qcow2", ...secret, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path("locked.qcow2"), "4M");
  execFileSync("qemu-io", [...secret, "--image-opts", "-c", "write -P 0x5a 1M 64k", `driver=qcow2,encrypt.key-secret=s,file.filename=${path("locked.qcow2")}`]);
  await openFile(page, "locked.qcow2");
  await page.fill(".unlock input", "wrong");
  await page.getByRole("button", { name: "Unlock" }).click();
  await page.waitForSelector("#status.failed");
  assert.match(await page.textContent("#status"), /passphrase/i);
  await until(page, () => document.activeElement.id === "view-overview");
  await shoot(page, "wrong-passphrase.png");
  await assertAccessible(page);
  await page.fill(".unlock input", "correct");
  await page.getByRole("button", { name: "Unlock" }).click();
  await opened(page);
  assert.equal(await page.evaluate(() => document.activeElement.id), "view-overview", "who unlocks it goes on there");
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  await page.fill("#view-data hex-view input", "0x100000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /ZZZZ/.test(document.querySelector("#view-data .rows").textContent));
  assert.doesNotMatch(page.url(), /correct/);
  await page.close();
});

test("of a folder the image is picked, with what it names", async () => {
  const page = await fresh();
  mkdirSync(path("folder"));
  qemuImg("create", "-q", "-f", "qcow2", path("folder/base.qcow2"), "8M");
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"], { cwd: path("folder") });
  writeFileSync(path("folder/notes.txt"), "nothing of interest");
  await page.setInputFiles("#folder", path("folder"));
  await opened(page);
  assert.equal(await page.textContent("#title"), "folder/top.qcow2");
  assert.equal(await page.locator("#chain button").count(), 2);
  qemuImg("create", "-q", "-f", "qcow2", path("folder/alone.qcow2"), "8M");
  await page.setInputFiles("#folder", path("folder"));
  await page.getByRole("button", { name: "folder/alone.qcow2" }).click();
  await until(page, () => document.querySelector("#title").textContent === "folder/alone.qcow2");
  await page.close();
});

/** Two machines, each with a `top.qcow2` over `base/middle.qcow2` over `base/base.qcow2`. */
function makeMachines(name) {
  for (const [machine, byte] of [["red", 0x52], ["blue", 0x42]]) {
    const folder = path(`${name}/${machine}`);
    mkdirSync(`${folder}/base`, { recursive: true });
    qemuImg("create", "-q", "-f", "qcow2", `${folder}/base/base.qcow2`, "8M");
    execFileSync("qemu-io", ["-c", `write -P ${byte} 1M 64k`, `${folder}/base/base.qcow2`]);
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "middle.qcow2"], { cwd: `${folder}/base` });
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base/middle.qcow2", "-F", "qcow2", "top.qcow2"], { cwd: folder });
  }
}

test("files of the same name in a folder are told apart by where they are", async () => {
  const page = await fresh();
  makeMachines("machines");
  for (const [machine, text] of [["red", "RRRR"], ["blue", "BBBB"]]) {
    await page.setInputFiles("#folder", path("machines"));
    await page.getByRole("button", { name: `machines/${machine}/top.qcow2` }).click();
    await until(page, new Function(`return document.querySelector("#title").textContent === "machines/${machine}/top.qcow2"`));
    await opened(page);
    assert.equal(await page.getAttribute("#chain li:nth-child(3) button", "title"), `machines/${machine}/base/base.qcow2`);
    await view(page, "Data");
    await page.selectOption("#view-data select", { label: "Disk of 8 MiB" });
    await page.fill("#view-data hex-view input", "0x100000");
    await page.press("#view-data hex-view input", "Enter");
    await until(page, new Function(`return document.querySelector("#view-data .rows").textContent.includes("${text}")`));
  }
  await page.close();
});

test("a name in a folder leads nowhere else than it says", async () => {
  const page = await fresh();
  makeMachines("apart");
  rmSync(path("apart/red/base"), { recursive: true });
  await page.setInputFiles("#folder", path("apart"));
  await page.getByRole("button", { name: "apart/red/top.qcow2" }).click();
  await opened(page);
  assert.match(await page.textContent("#warnings"), /base\/middle\.qcow2 \(backing file\) is not open/);
  // A name that begins at a root is that of the file with most of its end.
  for (const [name, size] of [["images/base", "8M"], ["images/other", "12M"]]) {
    mkdirSync(path(`rooted/${name}`), { recursive: true });
    qemuImg("create", "-q", "-f", "qcow2", path(`rooted/${name}/disk.qcow2`), size);
  }
  mkdirSync(path("rooted/vm"));
  qemuImg("create", "-q", "-f", "qcow2", "-u", "-b", "/var/lib/images/base/disk.qcow2", "-F", "qcow2", path("rooted/vm/disk.qcow2"), "16M");
  await page.setInputFiles("#folder", path("rooted"));
  await page.getByRole("button", { name: "rooted/vm/disk.qcow2" }).click();
  await until(page, () => document.querySelector("#title").textContent === "rooted/vm/disk.qcow2");
  await opened(page);
  assert.equal(await page.getAttribute("#chain li:nth-child(2) button", "title"), "rooted/images/base/disk.qcow2");
  await page.close();
});

test("looking into a folder can be stopped, and what was found until then is there", async () => {
  const page = await fresh();
  mkdirSync(path("many"));
  qemuImg("create", "-q", "-f", "qcow2", path("many/found.qcow2"), "8M");
  for (let index = 0; index < 1500; index++) writeFileSync(path(`many/note-${index}`), "nothing of interest");
  await page.setInputFiles("#folder", path("many"));
  await told(page, "status", /Looked at/);
  await page.getByRole("button", { name: "Stop looking" }).click();
  await told(page, "status", /stopped before all files were looked at/);
  assert.equal(await page.getByRole("button", { name: "Stop looking" }).count(), 0);
  assert.ok(await page.evaluate(() => document.activeElement !== document.body), "the focus stays");
  // Something else that is opened stops it as well, so it opens nothing later.
  await openFile(page, "work.qcow2");
  await page.setInputFiles("#folder", path("many"));
  await told(page, "status", /Looked at/);
  await view(page, "Snapshots");
  await page.getByRole("button", { name: "Look through: first" }).click();
  await opened(page);
  await new Promise((resolve) => setTimeout(resolve, 6000));
  assert.equal(await page.textContent("#title"), "work.qcow2");
  assert.match(await page.textContent("#status"), /opened in/);
  await page.close();
});

test("the page opens and works without a network", async () => {
  const page = await sample();
  await page.evaluate(() => navigator.serviceWorker.ready);
  await until(page, () => navigator.serviceWorker.controller !== null);
  await context.setOffline(true);
  try {
    await page.reload();
    await page.click("#sample");
    await opened(page);
    await checked(page);
    assert.match(await page.textContent("#verdict"), /no errors/);
  } finally {
    await context.setOffline(false);
  }
  await page.close();
});

test("a file that changes while it is open is said to have changed", async () => {
  const page = await fresh();
  copyFileSync(path("work.qcow2"), path("moving.qcow2"));
  await openFile(page, "moving.qcow2");
  await new Promise((resolve) => setTimeout(resolve, 1100));
  writeFileSync(path("moving.qcow2"), "something else");
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  await page.fill("#view-data hex-view input", "0x2800000");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => document.querySelector("#view-data .rows .error") !== null);
  assert.match(await page.textContent("#view-data .rows .error"), /moving\.qcow2.*changed, moved or removed since it was chosen/s);
  await shoot(page, "changed.png");
  await page.close();
});
