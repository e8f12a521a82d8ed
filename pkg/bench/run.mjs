// Speed of the package on an image: `node bench/run.mjs IMAGE`. Prints milliseconds for opening, map and check, and the rate of
// reads of 1 MiB one after the other, each the median of five.

import { open } from "../src/node.js";

const [image] = process.argv.slice(2);
if (!image) {
  console.error("usage: node bench/run.mjs IMAGE");
  process.exit(1);
}

async function median(work) {
  const times = [];
  for (let round = 0; round < 5; round++) {
    const begun = performance.now();
    await work();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[2];
}

async function fresh(work) {
  const opened = await open(image);
  try {
    return await work(opened);
  } finally {
    await opened.close();
  }
}

const results = {};
await fresh(() => {});
results["open ms"] = await median(() => fresh(() => {}));
results["map ms"] = await median(() => fresh((opened) => opened.map()));
results["check ms"] = await median(() => fresh((opened) => opened.check()));
const into = new Uint8Array(1 << 20);
const reads = 256;
const read = await median(() =>
  fresh(async (opened) => {
    for (let at = 0; at < reads; at++) await opened.readInto(Math.min(at * into.length, opened.size - into.length), into);
  }),
);
results["reads of 1 MiB, MB/s"] = (reads * into.length) / 1e3 / read;
for (const [name, value] of Object.entries(results)) console.log(`${name.padEnd(24)}${value.toFixed(1).padStart(10)}`);
