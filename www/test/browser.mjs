// What the browser tests share.

import { createReadStream, statSync } from "node:fs";
import { extname } from "node:path";

export const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".svg": "image/svg+xml", ".webmanifest": "application/manifest+json" };
export const ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Answers with a file: the range that is asked for, or all of it. */
export function sendFile(request, response, file) {
  const { size } = statSync(file, { throwIfNoEntry: false }) ?? {};
  if (size === undefined) return response.writeHead(404).end();
  const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
  const [start, end] = range ? [Number(range[1]), Math.min(Number(range[2]), size - 1)] : [0, size - 1];
  const headers = { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Length": end - start + 1 };
  if (range) headers["Content-Range"] = `bytes ${start}-${end}/${size}`;
  response.writeHead(range ? 206 : 200, headers);
  return createReadStream(file, { start, end }).pipe(response);
}
