// What `npm publish` would send works where it is installed, and is all there.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { folder, path } from "./support.mjs";

const PACKAGE = fileURLToPath(new URL("../", import.meta.url));

let files;

before(() => {
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: PACKAGE, stdio: ["ignore", "pipe", "ignore"] }));
  files = packed.files.map(({ path }) => path).sort();
  mkdirSync(path("user/node_modules/diskette"), { recursive: true });
  execFileSync("tar", ["xzf", path(packed.filename), "--strip-components=1", "-C", path("user/node_modules/diskette")]);
  writeFileSync(path("user/package.json"), '{ "type": "module" }');
});

test("the package has its code, its licences and nothing else", () => {
  const sources = ["cache.js", "errors.js", "http.js", "image.js", "index.d.ts", "node.js", "pump.js", "sources.js", "web.js"];
  assert.deepEqual(files, [
    "LICENSE-APACHE", "LICENSE-MIT", "README.md", "dist/diskette.d.ts", "dist/diskette.js", "dist/diskette_bg.wasm", "package.json",
    ...sources.map((name) => `src/${name}`),
  ]);
  for (const name of ["LICENSE-APACHE", "LICENSE-MIT"]) {
    assert.deepEqual(readFileSync(`${PACKAGE}${name}`), readFileSync(`${PACKAGE}../${name}`), `${name} is that of the whole project`);
  }
  assert.ok(statSync(`${PACKAGE}dist/diskette_bg.wasm`).size < 400 << 10);
});

test("an installed package opens an image", () => {
  writeFileSync(path("user/main.mjs"), 'import { open } from "diskette"; const image = await open(new Uint8Array(512)); console.log(image.info().format, image.size);');
  assert.equal(execFileSync("node", [path("user/main.mjs")], { encoding: "utf8" }), "raw 512\n");
});

for (const [module, resolution] of [["nodenext", "nodenext"], ["esnext", "bundler"]]) {
  test(`its declarations are strict where it is installed (${resolution})`, () => {
    copyFileSync(new URL("types.ts", import.meta.url), path("user/types.ts"));
    const compilerOptions = {
      strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, noEmit: true, skipLibCheck: false, types: [],
      target: "es2022", lib: ["es2022", "dom", "dom.iterable", "dom.asynciterable"], module, moduleResolution: resolution,
    };
    writeFileSync(path("user/tsconfig.json"), JSON.stringify({ compilerOptions, files: ["types.ts"] }));
    execFileSync("node", [`${PACKAGE}node_modules/typescript/bin/tsc`, "-p", path("user")], { encoding: "utf8", stdio: ["ignore", "inherit", "inherit"] });
  });
}
