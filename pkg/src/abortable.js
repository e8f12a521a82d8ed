// Waiting for what may never be done, until a signal says that it is not wanted any more.

/** A promise, or the reason of the signal if that comes first; `late` gets what the promise comes to then. */
export function abortable(promise, signal, late = () => {}) {
  if (!signal) return promise;
  let stopped = signal.aborted;
  // It runs already; when it fails after the signal came, nobody waits for that any more.
  promise.then((value) => stopped && late(value)).catch(() => {});
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const abort = () => {
      stopped = true;
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Waits for what ends after a signal came, but not for ever. */
export async function forAWhile(promise, milliseconds) {
  let timer;
  const enough = new Promise((resolve) => (timer = setTimeout(resolve, milliseconds)));
  await Promise.race([promise, enough]);
  clearTimeout(timer);
}
