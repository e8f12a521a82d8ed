import { type Plugin, defineConfig } from "vite";

/**
 * Makes `sw.js`, which keeps the page for use without a network. What it keeps is listed when the page is built, under a
 * name that changes with the contents, so that a new page never meets parts of an old one.
 */
function serviceWorker(): Plugin {
  return {
    name: "service-worker",
    apply: "build",
    async generateBundle(_, bundle) {
      const assets = Object.keys(bundle).sort();
      const { createHash } = await import("node:crypto");
      const hash = createHash("sha256");
      for (const name of assets) {
        const part = bundle[name];
        hash.update(name).update(part?.type === "chunk" ? part.code : (part?.source ?? ""));
      }
      const kept = ["./", ...assets.filter((name) => name !== "index.html").map((name) => `./${name}`), "./icon.svg", "./manifest.webmanifest", "./sample.qcow2"];
      const source = `const CACHE = "diskette-${hash.digest("hex").slice(0, 16)}";
const KEPT = ${JSON.stringify(kept)};
self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(KEPT)));
});
self.addEventListener("activate", (event) => {
  const old = (names) => names.filter((name) => name.startsWith("diskette-") && name !== CACHE);
  event.waitUntil(caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name)))));
});
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const address = new URL(request.url);
  address.hash = address.search = "";
  const own = KEPT.some((name) => new URL(name, self.registration.scope).href === address.href);
  // Images, and everything from elsewhere, go past.
  if (request.method !== "GET" || request.headers.has("range") || !own) return;
  event.respondWith(caches.open(CACHE).then((cache) => cache.match(address.href)).then((kept) => kept ?? fetch(request)));
});
`;
      this.emitFile({ type: "asset", fileName: "sw.js", source });
    },
  };
}

export default defineConfig({
  base: "./",
  build: { assetsInlineLimit: 0, target: "es2022", modulePreload: false },
  worker: { format: "es" },
  plugins: [serviceWorker()],
  server: { fs: { allow: [".."] } },
});
