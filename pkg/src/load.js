// Loading a module of WebAssembly.

/** A function that runs `start` once; a failed attempt may be repeated. */
export function once(start) {
  let loading;
  return (module) => {
    loading ??= start(module).catch((error) => {
      loading = undefined;
      throw error;
    });
    return loading.then(() => {});
  };
}
