// Loading a module of WebAssembly.

import { SourceError, textOf } from "./errors.js";

/** A function that runs `start` once; a failed attempt may be repeated. */
export function once(start) {
  let loading;
  return (module) => {
    loading ??= Promise.resolve(module).then(start).catch((cause) => {
      loading = undefined;
      const message = `the WebAssembly of this package could not be loaded: ${textOf(cause)}; load(bytes) takes it from elsewhere`;
      throw new SourceError({ kind: "io", message, operation: "load" }, { cause });
    });
    return loading.then(() => {});
  };
}
