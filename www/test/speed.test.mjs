// What a large image costs in the page: time to the first picture, tasks that keep the page from answering, memory.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { CLUSTERS, makeLarge } from "./large.mjs";
import { assertAccessible, checked, context, fresh, opened, path, setUp, shoot, until, view } from "./support.mjs";

setUp(() => {
  makeLarge(path("huge.qcow2"));
  const { "allocated-clusters": allocated, leaks = 0, corruptions = 0 } = JSON.parse(execFileSync("qemu-img", ["check", "--output=json", path("huge.qcow2")]));
  assert.deepEqual([allocated, leaks, corruptions], [CLUSTERS, 0, 0]);
});

/** Bytes that the process of a page holds for itself. */
async function memoryOf(page) {
  const session = await context.browser()?.newBrowserCDPSession?.() ?? (await context.newCDPSession(page));
  const { processInfo } = await session.send("SystemInfo.getProcessInfo").catch(() => ({ processInfo: [] }));
  const sizes = processInfo
    .filter(({ type }) => type === "renderer")
    .map(({ id }) => Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${id}/status`, "latin1"))?.[1] ?? 0) * 1024);
  return Math.max(0, ...sizes);
}

/** Traces a page until what is returned is called, which gives its tasks' time on the processor in milliseconds, longest first. */
async function traced(page) {
  const session = await context.newCDPSession(page);
  const events = [];
  session.on("Tracing.dataCollected", ({ value }) => events.push(...value));
  const categories = ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline", "__metadata"];
  await session.send("Tracing.start", { transferMode: "ReportEvents", traceConfig: { includedCategories: categories, excludedCategories: ["*"] } });
  return async () => {
    const complete = new Promise((resolve) => session.once("Tracing.tracingComplete", resolve));
    await session.send("Tracing.end");
    await complete;
    const main = new Set(events.filter(({ name, args }) => name === "thread_name" && args.name === "CrRendererMain").map(({ pid, tid }) => `${pid}/${tid}`));
    const tasks = events.filter(({ name, tdur, pid, tid }) => name === "RunTask" && tdur !== undefined && main.has(`${pid}/${tid}`));
    assert.ok(tasks.length > 100, `the trace has ${tasks.length} tasks`);
    return tasks.map(({ tdur }) => Math.round(tdur / 1000)).sort((one, two) => two - one);
  };
}

test("1 TiB with 500,000 clusters: the first picture, long tasks, memory", async () => {
  const runs = [];
  for (let round = 0; round < 3; round++) {
    const page = await fresh();
    await page.goto(page.url().replace(/#.*|$/, "#view=map"));
    await page.reload();
    const before = await memoryOf(page);
    const tasks = await traced(page);
    const begun = performance.now();
    await page.setInputFiles("#files", path("huge.qcow2"));
    // Something of the map is drawn: a cell that is not the colour of what is unknown.
    await until(page, () => /data [1-9]/.test(document.querySelector("#view-map .legend").textContent));
    const first = Math.round(performance.now() - begun);
    await until(page, () => /500,000|1,000,000|extents/.test(document.querySelector("#map-facts").textContent));
    const whole = Math.round(performance.now() - begun);
    await checked(page);
    for (let times = 0; times < 6; times++) {
      await page.focus("#view-map .grid");
      await page.keyboard.press("+");
      // It is drawn to the last cell, which is transparent as long as nothing is known of it.
      await until(page, () => {
        const { width, height } = document.querySelector("#disk-map .grid");
        return document.querySelector("#disk-map .grid").getContext("2d").getImageData(width - 6, height - 6, 1, 1).data[3] === 255;
      });
    }
    await view(page, "Data");
    await view(page, "Check");
    assert.match(await page.textContent("#check-summary"), /No errors\. 500,000 clusters are allocated of 16,777,216/);
    const memory = Math.round(((await memoryOf(page)) - before) / 1048576);
    const long = (await tasks()).slice(0, 5);
    runs.push({ first, whole, memory, long });
    if (round === 0) {
      await view(page, "Map");
      await shoot(page, "huge.png");
      await assertAccessible(page);
    }
    await page.close();
  }
  console.log(`# ${JSON.stringify(runs)}`);
  // The aim is 1 s. A machine that is busy with something else takes up to twice as long, so only more than that, in the best
  // of three, is a fault of the page. Tasks are measured by what they take of the processor.
  assert.ok(Math.min(...runs.map(({ first }) => first)) < 2000, "the first picture");
  assert.ok(Math.min(...runs.map(({ memory }) => memory)) < 200, "memory in MiB");
  assert.ok(Math.min(...runs.map(({ long }) => long[0])) <= 50, "milliseconds of the processor in one task");
});
