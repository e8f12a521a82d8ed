// Servers that say nothing for long. The clock is the test's, so nothing here reaches a network.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SourceError, open } from "../src/node.js";
import { pattern } from "./support.mjs";

test("a server may be silent for so long, and take its time as long as something comes", async (context) => {
  const bytes = pattern(200 * 1024);
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  const settled = async (promise) => Promise.race([promise.then(() => "done", (error) => error), turn().then(turn).then(() => "open")]);
  let part;
  const silent = (_, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const steady = async (_, { signal }) => {
    const body = new ReadableStream({
      start(controller) {
        part = (start, end) => (controller.enqueue(new Uint8Array(bytes.subarray(start, end))), end === bytes.length && controller.close());
        signal.addEventListener("abort", () => controller.error(signal.reason));
      },
    });
    return new Response(body, { status: 206, headers: { "Content-Range": `bytes 0-${bytes.length - 1}/${bytes.length}` } });
  };
  const giving = open("http://server/", { fetch: silent });
  await turn();
  context.mock.timers.tick(29_999);
  assert.equal(await settled(giving), "open");
  context.mock.timers.tick(1);
  await assert.rejects(giving, (error) => error instanceof SourceError && error.kind === "io" && /sent nothing for 30 s/.test(error.message));
  const waiting = open("http://server/", { fetch: silent, timeout: 0 });
  await turn();
  context.mock.timers.tick(1e9);
  assert.equal(await settled(waiting), "open");
  const opening = open("http://server/", { fetch: steady, format: "raw" });
  for (let at = 0; at < bytes.length; at += 51_200) {
    await turn();
    context.mock.timers.tick(29_000);
    part(at, at + 51_200);
  }
  const image = await opening;
  assert.equal(image.size, bytes.length);
  await image.close();
  const stuck = open("http://server/", { fetch: steady });
  await turn();
  part(0, 51_200);
  await turn();
  context.mock.timers.tick(30_000);
  await assert.rejects(stuck, /sent nothing for 30 s/);
});
