// The images of tests/corpus.json, which read, map and check alike on every host, and what each of them should be.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

import { folder } from "./support.mjs";

export const CORPUS = JSON.parse(readFileSync(new URL("../../tests/corpus.json", import.meta.url), "utf8"));

export function makeCorpus() {
  for (const { make } of CORPUS) for (const [program, ...args] of make) execFileSync(program, args, { cwd: folder });
}

/** What an open image is, in the words of the table. Runs in a browser, too: it uses nothing from outside. */
export async function findings(image, { content, refused }) {
  const { format, virtualSize, clusterSize, encryption, backingFile, properties, snapshots } = image.info();
  const found = { info: { format, "virtual-size": virtualSize } };
  if (clusterSize !== null) found.info["cluster-size"] = clusterSize;
  if (refused) {
    found.info.encrypted = encryption !== null;
    found.refused = await image.read(0, 512).then(() => null, ({ kind }) => kind);
    return found;
  }
  if (backingFile) found.info["backing-filename"] = backingFile.name;
  found.info.properties = properties;
  found.info.snapshots = snapshots.map(({ name }) => name);
  found.map = (await image.map()).map((extent) => [
    extent.start, extent.length, extent.depth, extent.present, extent.zero, extent.data, extent.compressed, extent.offset,
  ]);
  if (format !== "raw") found.check = await image.check();
  found.parts = [];
  for (const [start, length] of content ?? [[0, virtualSize]]) {
    const bytes = await image.read(start, length);
    let streamed = 0;
    for await (const part of image.stream({ offset: start, length })) {
      if (part.some((byte, at) => byte !== bytes[streamed + at])) throw new Error(`the stream differs from ${start + streamed} on`);
      streamed += part.length;
    }
    if (streamed !== length) throw new Error(`the stream ended after ${streamed} bytes`);
    found.parts.push(bytes);
  }
  return found;
}

const COUNTS = {
  checkErrors: "check-errors",
  corruptions: "corruptions",
  leaks: "leaks",
  imageEndOffset: "image-end-offset",
  totalClusters: "total-clusters",
  allocatedClusters: "allocated-clusters",
  fragmentedClusters: "fragmented-clusters",
  compressedClusters: "compressed-clusters",
};

/** Compares findings with the table. */
export function assertFindings(entry, found, how) {
  const place = `${entry.name}, ${how}`;
  assert.deepEqual(found.info, entry.info, place);
  assert.equal(found.refused, entry.refused, place);
  if (entry.refused) return;
  // Hosts without holes in files see them as data.
  if (!entry.holes) assert.deepEqual(found.map, entry.map, place);
  for (const [ours, theirs] of Object.entries(COUNTS)) {
    // qemu-img leaves out counts that are nought.
    if (found.check && entry.check) assert.equal(found.check[ours], entry.check[theirs] ?? 0, `${place}: ${theirs}`);
  }
  const hash = createHash("sha256");
  for (const part of found.parts) hash.update(part);
  assert.equal(hash.digest("hex"), entry.sha256, place);
}
