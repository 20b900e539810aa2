// Bundles the page into graphopt/debug/viz/static: report.js, report.css, the licences of what is in them, and digests
// of the sources and of the bundle, by which a test without npm sees that they belong together. `node build.mjs FOLDER` writes elsewhere.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../graphopt/debug/viz/static");
mkdirSync(out, { recursive: true });

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { report: "src/main.tsx" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome100", "firefox113", "safari16.4"],  // the first that decompress streams
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "none",  // THIRD_PARTY_LICENSES has them whole
  metafile: true,
  logLevel: "warning",
});

const packages = new Set(
  Object.keys(metafile.inputs).flatMap((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []),
);
const licences = [...packages].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence file`);
  const text = readFileSync(join(folder, file), "utf8").replaceAll("\r\n", "\n").trim();
  return `${name} ${about.version} (${about.license})\n${"-".repeat(72)}\n${text}\n`;
});
writeFileSync(join(out, "THIRD_PARTY_LICENSES.txt"), `Bundled in report.js:\n\n${licences.join("\n\n")}`);

const sources = ["build.mjs", "package.json", "package-lock.json", "tsconfig.json", ...files(join(here, "src"))];
const digests = Object.fromEntries(
  sources.sort().map((path) => [path, digest(join(here, path))]),
);
writeFileSync(join(out, "sources.json"), JSON.stringify(digests, null, 1) + "\n");
const bundle = Object.fromEntries(["report.css", "report.js"].map((name) => [name, digest(join(out, name))]));
writeFileSync(join(out, "bundle.json"), JSON.stringify(bundle, null, 1) + "\n");

function digest(path) {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

function files(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(here, join(entry.parentPath, entry.name)).replaceAll("\\", "/"));
}
