// SPDX-License-Identifier: MIT
/**
 * Makes a work tree ready and then, when a script is named, runs it under Bun:
 *
 *   node scripts/setup.mjs [--no-guests | --lab] [SCRIPT.ts [ARGUMENT...]]
 *
 * --no-guests leaves the guests' kernels out; --lab does too (the lab fetches the one that it boots)
 * and adds what makes a disc to boot from.
 *
 * Plain Node, since nothing else is there before the first `npm ci`. Each step looks first whether
 * it has anything to do, so a second run takes a moment. Runs at the same time wait for each other.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const BUN = join(ROOT, "node_modules/.bin/bun");

/** Debian packages that are needed, and what for. */
const PACKAGES = {
  gcc: "the software vCPU and the guests' modules",
  make: "the same",
  "libc6-dev": "the same",
  "libzydis-dev": "decoding in the software vCPU",
  "libzycore-dev": "the same",
  "dpkg-dev": "the source of Zydis",
  "clang-14": "Zydis as WebAssembly",
  "lld-14": "the same",
  libelf1: "objtool, which builds the guests' modules",
  libssl3: "Kbuild's tools",
  "xz-utils": "the guests' compressed modules",
  cpio: "a test of the archive writer",
};

/** What the lab needs more: a disc that boots. */
const LAB_PACKAGES = {
  "grub-pc-bin": "the disc that the lab's machine boots from",
  "grub-common": "the same",
  xorriso: "the same",
  mtools: "the same",
  lz4: "its first file system",
  // script: Bochs wants a terminal.
  bsdutils: "the terminal of the lab's machine",
};

/** A failure whose message is all that there is to say. */
class SetupError extends Error {}

function seconds(ms) {
  return `${(ms / 1000).toFixed(1)} s`;
}

/**
 * Runs a program quietly. What it does is announced once it has taken more than a second; its output
 * is shown when it fails.
 */
function step(what, argv, options = {}) {
  const started = Date.now();
  return new Promise((resolve, reject) => {
    let output = "";
    let announced = false;
    const announce = () => {
      announced = true;
      process.stderr.write(`setup: ${what}\n`);
    };
    const timer = setTimeout(announce, 1000);
    const child = spawn(argv[0], argv.slice(1), {
      cwd: ROOT,
      stdio: ["ignore", "pipe", options.through ? "inherit" : "pipe"],
      env: { ...process.env, ...options.env },
    });
    const keep = (data) => {
      output += data;
    };
    child.stdout.on("data", keep);
    child.stderr?.on("data", keep);
    child.on("error", (error) => {
      clearTimeout(timer);
      reject(new SetupError(`${what}: cannot run ${argv[0]}: ${error.message}`));
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      if (code !== 0) {
        reject(new SetupError(`${what}: failed (${argv.join(" ")})\n${output.trimEnd()}`));
        return;
      }
      if (announced)
        process.stderr.write(`setup: ${what}: done, ${seconds(Date.now() - started)}\n`);
      resolve(output);
    });
  });
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

/** Whether node_modules holds what package-lock.json asks for. */
function dependenciesReady() {
  const wanted = readJson(join(ROOT, "package-lock.json"))?.packages ?? {};
  const present = readJson(join(ROOT, "node_modules/.package-lock.json"))?.packages;
  if (present === undefined) return false;
  for (const [path, info] of Object.entries(wanted)) {
    if (path === "") continue;
    const have = present[path];
    if (have === undefined ? !info.optional : have.version !== info.version) return false;
  }
  return true;
}

/**
 * The `bun` package puts its program in place in an install script, which npm may be told not to
 * run; then the script is run from here.
 */
function bunReady() {
  return spawnSync(BUN, ["--version"], { stdio: "ignore" }).status === 0;
}

async function dependencies() {
  if (!dependenciesReady()) {
    await step("installing dependencies (npm ci)", ["npm", "ci", "--no-audit", "--no-fund"]);
  }
  if (!bunReady()) {
    await step("putting Bun in place", ["node", join(ROOT, "node_modules/bun/install.js")]);
    if (!bunReady()) throw new SetupError(`Bun does not run: ${BUN}`);
  }
}

/** Those of `packages` that dpkg does not have. */
function missingPackages(packages) {
  const names = Object.keys(packages);
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query fills these in
  const query = spawnSync("dpkg-query", ["-W", "-f", "${Package} ${Status}\n", ...names], {
    encoding: "utf8",
  });
  if (query.error) throw new SetupError("dpkg-query does not run: hvi is set up on Debian 12");
  const installed = new Set(
    query.stdout
      .split("\n")
      .filter((line) => line.endsWith("install ok installed"))
      .map((line) => line.split(" ")[0]),
  );
  return names.filter((name) => !installed.has(name));
}

async function packages(wanted) {
  const missing = missingPackages(wanted);
  if (missing.length === 0) return;
  const command = `apt-get install -y --no-install-recommends ${missing.join(" ")}`;
  if (process.getuid() !== 0) {
    const why = missing.map((name) => `  ${name}: ${wanted[name]}`).join("\n");
    throw new SetupError(
      `these packages are missing:\n${why}\nrun as root: apt-get update && ${command}`,
    );
  }
  const env = { DEBIAN_FRONTEND: "noninteractive" };
  await step("reading package lists (apt-get update)", ["apt-get", "update", "-q"], { env });
  await step(`installing ${missing.join(" ")}`, command.split(" "), { env });
}

/** The steps, in the order in which they need each other. */
async function prepare({ guests, lab }) {
  mkdirSync(join(ROOT, "build"), { recursive: true });
  await dependencies();
  await packages(lab ? { ...PACKAGES, ...LAB_PACKAGES } : PACKAGES);
  // First, since it fetches the source that the software vCPU is linked with as well.
  await step("building Zydis as WebAssembly", [BUN, "scripts/zydis.ts"], { through: true });
  await step("building the software vCPU", ["make", "-C", "hv/soft", "-j2"]);
  if (guests) {
    await step("preparing guests", [BUN, "fixtures/guests.ts"], { through: true });
  }
}

function fail(message) {
  process.stderr.write(`setup: ${message}\n`);
  process.exit(1);
}

const args = process.argv.slice(2);
const option = args[0] === "--no-guests" || args[0] === "--lab" ? args.shift() : undefined;
const what = { guests: option === undefined, lab: option === "--lab" };

if (process.platform !== "linux" || process.arch !== "x64") {
  fail(`hvi runs on x86-64 Linux; this is ${process.platform} on ${process.arch}`);
}
if (process.env.HVI_SETUP_LOCKED === "1") {
  try {
    await prepare(what);
  } catch (error) {
    fail(error instanceof SetupError ? error.message : error.stack);
  }
} else {
  const lock = join(ROOT, "build/.setup.lock");
  mkdirSync(dirname(lock), { recursive: true });
  const self = [process.execPath, fileURLToPath(import.meta.url)];
  const again = [...self, ...(option === undefined ? [] : [option])];
  // -o: programs that outlive the setup do not keep the lock.
  const locked = spawnSync("flock", ["-o", lock, ...again], {
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, HVI_SETUP_LOCKED: "1" },
  });
  if (locked.error) fail(`flock (package util-linux) does not run: ${locked.error.message}`);
  if (locked.status !== 0) process.exit(locked.status ?? 1);
  if (args.length > 0) {
    if (!existsSync(join(ROOT, args[0]))) fail(`no such script: ${args[0]}`);
    const child = spawn(BUN, [join(ROOT, args[0]), ...args.slice(1)], { stdio: "inherit" });
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
      process.on(signal, () => child.kill(signal));
    }
    child.on("error", (error) => fail(`cannot run Bun: ${error.message}`));
    child.on("close", (code, signal) => process.exit(signal ? 128 : code));
  }
}
