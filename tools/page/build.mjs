// Bundles the pages' scripts and styles into rl/observability/page/assets, or into the folder that is named.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const target = process.argv[2] ?? `${here}../../rl/observability/page/assets`;
const entries = ["charts", "viewer"].map((name) => `${here}src/${name}.ts`);

await build({
  entryPoints: entries,
  outdir: target,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none", // LICENSES.txt has them
});

const packages = JSON.parse(readFileSync(`${here}package.json`, "utf8")).dependencies;
const licences = Object.entries(packages).map(([name, version]) => {
  const text = readFileSync(`${here}node_modules/${name}/LICENSE`, "utf8").trim();
  return `${name} ${version}\n\n${text}\n`;
});
writeFileSync(`${target}/LICENSES.txt`, licences.join("\n----\n\n"));

// A test compares this with the sources, so that a change without a build is noticed where there is no node.
const sources = ["build.mjs", "package-lock.json", ...readdirSync(`${here}src`).map((name) => `src/${name}`)].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(`${name}\0`).update(readFileSync(here + name));
writeFileSync(`${target}/SOURCES.sha256`, `${hash.digest("hex")}\n`);
