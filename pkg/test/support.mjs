// What the tests share: a folder, QEMU's tools, bytes to recognise, a server.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";

const folder = mkdtempSync(join(tmpdir(), "diskette-"));
after(() => rmSync(folder, { recursive: true, force: true }));

export { folder };
export const path = (name) => join(folder, name);
export const qemuImg = (...args) => execFileSync("qemu-img", args, { encoding: "utf8", maxBuffer: 1 << 28 });
export const qemuIo = (name, ...commands) => execFileSync("qemu-io", [...commands.flatMap((command) => ["-c", command]), path(name)]);

/** Bytes that differ from place to place, with holes. */
export function pattern(length) {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = at % 600_000 < 300_000 ? (at * 7 + (at >> 9)) & 0xff : 0;
  return bytes;
}

/** A source in memory that answers late, and keeps count. */
export function slowSource(bytes, { delay = 1, ...more } = {}) {
  const source = {
    name: "slow",
    size: bytes.length,
    reads: [],
    flying: 0,
    most: 0,
    async read(offset, length) {
      source.reads.push([offset, length]);
      source.most = Math.max(source.most, ++source.flying);
      await new Promise((resolve) => setTimeout(resolve, delay));
      source.flying--;
      return bytes.slice(offset, offset + length);
    },
    ...more,
  };
  return source;
}

/** Serves a file of the folder by ranges; `change` may alter an answer before it is sent. */
export async function serve(context, name, change = () => {}) {
  const requests = [];
  const server = createServer((request, response) => {
    requests.push(`${request.method} ${request.headers.range ?? ""}`.trim());
    const bytes = readFileSync(path(name));
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [start, end] = range ? [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)] : [0, bytes.length - 1];
    const headers = { "Content-Length": end - start + 1, ETag: '"1"' };
    const answer = { status: range ? 206 : 200, headers, body: bytes.subarray(start, end + 1) };
    if (range) headers["Content-Range"] = `bytes ${start}-${end}/${bytes.length}`;
    if (range && start >= bytes.length) Object.assign(answer, { status: 416, headers: { "Content-Range": `bytes */${bytes.length}` }, body: "" });
    change(answer, request, requests);
    response.writeHead(answer.status, answer.headers);
    response.end(request.method === "HEAD" ? undefined : answer.body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => (server.closeAllConnections(), server.close()));
  return { url: `http://127.0.0.1:${server.address().port}/${name}`, requests };
}
