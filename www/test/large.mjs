// An image of 1 TiB with 500,000 clusters in it, spread over all of its tables: as much metadata as a large disk has.

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";

const CLUSTER = 65536;
const TABLES = 2048;
const PER_TABLE = 8192;
export const CLUSTERS = 500_000;

/** Makes the image; the clusters themselves are holes. */
export function makeLarge(name) {
  const file = openSync(name, "w");
  const at = (cluster) => cluster * CLUSTER;
  const total = 1 + 1 + 1 + TABLES + CLUSTERS;
  const blocks = Math.ceil((total + 32) / 32768);
  // Header, L1 table, refcount table, refcount blocks, L2 tables, data.
  const [l1, refcounts, firstBlock] = [1, 2, 3];
  const firstTable = firstBlock + blocks;
  const firstData = firstTable + TABLES;
  const end = firstData + CLUSTERS;
  const header = Buffer.alloc(104);
  header.write("QFI\xfb", "latin1");
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(16, 20);
  header.writeBigUInt64BE(1n << 40n, 24);
  header.writeUInt32BE(TABLES, 36);
  header.writeBigUInt64BE(BigInt(at(l1)), 40);
  header.writeBigUInt64BE(BigInt(at(refcounts)), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(104, 100);
  writeSync(file, header, 0, header.length, 0);
  const table = Buffer.alloc(CLUSTER);
  for (let index = 0; index < blocks; index++) table.writeBigUInt64BE(BigInt(at(firstBlock + index)), index * 8);
  writeSync(file, table, 0, CLUSTER, at(refcounts));
  for (let index = 0; index < blocks; index++) {
    const counts = Buffer.alloc(CLUSTER);
    for (let entry = 0; entry < 32768 && index * 32768 + entry < end; entry++) counts.writeUInt16BE(1, entry * 2);
    writeSync(file, counts, 0, CLUSTER, at(firstBlock + index));
  }
  const active = Buffer.alloc(TABLES * 8);
  let data = 0;
  for (let index = 0; index < TABLES; index++) {
    active.writeBigUInt64BE((1n << 63n) | BigInt(at(firstTable + index)), index * 8);
    table.fill(0);
    const wanted = Math.floor(((index + 1) * CLUSTERS) / TABLES) - data;
    for (let entry = 0; entry < wanted; entry++) {
      const slot = Math.floor((entry * PER_TABLE) / wanted);
      table.writeBigUInt64BE((1n << 63n) | BigInt(at(firstData + data)), slot * 8);
      data++;
    }
    writeSync(file, table, 0, CLUSTER, at(firstTable + index));
  }
  writeSync(file, active, 0, active.length, at(l1));
  ftruncateSync(file, at(end));
  closeSync(file);
}
