// Writes cjs/: entries for require() and their declarations. Node.js loads the modules themselves, so both kinds of user share
// one copy of everything.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const ENTRIES = { index: "node", core: "web", full: "full-node", disk: "disk", worker: "worker" };
/** Entries that are declared as another one is. */
const DECLARED = { core: "index" };

mkdirSync(new URL("cjs/", import.meta.url), { recursive: true });
for (const [entry, module] of Object.entries(ENTRIES)) {
  writeFileSync(new URL(`cjs/${entry}.cjs`, import.meta.url), `"use strict";\n\nmodule.exports = require("../src/${module}.js");\n`);
  if (DECLARED[entry]) continue;
  const declarations = readFileSync(new URL(`src/${entry}.d.ts`, import.meta.url), "utf8");
  writeFileSync(new URL(`cjs/${entry}.d.cts`, import.meta.url), declarations.replaceAll(/"\.\/(\w+)\.js"/g, '"./$1.cjs"'));
}
