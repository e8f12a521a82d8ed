// What `npm publish` would send works where it is installed, and is all there.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { folder, path } from "./support.mjs";

const PACKAGE = fileURLToPath(new URL("../", import.meta.url));

let files;
let tarball;

before(() => {
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: PACKAGE, stdio: ["ignore", "pipe", "ignore"] }));
  files = packed.files.map(({ path }) => path).sort();
  mkdirSync(path("user"));
  writeFileSync(path("user/package.json"), '{ "type": "module" }');
  execFileSync("npm", ["install", "--offline", "--no-audit", "--no-fund", "--silent", path(packed.filename)], { cwd: path("user") });
  tarball = path(packed.filename);
});

test("the package has its code, its licences and nothing else", () => {
  const entries = ["cjs/core.cjs", ...["disk", "full", "index", "worker"].flatMap((name) => [`cjs/${name}.cjs`, `cjs/${name}.d.cts`])];
  const modules = ["diskette", "full"].flatMap((name) => [".d.ts", ".js", "_bg.wasm", "_bg.wasm.d.ts"].map((end) => `dist/${name}${end}`));
  const sources = readdirSync(`${PACKAGE}src`).map((name) => `src/${name}`);
  assert.deepEqual(files, ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "package.json", ...entries, ...modules, ...sources].sort());
  const scripts = Object.keys(JSON.parse(readFileSync(`${PACKAGE}package.json`, "utf8")).scripts);
  assert.deepEqual(scripts.filter((name) => /install/.test(name)), [], "nothing runs when it is installed");
  for (const name of ["LICENSE-APACHE", "LICENSE-MIT"]) {
    assert.deepEqual(readFileSync(`${PACKAGE}${name}`), readFileSync(`${PACKAGE}../${name}`), `${name} is that of the whole project`);
  }
  assert.ok(statSync(`${PACKAGE}dist/diskette_bg.wasm`).size < 400 << 10);
  assert.ok(statSync(`${PACKAGE}dist/full_bg.wasm`).size < 1000 << 10);
});

test("an installed package opens an image", () => {
  writeFileSync(path("user/main.mjs"), 'import { open } from "diskette"; const image = await open(new Uint8Array(512)); console.log(image.info().format, image.size);');
  assert.equal(execFileSync("node", [path("user/main.mjs")], { encoding: "utf8" }), "raw 512\n");
});

test("every entry is there for import and for require()", () => {
  const use = `
    const image = await create(new Memory(), { size: 1 << 20 });
    const disk = new ImageDisk(image);
    await disk.write(Buffer.from("x"), 0, 1, 5);
    console.log(image.info().format, Buffer.from(await image.read(5, 1)).toString(), (await open(new Uint8Array(512))).size, typeof Pool);`;
  const names = { diskette: "open", "diskette/core": "load as loadCore", "diskette/node": "load as loadNode", "diskette/full": "create, Memory", "diskette/disk": "ImageDisk", "diskette/worker": "Pool" };
  const lines = (form) => Object.entries(names).map(form).join("\n");
  writeFileSync(path("user/all.mjs"), lines(([entry, name]) => `import { ${name} } from "${entry}";`) + use);
  writeFileSync(path("user/all.cjs"), lines(([entry, name]) => `const { ${name.replace(" as", ":")} } = require("${entry}");`) + `(async () => {${use}})();`);
  for (const file of ["all.mjs", "all.cjs"]) {
    const { stdout, stderr } = spawnSync("node", [path(`user/${file}`)], { encoding: "utf8" });
    assert.deepEqual([stdout, stderr], ["qcow2 x 512 function\n", ""], file);
  }
});

test("the core runs where there are no files, with its WebAssembly from wherever that is", () => {
  writeFileSync(path("user/core.mjs"), `
    import { readFileSync } from "node:fs";
    import { load, open } from "diskette/core";
    const failed = await open(new Uint8Array(512)).catch((error) => error);
    console.log(failed.name, failed.code, /load\\(bytes\\)/.test(failed.message));
    await load(readFileSync(new URL(import.meta.resolve("diskette/diskette.wasm"))));
    console.log((await open(new Uint8Array(512))).size, (await open("disk.raw").catch((error) => error)).message);
    console.log(WebAssembly.Module.exports(new WebAssembly.Module(readFileSync(new URL(import.meta.resolve("diskette/full.wasm"))))).length > 0);`);
  const { stdout, stderr } = spawnSync("node", [path("user/core.mjs")], { encoding: "utf8" });
  const lines = ["SourceError DISKETTE_IO true", "512 'disk.raw' is not an http(s) address: here Files, handles and addresses are opened, not paths", "true"];
  assert.deepEqual([stdout.trimEnd().split("\n"), stderr], [lines, ""]);
});

test("publint and attw find nothing", () => {
  for (const [program, args] of [["publint/src/cli.js", [tarball, "--strict"]], ["@arethetypeswrong/cli/dist/index.js", [tarball, "--exclude-entrypoints", "diskette.wasm", "full.wasm"]]]) {
    const { status, stdout } = spawnSync("node", [`${PACKAGE}node_modules/${program}`, ...args], { encoding: "utf8" });
    assert.equal(status, 0, `${program}: ${stdout}`);
  }
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
