// An http(s) address, read by ranges.

import { abortable } from "./abortable.js";
import { BLOCK_BYTES, cached } from "./cache.js";
import { SourceError, UnsupportedError, checkedNumber } from "./errors.js";

/** How long a server may be silent where nothing else was said. */
const SILENCE_MILLISECONDS = 30_000;
/** Timers that are to take longer go off at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Opens an address whose server answers range requests; each has `timeout` milliseconds from its first to its last byte. */
export async function fromUrl(url, { fetch = globalThis.fetch, signal, headers = {}, timeout } = {}) {
  const name = String(url);
  const life = new AbortController();
  const problem = (Kind, kind, message, offset = null, cause) => new Kind({ kind, message, path: name, offset, operation: "fetch" }, { cause });

  const patience = timeout === undefined ? undefined : checkedNumber(timeout, "timeout");
  /**
   * Runs a request from its first to its last byte. `signal` ends it with its own reason, a lack of patience with ours;
   * `work` calls `alive` when something came.
   */
  async function timed(offset, signal, work) {
    const late = new AbortController();
    const [milliseconds, message] =
      patience === undefined
        ? [SILENCE_MILLISECONDS, `the server sent nothing for ${SILENCE_MILLISECONDS / 1000} s`]
        : [patience, `the server took more than ${patience} ms for an answer`];
    let timer;
    let isOver = false;
    const alive = () => {
      clearTimeout(timer);
      if (isOver) return;
      if (milliseconds > 0 && milliseconds <= LONGEST_TIMER) timer = setTimeout(() => late.abort(), milliseconds);
    };
    alive();
    try {
      const either = signal ? AbortSignal.any([signal, late.signal]) : late.signal;
      // A fetch of the caller's may not look at its signal.
      return await abortable(work(either, patience === undefined ? alive : () => {}), either);
    } catch (cause) {
      if (!late.signal.aborted || signal?.aborted) throw cause;
      throw problem(SourceError, "io", message, offset, cause);
    } finally {
      isOver = true;
      clearTimeout(timer);
    }
  }

  /** Asks for bytes; the answer is about them. Of an empty file there are none (416). */
  async function request(offset, length, signal, mayBeEmpty = false) {
    let response;
    try {
      // What the browser kept of an earlier answer must not be mixed with this one, nor its version be taken for this one's.
      response = await fetch(name, { cache: "no-store", headers: { ...headers, Range: `bytes=${offset}-${offset + length - 1}` }, signal });
    } catch (cause) {
      signal?.throwIfAborted();
      const reason = cause?.cause?.message ?? cause?.message ?? String(cause);
      const hint = "the server may be out of reach, or may not allow this page to read it (CORS)";
      throw problem(SourceError, "io", `could not be fetched (${reason}); ${hint}`, offset, cause);
    }
    if (response.status === 416 && mayBeEmpty) return response;
    if (response.status === 206) {
      const { start, range } = contentRange(response);
      // Pages are not shown it by other origins' servers unless those allow that.
      if (start === offset || (range === null && response.type !== "basic")) return response;
      await response.body?.cancel();
      if (range === null) throw problem(SourceError, "io", "the server does not say which bytes it sent (it answered 206 without Content-Range)", offset);
      throw problem(SourceError, "io", `the server sent other bytes than those asked for (Content-Range: ${range})`, offset);
    }
    await response.body?.cancel();
    if (response.status === 200) {
      const message = "the server does not answer range requests, so only a whole download would do: download the file and open it from disk";
      throw problem(UnsupportedError, "unsupported", message);
    }
    const kind = { 401: "permission-denied", 403: "permission-denied", 404: "not-found", 410: "not-found" }[response.status] ?? "io";
    throw problem(SourceError, kind, `the server answered ${response.status} ${response.statusText}`.trimEnd(), offset);
  }

  /** The bytes of an answer, and no more of them than were asked for. */
  async function body(response, offset, length, signal, alive) {
    alive();
    const bytes = new Uint8Array(length);
    let filled = 0;
    try {
      for await (const part of chunks(response.body)) {
        alive();
        if (part.length > length - filled) {
          throw problem(SourceError, "io", `the server sent more than the ${length} bytes asked for`, offset);
        }
        bytes.set(part, filled);
        filled += part.length;
      }
    } catch (cause) {
      signal?.throwIfAborted();
      if (cause instanceof SourceError) throw cause;
      throw problem(SourceError, "io", `the transfer broke off (${cause?.message ?? cause})`, offset, cause);
    }
    return bytes.subarray(0, filled);
  }

  /** Which version of the file an answer is about, as far as the server tells. */
  const version = (response) => response.headers.get("etag") ?? response.headers.get("last-modified");

  /** The whole size, from `Content-Range` or, where CORS hides that, from a HEAD request. */
  async function wholeSize(response, signal) {
    let { total, range } = contentRange(response);
    if (range === null) {
      const answer = await fetch(name, { method: "HEAD", cache: "no-store", headers, signal }).catch(() => null);
      signal?.throwIfAborted();
      total = answer?.ok ? answer.headers.get("content-length") : null;
    }
    if (/^\d+$/.test(total)) return checkedNumber(BigInt(total), `the size of '${name}'`);
    throw problem(UnsupportedError, "unsupported", "the server does not tell the size of the file (Content-Range)");
  }

  const { size, head, opened } = await timed(0, signal, async (signal, alive) => {
    const first = await request(0, BLOCK_BYTES, signal, true);
    alive();
    const size = await wholeSize(first, signal);
    const head = first.status === 416 ? (await first.body?.cancel(), new Uint8Array()) : await body(first, 0, BLOCK_BYTES, signal, alive);
    return { size, head, opened: version(first) };
  });

  const read = (offset, length) => timed(offset, life.signal, async (signal, alive) => {
    const response = await request(offset, length, signal);
    const now = version(response);
    const { total } = contentRange(response);
    if ((opened !== null && now !== null && now !== opened) || (total && total !== "*" && Number(total) !== size)) {
      await response.body?.cancel();
      throw problem(SourceError, "io", "the file changed on the server while it was read; open it again", offset);
    }
    return body(response, offset, length, signal, alive);
  });
  return cached({ name, located: true, size, read, close: () => life.abort() }, head);
}

/** What an answer says it is about: `bytes START-END/TOTAL`, as far as CORS lets it be seen. */
function contentRange(response) {
  const range = response.headers.get("content-range");
  const [, start, total] = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/i.exec(range ?? "") ?? [];
  return { range, start: start === undefined ? undefined : Number(start), total };
}

/** The parts of a stream as they come. Not every browser iterates over streams; one that is left early is cancelled. */
async function* chunks(stream) {
  if (!stream) return;
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}
