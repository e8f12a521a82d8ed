// Images that are made from one source and have to read, map and check alike in Node.js and in a browser.

import { writeFileSync } from "node:fs";

import { path, pattern, qemuImg } from "./support.mjs";

const IMAGES = {
  "plain.qcow2": ["-O", "qcow2"],
  "small-clusters.qcow2": ["-O", "qcow2", "-o", "cluster_size=512"],
  "large-clusters.qcow2": ["-O", "qcow2", "-o", "cluster_size=2M"],
  "zlib.qcow2": ["-c", "-O", "qcow2"],
  "zstd.qcow2": ["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
  "extended.qcow2": ["-O", "qcow2", "-o", "extended_l2=on"],
  "narrow-refcounts.qcow2": ["-O", "qcow2", "-o", "refcount_bits=1"],
  "wide-refcounts.qcow2": ["-O", "qcow2", "-o", "refcount_bits=64"],
  "preallocated.qcow2": ["-O", "qcow2", "-o", "preallocation=full"],
  "v2.qcow2": ["-O", "qcow2", "-o", "compat=0.10"],
};

export const CORPUS = { names: Object.keys(IMAGES), source: pattern(3_000_320) };

export function makeCorpus() {
  writeFileSync(path("source.raw"), CORPUS.source);
  for (const [name, options] of Object.entries(IMAGES)) qemuImg("convert", ...options, path("source.raw"), path(name));
}
