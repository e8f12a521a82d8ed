// The view of what is on the disk: partitions and files, in images of any format.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { deflateSync, crc32 } from "node:zlib";
import { test } from "node:test";

import { assertAccessible, base, checked, fresh, opened, path, setUp, shoot, until, view } from "./support.mjs";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** A picture of one color. */
function png(side) {
  const chunk = (type, bytes) => {
    const body = Buffer.concat([Buffer.from(type, "latin1"), bytes]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(bytes.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([8, 2, 0, 0, 0], 8);
  const rows = Buffer.concat(Array.from({ length: side }, () => Buffer.concat([Buffer.alloc(1), Buffer.alloc(side * 3, 0x7f)])));
  return Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}

setUp(() => {
  mkdirSync(path("tree/etc/größe"), { recursive: true });
  mkdirSync(path("tree/many"));
  writeFileSync(path("tree/etc/passwd"), "root:x:0:0\nüber:x:1:1\n");
  writeFileSync(path("tree/picture.png"), png(64));
  writeFileSync(path("tree/big.bin"), randomBytes(3_000_000));
  symlinkSync("etc/passwd", path("tree/link"));
  for (let number = 0; number < 450; number++) writeFileSync(path(`tree/many/file-${String(number).padStart(3, "0")}`), String(number));
  const disk = path("disk.raw");
  writeFileSync(disk, "");
  truncateSync(disk, 64 << 20);
  const table = 'label: gpt\nsize=40MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="root"\nsize=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI"\n';
  execFileSync("sfdisk", ["-q", disk], { input: table });
  execFileSync("mke2fs", ["-q", "-t", "ext4", "-L", "system", "-d", path("tree"), "-E", "offset=1048576", disk, "40M"]);
  execFileSync("qemu-img", ["convert", "-c", "-O", "qcow2", disk, path("disk.qcow2")]);
  const bytes = readFileSync(disk);
  // The superblock promises more than there is; the primary table does not fit its sum.
  bytes.writeUInt32LE(0xffffffff, 1048576 + 1024 + 4);
  bytes.writeUInt8(bytes.readUInt8(512 + 20) ^ 1, 512 + 20);
  writeFileSync(path("damaged.raw"), bytes);
});

async function contents(name) {
  const page = await fresh();
  await page.setInputFiles("#files", path(name));
  await opened(page);
  await checked(page);
  await view(page, "Contents");
  await until(page, () => !/Looking/.test(document.querySelector("#layout").textContent));
  return page;
}

test("partitions are listed, directories walked, files looked at and saved", async () => {
  const page = await contents("disk.qcow2");
  assert.match(await page.textContent("#layout"), /GPT.*2 partitions/);
  assert.match(await page.textContent("#volumes"), /root.*0x100000.*40 MiB.*ext.*“system”.*EFI.*8 MiB.*not recognised/s);
  await page.locator("#volumes button", { hasText: "root" }).click();
  await until(page, () => /passwd/.test(document.querySelector("#entries").textContent));
  assert.match(await page.textContent("#entries"), /link → etc\/passwd/);
  await shoot(page, "contents.png");
  await assertAccessible(page);
  await page.getByRole("button", { name: "many/" }).click();
  await until(page, () => /200 entries so far/.test(document.querySelector("#contents-status").textContent));
  await page.getByRole("button", { name: "Show more" }).click();
  await page.getByRole("button", { name: "Show more" }).click();
  await until(page, () => /450 entries\./.test(document.querySelector("#contents-status").textContent));
  assert.equal(new Set(await page.locator("#entries button").allTextContents()).size, 450);
  await page.locator("#way button").first().click();
  await page.getByRole("button", { name: "etc/" }).click();
  await page.getByRole("button", { name: "passwd" }).click();
  await until(page, () => /über/.test(document.querySelector("#file").textContent));
  await until(page, () => /view=contents&path=0%3A%2Fetc/.test(location.hash));
  await page.getByRole("button", { name: "größe/" }).click();
  await until(page, () => /The directory is empty/.test(document.querySelector("#contents-status").textContent));
  await page.locator("#way button").first().click();
  await page.getByRole("button", { name: "picture.png" }).click();
  await until(page, () => document.querySelector("#file img")?.naturalWidth === 64);
  await shoot(page, "picture.png");
  await assertAccessible(page);
  await page.getByRole("button", { name: "big.bin" }).click();
  await until(page, () => /3,000,000 bytes/.test(document.querySelector("#file").textContent));
  await page.evaluate(() => {
    globalThis.showSaveFilePicker = async ({ suggestedName }) => (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true });
  });
  await page.getByRole("button", { name: "Save the file…" }).click();
  await until(page, () => /is saved/.test(document.querySelector("#contents-status").textContent));
  const sum = await page.evaluate(async () => {
    const file = await (await (await navigator.storage.getDirectory()).getFileHandle("big.bin")).getFile();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  });
  assert.equal(sum, sha256(readFileSync(path("tree/big.bin"))));
  await page.close();
});

test("a link leads into a file system, in a raw disk without a table as well", async () => {
  execFileSync("mke2fs", ["-q", "-t", "ext2", "-d", path("tree/etc"), path("plain.raw"), "4M"]);
  const page = await fresh();
  await page.goto(`${base}#view=contents&path=${encodeURIComponent("0:/gr%c3%b6%c3%9fe")}`);
  await page.reload();
  await page.setInputFiles("#files", path("plain.raw"));
  await opened(page);
  await until(page, () => /größe/.test(document.querySelector("#way").textContent));
  await until(page, () => /The directory is empty/.test(document.querySelector("#contents-status").textContent));
  await page.close();
});

test("damage is said, and the rest goes on", async () => {
  const page = await contents("damaged.raw");
  assert.match(await page.textContent("#view-contents"), /first copy of the GPT is damaged.*this is the second one/);
  const root = page.locator("#volumes button", { hasText: "root" });
  if ((await root.count()) > 0) {
    await root.click();
    await until(page, () => !/Reading/.test(document.querySelector("#contents-status").textContent));
  }
  await shoot(page, "contents-damaged.png");
  await assertAccessible(page);
  await view(page, "Data");
  await until(page, () => document.querySelectorAll("#view-data .row").length > 4);
  await page.close();
});
