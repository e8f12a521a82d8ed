// An http(s) address, read by ranges.

import { BLOCK_BYTES, cached } from "./cache.js";
import { SourceError, UnsupportedError } from "./errors.js";

/** Opens an address whose server answers range requests. */
export async function fromUrl(url, { fetch = globalThis.fetch, signal, headers = {} } = {}) {
  const name = String(url);
  const life = new AbortController();
  const problem = (Kind, kind, message, offset = null, cause) => new Kind({ kind, message, path: name, offset }, { cause });

  async function request(offset, length, signal) {
    let response;
    try {
      response = await fetch(name, { headers: { ...headers, Range: `bytes=${offset}-${offset + length - 1}` }, signal });
    } catch (cause) {
      if (cause?.name === "AbortError") throw cause;
      const reason = cause?.cause?.message ?? cause?.message ?? String(cause);
      const hint = "the server may be out of reach, or may not allow this page to read it (CORS)";
      throw problem(SourceError, "io", `could not be fetched (${reason}); ${hint}`, offset, cause);
    }
    if (response.status === 206 || (offset === 0 && response.status === 416)) return response;
    await response.body?.cancel();
    if (response.status === 200) {
      const message = "the server does not answer range requests, so only a whole download would do: download the file and open it from disk";
      throw problem(UnsupportedError, "unsupported", message);
    }
    const kind = { 401: "permission-denied", 403: "permission-denied", 404: "not-found", 410: "not-found" }[response.status] ?? "io";
    throw problem(SourceError, kind, `the server answered ${response.status} ${response.statusText}`.trimEnd(), offset);
  }

  async function body(response, offset) {
    try {
      return new Uint8Array(await response.arrayBuffer());
    } catch (cause) {
      if (cause?.name === "AbortError") throw cause;
      throw problem(SourceError, "io", `the transfer broke off (${cause?.message ?? cause})`, offset, cause);
    }
  }

  /** Which version of the file an answer is about, as far as the server tells. */
  const version = (response) => response.headers.get("etag") ?? response.headers.get("last-modified");

  /** The whole size, from `Content-Range` or, where CORS hides that, from a HEAD request. */
  async function wholeSize(response) {
    const range = response.headers.get("content-range");
    let total = /\/(\d+)$/.exec(range ?? "")?.[1];
    if (range === null) {
      const answer = await fetch(name, { method: "HEAD", headers, signal }).catch(() => null);
      total = answer?.ok ? answer.headers.get("content-length") : null;
    }
    const size = Number(total ?? NaN);
    if (Number.isSafeInteger(size)) return size;
    throw problem(UnsupportedError, "unsupported", "the server does not tell the size of the file (Content-Range)");
  }

  const first = await request(0, BLOCK_BYTES, signal);
  const size = await wholeSize(first);
  const head = first.status === 416 ? (await first.body?.cancel(), new Uint8Array()) : await body(first, 0);
  const opened = version(first);

  async function read(offset, length) {
    const response = await request(offset, length, life.signal);
    const now = version(response);
    if (opened !== null && now !== null && now !== opened) {
      await response.body?.cancel();
      throw problem(SourceError, "io", "the file changed on the server while it was read; open it again", offset);
    }
    return body(response, offset);
  }
  return cached({ name, located: true, size, read, close: () => life.abort() }, head);
}
