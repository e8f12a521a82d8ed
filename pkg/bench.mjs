// Times of the package in Node.js: map and check of one image, 1 MiB reads of another. `cargo xtask bench` runs it.

import { open } from "./src/node.js";

const [large, data] = process.argv.slice(2);

async function timed(name, work) {
  const times = [];
  for (let run = 0; run < 5; run++) {
    const begun = performance.now();
    await work();
    times.push(performance.now() - begun);
  }
  times.sort((one, other) => one - other);
  console.log(`${name}: ${(times[2] / 1000).toFixed(3)} s`);
}

await timed("map", async () => {
  const image = await open(large);
  await image.map();
  await image.close();
});
await timed("check", async () => {
  const image = await open(large);
  await image.check();
  await image.close();
});
const image = await open(data);
const into = new Uint8Array(1 << 20);
await timed("1 GiB in reads of 1 MiB", async () => {
  for (let at = 0; at < 1 << 30; at += 1 << 20) await image.readInto(at, into);
});
await image.close();
