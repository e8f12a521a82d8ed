// The recipes of the README run where the package is installed, and are strict TypeScript. RECIPES_WITH names another program
// to run them, such as "deno run -A" or "bun".

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { folder, path, pattern, qemuImg, qemuIo, serve } from "./support.mjs";

const PACKAGE = fileURLToPath(new URL("../", import.meta.url));
const [program, ...programArgs] = (process.env.RECIPES_WITH ?? "node").split(" ");
const recipes = [...readFileSync(`${PACKAGE}README.md`, "utf8").matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code);

before(() => {
  const [{ filename }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: PACKAGE, stdio: ["ignore", "pipe", "ignore"] }));
  writeFileSync(path("package.json"), '{ "type": "module" }');
  execFileSync("npm", ["install", "--offline", "--no-audit", "--no-fund", "--silent", path(filename)], { cwd: folder });
  writeFileSync(path("source.raw"), pattern(3_000_320));
  for (const name of ["disk", "changed", "leaky", "damaged"]) qemuImg("convert", "-O", "qcow2", path("source.raw"), path(`${name}.qcow2`));
  qemuImg("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", path("overlay.qcow2"));
  qemuImg("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", path("tracked.qcow2"));
  qemuImg("bitmap", "--add", path("tracked.qcow2"), "changes");
  qemuIo("tracked.qcow2", "write 0 64k");
  const bytes = readFileSync(path("leaky.qcow2"));
  const cluster = Math.ceil(bytes.length / 65536);
  const leaky = Buffer.concat([bytes], (cluster + 1) * 65536);
  leaky.writeUInt16BE(1, Number(leaky.readBigUInt64BE(Number(leaky.readBigUInt64BE(48)))) + 2 * cluster);
  writeFileSync(path("leaky.qcow2"), leaky);
  bytes.fill(0xff, 65536, 65544);
  writeFileSync(path("damaged.qcow2"), bytes);
});

test("there are eleven", () => assert.equal(recipes.length, 11));

for (const [index, code] of recipes.entries()) {
  test(`recipe ${index + 1} runs`, async (context) => {
    const { url } = await serve(context, "disk.qcow2");
    writeFileSync(path(`recipe${index}.mjs`), code.replace("https://example.org/disk.qcow2", url));
    const { stdout, stderr } = await promisify(execFile)(program, [...programArgs, path(`recipe${index}.mjs`)], { cwd: folder });
    assert.equal(stderr, "");
    const expected = [/qcow2 3000320 65536 0\ndata 0 /, /512/, /(.)overlay.qcow2\1, \1disk.qcow2\1 \]\nDISKETTE_DENIED/, /do not use it|^\d+ [1-9]/, /0 1/, /^$/, /before/, /Uint8Array\(512\)[^]*\n1\n$/, /100 %/, /\d+/, /0/][index];
    assert.match(stdout, expected);
  });
}

test("what the recipes leave behind is whole", () => {
  for (const name of ["new", "small", "leaky", "changed"]) execFileSync("qemu-img", ["check", "-q", path(`${name}.qcow2`)]);
  qemuImg("compare", "-q", path("small.qcow2"), path("disk.qcow2"));
  qemuImg("compare", "-q", path("disk.raw"), path("disk.qcow2"));
  assert.match(qemuImg("info", "-U", path("tracked.qcow2")), /^backing file: moved.qcow2/m);
});

for (const [module, resolution] of [["nodenext", "nodenext"], ["esnext", "bundler"]]) {
  test(`the recipes are strict (${resolution})`, () => {
    mkdirSync(path("strict"), { recursive: true });
    const files = recipes.map((code, index) => {
      writeFileSync(path(`strict/recipe${index}.ts`), `${code}export {};\n`);
      return `recipe${index}.ts`;
    });
    // As a user of Node.js has it, whose types are beside those of browsers.
    const types = path("strict/node_modules/@types");
    if (!existsSync(types)) {
      mkdirSync(types, { recursive: true });
      symlinkSync(`${PACKAGE}node_modules/@types/node`, `${types}/node`);
    }
    const compilerOptions = {
      strict: true, exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, noEmit: true, skipLibCheck: true, types: ["node"],
      target: "es2022", lib: ["es2022", "dom", "dom.iterable", "dom.asynciterable"], module, moduleResolution: resolution,
    };
    writeFileSync(path("strict/tsconfig.json"), JSON.stringify({ compilerOptions, files }));
    execFileSync("node", [`${PACKAGE}node_modules/typescript/bin/tsc`, "-p", path("strict")], { encoding: "utf8", stdio: ["ignore", "inherit", "inherit"] });
  });
}
