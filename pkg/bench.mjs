// Seconds of the package in Node.js, one a line: a map and a check of one image, 1 GiB of another in reads of 1 MiB.
// `cargo xtask bench` runs it and sets the native program beside it.

import { open } from "./src/node.js";

const [large, data] = process.argv.slice(2);

async function timed(work) {
  const begun = performance.now();
  await work();
  console.log(((performance.now() - begun) / 1000).toFixed(4));
}

for (const verb of ["map", "check"]) {
  await timed(async () => {
    const image = await open(large);
    await image[verb]();
    await image.close();
  });
}
const image = await open(data);
const into = new Uint8Array(1 << 20);
await timed(async () => {
  for (let at = 0; at < 1 << 30; at += 1 << 20) await image.readInto(at, into);
});
await image.close();
