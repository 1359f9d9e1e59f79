// SPDX-License-Identifier: MIT
/**
 * Builds build/zydis.wasm: Debian's zydis source and our glue
 * (src/x86/zydis/glue.c) with clang and lld, no libc, formatter in.
 *
 *     bun scripts/zydis.ts [--force]
 *
 * The source comes through apt from the machine's own mirror (deb-src lines
 * derived from its apt configuration, in a directory of ours: /etc/apt is not
 * touched), is checked against the SHA-256 below and kept in
 * ${XDG_CACHE_HOME:-~/.cache}/hvi. A damaged copy there is fetched again.
 * Does nothing when the module is newer than what it is made of.
 */
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { basename, join } from "node:path";

const PACKAGE = "zydis=4.0.0-1";
const TARBALL = "zydis_4.0.0.orig.tar.gz";
const SHA256 = "e990107f80c62afc1deb51de230023a1098db801b8ea6bf483e296d45459e234";
/** Zydis's own sources that the module needs; the encoder is not among them. */
const SOURCES = [
  "Decoder",
  "DecoderData",
  "Formatter",
  "FormatterATT",
  "FormatterBase",
  "FormatterBuffer",
  "FormatterIntel",
  "MetaInfo",
  "Mnemonic",
  "Register",
  "Segment",
  "SharedData",
  "String",
  "Utils",
];
const CLANG = "clang-14";
const LLD = "wasm-ld-14";
const ZYCORE_HEADERS = "/usr/include/Zycore";

const root = join(import.meta.dir, "..");
const glue = join(root, "src/x86/zydis/glue.c");
const output = join(root, "build/zydis.wasm");
const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "hvi");

class BuildError extends Error {}

function die(message: string, hint: string): never {
  throw new BuildError(`${message}\n  ${hint}`);
}

function run(argv: string[], cwd?: string): string {
  const p = Bun.spawnSync(argv, { cwd, stdout: "pipe", stderr: "pipe" });
  if (p.exitCode !== 0) {
    die(`${argv[0]} failed (status ${p.exitCode})`, p.stderr.toString().trim().slice(-2000));
  }
  return p.stdout.toString();
}

function sha256(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

/** The machine's apt sources with their deb-src twins, as apt source files in a directory. */
function writeSourceLists(into: string): void {
  let n = 0;
  const add = (path: string): void => {
    const text = readFileSync(path, "utf8");
    if (path.endsWith(".sources")) {
      const out = text.replace(/^Types:.*$/gm, "Types: deb-src");
      writeFileSync(join(into, `${n++}.sources`), out);
    } else {
      const out = text
        .split("\n")
        .filter((line) => /^deb\s/.test(line))
        .map((line) => line.replace(/^deb\s/, "deb-src "));
      writeFileSync(join(into, `${n++}.list`), `${out.join("\n")}\n`);
    }
  };
  if (existsSync("/etc/apt/sources.list")) add("/etc/apt/sources.list");
  if (existsSync("/etc/apt/sources.list.d")) {
    for (const f of readdirSync("/etc/apt/sources.list.d").sort()) {
      if (/\.(sources|list)$/.test(f)) add(join("/etc/apt/sources.list.d", f));
    }
  }
}

/** Fetches the tarball through apt into `work` and returns its path. */
function download(work: string): string {
  const dir = (name: string): string => {
    const path = join(work, name);
    mkdirSync(path, { recursive: true });
    return path;
  };
  const parts = dir("sources");
  writeSourceLists(parts);
  dir("lists/partial");
  dir("cache/archives/partial");
  const options = [
    "Dir::Etc::sourcelist=/dev/null",
    `Dir::Etc::sourceparts=${parts}`,
    `Dir::State::lists=${join(work, "lists")}`,
    `Dir::Cache=${join(work, "cache")}`,
    "APT::Sandbox::User=root",
  ].flatMap((o) => ["-o", o]);
  run(["apt-get", "-qq", ...options, "update"]);
  const here = dir("source");
  run(["apt-get", "-qq", ...options, "source", "--download-only", PACKAGE], here);
  return join(here, TARBALL);
}

/** The verified tarball in the cache; fetched when it is missing or damaged. */
function source(work: string): string {
  const kept = join(cache, TARBALL);
  if (existsSync(kept)) {
    if (sha256(kept) === SHA256) return kept;
    console.error(`zydis: ${kept} is damaged; fetching it again`);
    rmSync(kept);
  }
  const fresh = download(work);
  const found = sha256(fresh);
  if (found !== SHA256) {
    die(`${TARBALL} has SHA-256 ${found}, expected ${SHA256}`, "the mirror gave another file");
  }
  mkdirSync(cache, { recursive: true });
  // Copy beside, then rename: a run that is stopped half-way leaves no half file.
  const partial = `${kept}.${process.pid}`;
  writeFileSync(partial, readFileSync(fresh));
  renameSync(partial, kept);
  return kept;
}

function isFresh(): boolean {
  if (!existsSync(output)) return false;
  const made = statSync(output).mtimeMs;
  return [glue, import.meta.path].every((f) => statSync(f).mtimeMs < made);
}

function build(work: string): void {
  run(["tar", "xzf", source(work), "-C", work]);
  const top = readdirSync(work).find((d) => existsSync(join(work, d, "src/Decoder.c")));
  if (top === undefined) die(`${TARBALL} holds no src/Decoder.c`, "this is not the zydis source");
  const zydis = join(work, top);
  // Only Zycore's headers, and nothing else of /usr/include, may be seen.
  const include = join(work, "include");
  mkdirSync(include);
  symlinkSync(ZYCORE_HEADERS, join(include, "Zycore"));

  const files = [...SOURCES.map((s) => join(zydis, "src", `${s}.c`)), glue];
  const objects = files.map((file) => {
    const object = join(work, `${basename(file, ".c")}.o`);
    run([
      CLANG,
      "--target=wasm32",
      "-O2",
      "-std=c11",
      "-Wall",
      ...(file === glue ? ["-Wextra", "-Werror"] : []),
      "-ffreestanding",
      "-mbulk-memory",
      "-fvisibility=hidden",
      "-ffunction-sections",
      "-fdata-sections",
      "-DZYDIS_STATIC_BUILD",
      "-DZYCORE_STATIC_BUILD",
      "-DZYAN_NO_LIBC",
      "-isystem",
      join(zydis, "include"),
      "-I",
      join(zydis, "src"),
      "-idirafter",
      include,
      "-c",
      file,
      "-o",
      object,
    ]);
    return object;
  });
  const module = join(work, "zydis.wasm");
  run([
    LLD,
    "--no-entry",
    "--gc-sections",
    "--strip-all",
    "-z",
    "stack-size=65536",
    "-o",
    module,
    ...objects,
  ]);
  const compiled = new WebAssembly.Module(readFileSync(module));
  const imports = WebAssembly.Module.imports(compiled);
  if (imports.length > 0) {
    die(`the module wants ${imports.map((i) => i.name).join(", ")}`, "it must stand alone");
  }
  mkdirSync(join(root, "build"), { recursive: true });
  const partial = `${output}.${process.pid}`;
  writeFileSync(partial, readFileSync(module));
  renameSync(partial, output);
  console.log(`build/zydis.wasm: ${(statSync(output).size / 1e3).toFixed(0)} kB`);
}

function main(): void {
  if (!process.argv.includes("--force") && isFresh()) return;
  for (const tool of [CLANG, LLD, "apt-get", "tar"]) {
    if (!Bun.which(tool)) {
      die(`${tool} is missing`, "apt-get install clang-14 lld-14 libzydis-dev libzycore-dev");
    }
  }
  if (!existsSync(ZYCORE_HEADERS)) {
    die("Zycore's headers are missing", "apt-get install libzycore-dev");
  }
  const work = mkdtempSync(join(tmpdir(), "hvi-zydis-"));
  try {
    build(work);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

try {
  main();
} catch (e) {
  if (!(e instanceof BuildError)) throw e;
  console.error(`zydis: ${e.message}`);
  process.exit(1);
}
