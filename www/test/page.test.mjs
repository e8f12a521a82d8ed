import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { DIST, assertAccessible, base, checked, fresh, opened, outside, path, requested, sample, setUp, shoot, until, view } from "./support.mjs";

setUp(() => {
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", path("large.qcow2"), "100G"]);
  execFileSync("qemu-io", ["-c", "write -P 65 50G 1M", path("large.qcow2")]);
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "large.qcow2", "-F", "qcow2", path("top.qcow2")]);
  execFileSync("qemu-io", ["-c", "write -P 66 1G 1M", path("top.qcow2")]);
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", path("tip.qcow2")]);
});

for (const dark of [false, true]) {
  const theme = dark ? "dark" : "light";
  test(`the sample is shown and everything on the page is within reach (${theme})`, async () => {
    const page = await fresh({ dark });
    await shoot(page, `empty-${theme}.png`);
    await assertAccessible(page);
    await page.close();
    const shown = await sample({ dark });
    assert.match(await shown.textContent("#facts"), /qcow2.*64 MiB/s);
    assert.match(await shown.textContent("#verdict"), /no errors/);
    assert.match(await shown.textContent("#check-summary"), /No errors/);
    assert.match(await shown.textContent("#reasons"), /It stands alone.*It is qcow2 and nothing else/s);
    assert.match(await shown.textContent("#snapshots"), /before the update/);
    assert.match(await shown.textContent("#bitmaps"), /changes.*64 KiB/s);
    assert.match(await shown.textContent("#features"), /lazy refcounts/);
    for (const title of await shown.getByRole("tab").allTextContents()) {
      await view(shown, title);
      if (title === "Data") await until(shown, () => /QFI/.test(document.querySelector("#view-data .rows").textContent));
      if (title === "Map") await until(shown, () => /data 3\d\d KiB.*compressed 24 KiB.*zero 2 MiB/s.test(document.querySelector("#view-map .legend").textContent));
      await shoot(shown, `sample-${theme}-${title.toLowerCase()}.png`);
      await assertAccessible(shown);
    }
    await shown.close();
  });
}

test("the tabs work from the keyboard, and the browser goes back", async () => {
  const page = await sample();
  await page.getByRole("tab", { name: "Overview" }).focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Structure");
  assert.match(page.url(), /#view=structure/);
  assert.ok(await page.isVisible("#view-structure"));
  assert.ok(await page.isHidden("#view-overview"));
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await page.getAttribute('[role="tab"][tabindex="0"]', "id"), await page.evaluate(() => document.activeElement.id));
  await view(page, "Data");
  await page.goBack();
  await page.goBack();
  assert.match(page.url(), /#view=overview/);
  assert.ok(await page.isVisible("#view-overview"));
  await page.close();
});

test("a link leads to a view and an offset, and to no address by itself", async () => {
  const page = await fresh();
  await page.goto(`${base}#view=data&space=disk&at=0x1400000`);
  await page.reload();
  await page.click("#sample");
  await opened(page);
  await until(page, () => document.querySelector("#view-data hex-view input").value === "0x1400000");
  assert.match(await page.textContent("#view-data .rows"), /diskette sample/);
  await page.goto(`${base}#view=check&url=${encodeURIComponent(`${base}images/large.qcow2`)}`);
  const before = requested.length;
  await page.reload();
  await page.waitForSelector("#status button");
  assert.equal(requested.slice(before).filter((url) => url.startsWith("/images")).length, 0);
  await page.click("#status button");
  await opened(page);
  assert.ok(await page.isVisible("#view-check"));
  assert.match(page.url(), /view=check.*url=http/);
  await page.close();
});

test("a narrow window scrolls in one direction only", async () => {
  const page = await sample();
  await page.setViewportSize({ width: 390, height: 800 });
  for (const title of await page.getByRole("tab").allTextContents()) {
    await view(page, title);
    if (title === "Map") await until(page, () => document.querySelector("#disk-map .grid").clientWidth < 390);
    await shoot(page, `narrow-${title.toLowerCase()}.png`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), title);
  }
  await view(page, "Data");
  await until(page, () => document.querySelector("#view-data .row .bytes").childElementCount === 8);
  assert.ok(await page.evaluate(() => document.querySelector("#view-data .scroller").scrollWidth <= document.querySelector("#view-data .scroller").clientWidth));
  await page.focus("#view-data .scroller");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.inputValue("#view-data hex-view input"), "0x8");
  await page.close();
});

test("a field leads to its bytes, and a byte to its field", async () => {
  const page = await sample();
  await view(page, "Structure");
  await until(page, () => document.querySelectorAll("#structure-tree [role=treeitem]").length > 3);
  await shoot(page, "structure.png");
  await page.focus('#structure-tree [role="treeitem"]');
  await page.keyboard.press("ArrowRight");
  await until(page, () => /cluster_bits/.test(document.querySelector("#structure-tree").textContent));
  const field = (name) => page.locator("#structure-tree .label", { has: page.getByText(name, { exact: true }) });
  await field("cluster_bits").click();
  await until(page, () => document.querySelector("#view-structure .bytes .marked") !== null);
  assert.equal((await page.locator("#view-structure .bytes .marked").allTextContents()).join(" "), "00 00 00 0c");
  assert.match(await page.textContent("#part"), /cluster_bits.*Cluster size is 2 to the power.*0x14, 4 bytes.*12/s);
  await page.locator('#view-structure .bytes [data-at="25"]').click();
  const chosen = (name) => until(page, { size: () => document.querySelector('#structure-tree [aria-selected="true"] > .label .name').textContent === "size", l1: () => document.querySelector('#structure-tree [aria-selected="true"] > .label .name').textContent === "l1_table_offset" }[name]);
  await chosen("size");
  await page.focus("#view-structure hex-view .scroller");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  await chosen("l1");
  assert.equal(await page.inputValue("#view-structure hex-view input"), "0x2a");
  await assertAccessible(page);
  await page.close();
});

test("tables are unfolded down to the bits of an entry, which lead to the disk", async () => {
  const page = await sample();
  await view(page, "Structure");
  const choose = async (pattern) => {
    const label = page.locator("#structure-tree .label:visible", { hasText: pattern }).first();
    await label.click();
    await page.keyboard.press("ArrowRight");
  };
  await choose(/L1 table/i);
  await until(page, () => document.querySelectorAll('#structure-tree [role="treeitem"]').length > 20);
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowRight");
  // The place is in the address, and a link leads to it.
  await until(page, () => /view=structure&path=\d+\.0/.test(location.hash));
  const link = page.url();
  await shoot(page, "structure-table.png");
  await assertAccessible(page);
  const other = await fresh();
  await other.goto(link);
  await other.reload();
  await other.click("#sample");
  await opened(other);
  await until(other, () => /^entry 0/.test(document.querySelector('#structure-tree [aria-selected="true"] > .label').textContent));
  // Who follows a link into another view goes on there.
  await other.locator("#part button").first().click();
  await until(other, () => document.querySelector("#view-data").contains(document.activeElement) || document.querySelector("#view-map").contains(document.activeElement));
  await other.close();
  await page.close();
});

test("the map works from the keyboard and leads to the bytes of the disk", async () => {
  const page = await sample();
  await view(page, "Map");
  await page.focus("#disk-map .grid");
  await until(page, () => /data, stored as it is/.test(document.querySelector(".extent").textContent));
  for (let times = 0; times < 3; times++) await page.keyboard.press("+");
  await until(page, () => /8 MiB from 0x0/.test(document.querySelector("#view-map .caption").textContent));
  await page.keyboard.press("0");
  await until(page, () => /whole disk/.test(document.querySelector("#view-map .caption").textContent));
  await page.keyboard.press("End");
  await until(page, () => /unallocated/.test(document.querySelector(".extent").textContent));
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Enter");
  await until(page, () => /diskette sample/.test(document.querySelector("#view-data .rows").textContent));
  assert.match(await page.inputValue("#view-data hex-view input"), /^0x[1-9a-f]/);
  await page.close();
});

test("the map works with the pointer", async () => {
  const page = await sample();
  await view(page, "Map");
  const grid = page.locator("#disk-map .grid");
  await grid.hover({ position: { x: 3, y: 3 } });
  await until(page, () => /^0x0 to 0xffff, 64 KiB: data/.test(document.querySelector(".extent").textContent));
  // A wheel that passes by scrolls the page.
  await page.mouse.wheel(0, 60);
  await until(page, () => scrollY > 0);
  assert.match(await page.textContent("#view-map .caption"), /whole disk/);
  await page.focus("#disk-map .grid");
  await grid.hover({ position: { x: 3, y: 3 } });
  await page.mouse.wheel(0, -100);
  await until(page, () => /32 MiB from 0x0/.test(document.querySelector("#view-map .caption").textContent));
  await page.getByRole("button", { name: "Whole disk" }).click();
  await until(page, () => /whole disk/.test(document.querySelector("#view-map .caption").textContent));
  await page.close();
});

test("an image of 100 GiB opens at once, and its disk is scrolled to the last row", async () => {
  const page = await fresh();
  const times = [];
  for (let round = 0; round < 3; round++) {
    await page.setInputFiles("#files", []);
    await page.setInputFiles("#files", path("large.qcow2"));
    await opened(page);
    times.push(Number(/in (\d+) ms/.exec(await page.textContent("#status"))[1]));
  }
  console.log(`# 100 GiB image opened in ${times.join(", ")} ms`);
  assert.ok(Math.min(...times) < 1000, `${times} ms`);
  assert.match(await page.textContent("#facts"), /100 GiB/);
  await checked(page);
  assert.match(await page.textContent(".legend"), /data 1 MiB/);
  await view(page, "Data");
  await page.selectOption("#view-data select", { index: 1 });
  await page.focus("#view-data hex-view .scroller");
  await page.keyboard.press("End");
  await until(page, () => /18fffffff0/.test(document.querySelector("#view-data hex-view .rows").textContent));
  assert.ok((await page.locator("#view-data hex-view .row").count()) < 60);
  await page.fill("#view-data hex-view input", "0xc80000010");
  await page.press("#view-data hex-view input", "Enter");
  await until(page, () => /AAAAAAAA/.test(document.querySelector("#view-data hex-view .rows").textContent));
  await page.evaluate(() => (document.querySelector("#view-data .scroller").scrollTop = document.querySelector("#view-data .scroller").scrollHeight / 2));
  await until(page, () => /000000c[78]/.test(document.querySelector("#view-data hex-view .rows").textContent.replace(/^00/, "0000")) || /c[78]/.test(document.querySelector("#view-data hex-view .at").textContent));
  await page.close();
});

test("files that an image names are asked for by name, and opened when they are given", async () => {
  const page = await fresh();
  await page.setInputFiles("#files", path("top.qcow2"));
  await opened(page);
  assert.match(await page.textContent("#warnings"), /large\.qcow2 \(backing file\) is not open/);
  assert.match(await page.textContent("#chain"), /large\.qcow2 — not opened/);
  await shoot(page, "missing.png");
  await assertAccessible(page);
  await page.setInputFiles("#warnings input", path("large.qcow2"));
  const whole = () => document.querySelectorAll("#chain li").length === 2 && !document.querySelector("#chain .missing");
  await until(page, whole);
  await checked(page);
  assert.equal(await page.textContent("#title"), "top.qcow2");
  assert.match(await page.textContent(".legend"), /backing 1 MiB/);
  await page.locator("#chain button").nth(1).click();
  await until(page, () => /large/.test(document.querySelector("#view-structure select").textContent));
  // In the other order too.
  await page.setInputFiles("#files", [path("large.qcow2"), path("top.qcow2")]);
  await until(page, whole);
  assert.equal(await page.textContent("#title"), "top.qcow2");
  await page.close();
});

test("an image that is of no use without another is not passed over", async () => {
  const page = await fresh();
  await page.setInputFiles("#files", [path("tip.qcow2"), path("top.qcow2")]);
  await opened(page);
  assert.equal(await page.textContent("#title"), "tip.qcow2");
  assert.match(await page.textContent("#warnings"), /^large\.qcow2 \(backing file\) is not open.*Without it top\.qcow2 cannot be opened either/s);
  assert.match(await page.textContent("#chain"), /tip\.qcow2.*top\.qcow2 — given, but not opened.*large\.qcow2 — not opened/s);
  await page.setInputFiles("#warnings input", path("large.qcow2"));
  await until(page, () => document.querySelectorAll("#chain button").length === 3 && !document.querySelector("#chain .missing"));
  await page.close();
});

test("an image whose data is in another file asks for that, and takes the two together", async () => {
  const page = await fresh();
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "data_file=extents.raw,data_file_raw=on", "descriptor.qcow2", "8M"], { cwd: path(".") });
  execFileSync("qemu-io", ["-c", "write -P 0x44 1M 64k", "descriptor.qcow2"], { cwd: path(".") });
  await page.setInputFiles("#files", path("descriptor.qcow2"));
  await opened(page);
  await checked(page);
  assert.match(await page.textContent("#warnings"), /^extents\.raw \(data file\) is not open\..*The structure is shown; bytes that are in it are not/s);
  assert.match(await page.textContent("#chain"), /descriptor\.qcow2.*its data is in extents\.raw/s);
  await assertAccessible(page);
  await page.setInputFiles("#warnings input", path("extents.raw"));
  await until(page, () => document.querySelector("#warnings").childElementCount === 0);
  for (const files of [null, ["extents.raw", "descriptor.qcow2"], ["descriptor.qcow2", "extents.raw"]]) {
    if (files) {
      await page.setInputFiles("#files", []);
      await page.setInputFiles("#files", files.map(path));
      await opened(page);
      await checked(page);
    }
    assert.equal(await page.textContent("#title"), "descriptor.qcow2");
    await view(page, "Data");
    await page.selectOption("#view-data select", { label: "Disk of 8 MiB" });
    await page.fill("#view-data hex-view input", "0x100000");
    await page.press("#view-data hex-view input", "Enter");
    await until(page, () => /DDDD/.test(document.querySelector("#view-data .rows").textContent));
    await view(page, "Map");
    await until(page, () => /in extents\.raw/.test(document.querySelector("#view-map .extent").textContent));
    await view(page, "Overview");
  }
  await page.close();
});

test("an encrypted image is described in words", async () => {
  const page = await fresh();
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path("luks.qcow2"), "1M"]);
  await page.setInputFiles("#files", path("luks.qcow2"));
  await opened(page);
  await checked(page);
  assert.match(await page.textContent("#warnings"), /Encrypted \(luks\)/);
  await page.locator("#nested summary").press("Enter");
  assert.match(await page.locator("#nested details[open]").innerText(), /cipher alg\s+aes-256.*slots 0\s+active yes/is);
  assert.doesNotMatch(await page.textContent("#summary"), /[{}[\]]/);
  await shoot(page, "encrypted.png");
  await assertAccessible(page);
  await page.close();
});

test("clusters that were cut off are told from those that are there", async () => {
  const page = await fresh();
  const bytes = readFileSync(join(DIST, "sample.qcow2"));
  const table = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0xfffffffffffe00n);
  for (let entry = 0; entry < 16; entry++) bytes.writeBigUInt64BE((1n << 63n) | (0x7000000000n + BigInt(entry) * 4096n), table + entry * 8);
  await page.setInputFiles("#files", { name: "cut.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await opened(page);
  await checked(page);
  assert.match(await page.textContent("#verdict"), /^\d+ corruptions$/);
  assert.match(await page.textContent("#view-map .extent"), /At 0x7000000000 in cut\.qcow2, which ends before that/);
  assert.match(await page.textContent("#findings"), /offset 0x7000000000 size 0x1000/);
  const places = await page.locator("#findings button").allTextContents();
  assert.deepEqual(places.filter((place) => /^0x(7|1000$)/.test(place)), []);
  await page.press("#verdict", "Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "check-title");
  await shoot(page, "cut.png");
  await assertAccessible(page);
  await page.close();
});

test("dropped files are opened", async () => {
  const page = await fresh();
  const bytes = [...readFileSync(path("large.qcow2")).subarray(0, 400_000)];
  await page.evaluate((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "dropped.qcow2"));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, bytes);
  await opened(page);
  assert.match(await page.textContent("#title"), /dropped/);
  await page.close();
});

test("an address is read by ranges, and what it names is fetched only on request", async () => {
  const page = await fresh();
  await page.fill("#url", `${base}images/top.qcow2`);
  const before = requested.length;
  await page.press("#url", "Enter");
  await opened(page);
  await checked(page);
  assert.deepEqual([...new Set(requested.slice(before))].filter((url) => url.startsWith("/images")), ["/images/top.qcow2"]);
  await page.getByRole("button", { name: "Fetch it from the same server" }).click();
  await until(page, () => document.querySelectorAll("#chain li").length === 2 && !document.querySelector("#chain .missing"));
  await page.close();
});

test("of two images opened at once the second is shown", async () => {
  const page = await fresh();
  await page.evaluate(async () => {
    const drop = (name, bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    };
    const sample = new Uint8Array(await (await fetch("./sample.qcow2")).arrayBuffer());
    drop("first.qcow2", sample);
    drop("second.raw", new TextEncoder().encode("the second of two ".repeat(100)));
  });
  await opened(page);
  await checked(page);
  assert.equal(await page.textContent("#title"), "second.raw");
  assert.match(await page.textContent("#view-data .rows"), /the second of tw/);
  assert.match(await page.textContent("#facts"), /raw/);
  await page.close();
});

test("damage is found and leads to its bytes", async () => {
  const page = await fresh();
  const bytes = readFileSync(join(DIST, "sample.qcow2"));
  const refcounts = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
  bytes.writeUInt16BE(7, refcounts + 20);
  await page.setInputFiles("#files", { name: "damaged.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await opened(page);
  await checked(page);
  assert.match(await page.textContent("#check-summary"), /^1 leaked cluster\.$/);
  await shoot(page, "damaged.png");
  await view(page, "Check");
  await page.locator("#findings button").first().click();
  await until(page, () => document.querySelector("#view-data hex-view input").value === "0xa000");
  await assertAccessible(page);
  await page.close();
});

test("what is no image says so and what to do", async () => {
  const page = await fresh();
  const bytes = Buffer.alloc(200);
  bytes.write("QFI\xfb\0\0\0\x03", "latin1");
  await page.setInputFiles("#files", { name: "broken.qcow2", mimeType: "application/octet-stream", buffer: bytes });
  await page.waitForSelector("#status.failed");
  assert.match(await page.textContent("#status"), /cluster_bits is 0.*expected.*Compare its size/s);
  await shoot(page, "failed.png");
  await assertAccessible(page);
  await page.getByRole("button", { name: "Show its bytes" }).click();
  await opened(page);
  await until(page, () => document.querySelector("#view-data hex-view input").value === "0x14");
  assert.match(await page.textContent("#check-summary"), /no metadata to check/);
  await page.fill("#url", `${base}images/nothing.qcow2`);
  await page.press("#url", "Enter");
  await until(page, () => /answered 404/.test(document.querySelector("#status").textContent));
  assert.match(await page.textContent("#status"), /nothing at this place/);
  await page.fill("#url", `${base}norange.qcow2`);
  await page.press("#url", "Enter");
  await until(page, () => /opened: the server does not answer range requests.*download the file and choose it/s.test(document.querySelector("#status").textContent));
  assert.equal(await page.locator("#status button").count(), 0, "there are no bytes to show");
  await page.setInputFiles("#files", { name: "empty", mimeType: "application/octet-stream", buffer: Buffer.alloc(0) });
  await opened(page);
  await page.close();
});

test("nothing went anywhere else", () => {
  assert.ok(requested.includes("/images/top.qcow2"));
  // The browser itself asks its maker for updates, whatever page is shown.
  assert.deepEqual(outside.filter((url) => !/^(https?:\/\/)?[\w.-]+\.(google|googleapis|gstatic)\.com[:/]/.test(url)), []);
});
