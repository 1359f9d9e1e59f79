// SPDX-License-Identifier: MIT
/**
 * What steps need in the machine, made from the work tree: the module built for the machine's
 * kernel, the single executable, test programs, a guest to boot.
 */
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { cacheRoot, progress, sha256 } from "../../fixtures/cache.ts";
import { must, run } from "../../fixtures/command.ts";
import { guest } from "../../fixtures/guests.ts";
import { unpack } from "../../fixtures/kernels/apt.ts";
import { type Kernel, kernel, type Series, unpackHeaders } from "../../fixtures/kernels/kernels.ts";
import { archive, type LabFile } from "./image.ts";

const ROOT = join(import.meta.dir, "../..");

/** What the conformance suite gives on hv/soft. */
export const SOFT_TRANSCRIPT = join(ROOT, "build/lab/soft.transcript");

/** What the core's scenarios give on hv/soft, with as much effort (test/core/effort.ts) as in the lab. */
export const softCore = (effort: string): string =>
  join(ROOT, `build/lab/soft-core-${effort}.transcript`);

/** Where the run of the attacks on hv/soft leaves its console and its alerts. */
export const SOFT_ATTACKS = {
  console: join(ROOT, "build/lab/soft.console"),
  alerts: join(ROOT, "build/lab/soft.alerts"),
};
/** What the guest of the step "attacks" is told, on both backends. */
export const ATTACKS_APPEND =
  "console=ttyS0 quiet hvi.mode=benign-brief,attack,benign-brief,poweroff";

export type Ingredient = keyof typeof INGREDIENTS;

/** A folder for what is made, of one kernel. */
export interface Workshop {
  readonly kernel: Kernel;
  readonly dir: string;
}

/** A source that is not in the work tree; steps that need it cannot run. */
export class Missing extends Error {}

/** The kernel's headers, ready to build with. They stay where they were unpacked. */
export async function headers(w: Workshop): Promise<string> {
  const dir = join(w.dir, "headers");
  const stamp = join(dir, "ready");
  const key = `${w.kernel.release} ${w.kernel.version}`;
  if (!existsSync(stamp) || readFileSync(stamp, "utf8").split("\n")[0] !== key) {
    rmSync(dir, { recursive: true, force: true });
    const build = await unpackHeaders(w.kernel, dir);
    writeFileSync(stamp, `${key}\n${build}`);
  }
  return readFileSync(stamp, "utf8").split("\n")[1] ?? "";
}

/** The folder of a kernel series. */
export async function workshop(series: Series): Promise<Workshop> {
  const k = await kernel(series);
  const w: Workshop = { kernel: k, dir: join(ROOT, "build/lab", kernelKey(k)) };
  mkdirSync(w.dir, { recursive: true });
  return w;
}

/**
 * Builds a module for a kernel from `sources`, folders below `root`, of which the last has the Kbuild
 * file; its path. A warning is a failure. What was built cleanly before from the same sources by the
 * same compiler is not built again.
 */
async function kbuild(
  w: Workshop,
  o: { root: string; sources: string[]; name: string; dir: string; change?: (dir: string) => void },
): Promise<string> {
  const kdir = await headers(w);
  // Built in a copy: kernels do not disturb each other, and the work tree stays clean.
  const copy = join(w.dir, o.dir, "tree");
  const fresh = `${copy}.new`;
  rmSync(fresh, { recursive: true, force: true });
  for (const name of o.sources) {
    cpSync(join(o.root, name), join(fresh, name), {
      recursive: true,
      filter: (path) => !/\.(o|ko|cmd|mod|mod\.c|order|symvers)$/.test(path),
    });
  }
  o.change?.(fresh);
  const at = o.sources.at(-1) ?? "";
  const key = [await must(["gcc", "--version"]), w.kernel.release, w.kernel.version];
  for (const name of (readdirSync(fresh, { recursive: true }) as string[]).sort()) {
    const path = join(fresh, name);
    if (statSync(path).isFile()) key.push(name, readFileSync(path, "utf8"));
  }
  const stamp = join(w.dir, o.dir, "key");
  const built = join(copy, at, o.name);
  const sum = sha256(key.join("\n"));
  if (existsSync(built) && existsSync(stamp) && readFileSync(stamp, "utf8") === sum) {
    rmSync(fresh, { recursive: true });
    return built;
  }
  rmSync(stamp, { force: true });
  rmSync(copy, { recursive: true, force: true });
  renameSync(fresh, copy);
  const argv = ["make", "-C", kdir, `M=${join(copy, at)}`, "CC=gcc", "HOSTCC=gcc", "-j2"];
  argv.push("CONFIG_DEBUG_INFO_BTF_MODULES=", "modules");
  const outcome = await run(argv);
  const said = `${outcome.stdout}\n${outcome.stderr}`.trim();
  const warnings = said
    .split("\n")
    .filter((line) => /warning:/i.test(line))
    // A kernel built by a compiler of another release; Kbuild only notes it.
    .filter((line) => !/the compiler differs from the one used to build/.test(line));
  if (outcome.code !== 0 || warnings.length > 0) {
    throw new Error(`${o.name} does not build cleanly for ${w.kernel.release}:\n${said}`);
  }
  await must(["strip", "--strip-debug", built]);
  writeFileSync(stamp, sum);
  return built;
}

/** hvi.ko for a kernel. */
async function hviKo(w: Workshop, dir = "module", change?: (dir: string) => void): Promise<string> {
  if (!existsSync(join(ROOT, "hv/vmx/Kbuild"))) throw new Missing("hv/vmx is not there");
  const root = join(ROOT, "hv");
  return await kbuild(w, { root, sources: ["abi", "vmx"], name: "hvi.ko", dir, change });
}

async function module(w: Workshop): Promise<LabFile[]> {
  return [{ path: "lab/hvi.ko", from: await hviKo(w) }];
}

/** hvi.ko of a release with another ABI, and one for another kernel. */
async function strangers(w: Workshop): Promise<LabFile[]> {
  const abi = await hviKo(w, "module-abi", (dir) => {
    const path = join(dir, "abi/hvi.h");
    const text = readFileSync(path, "utf8");
    const changed = text.replace(
      /(#define HVI_ABI_VERSION\s+)(\d+)/,
      (_, define: string, version: string) => `${define}${Number(version) + 1}`,
    );
    if (changed === text) throw new Error("hvi.h has no HVI_ABI_VERSION");
    writeFileSync(path, changed);
  });
  const kernel = await hviKo(await workshop(w.kernel.series === "6.1" ? "6.12" : "6.1"));
  return [
    { path: "lab/hvi-abi.ko", from: abi },
    { path: "lab/hvi-kernel.ko", from: kernel },
  ];
}

/** The kernel's own hypervisor, to compare with. */
async function kvm(w: Workshop): Promise<LabFile[]> {
  const dir = join(w.dir, "kvm");
  const names = ["irqbypass", "kvm", "kvm-intel"];
  if (!names.every((name) => existsSync(join(dir, `${name}.ko`)))) {
    rmSync(dir, { recursive: true, force: true });
    const patterns = names.map((name) => `./lib/modules/*/${name}.ko*`);
    await unpack(w.kernel.imageDeb, dir, patterns);
    await must(["find", dir, "-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]);
    await must(["find", dir, "-name", "*.ko", "-exec", "mv", "-t", dir, "{}", "+"]);
    rmSync(join(dir, "lib"), { recursive: true });
  }
  const files = names.map((name) => ({
    path: `lab/kvm/${name}.ko`,
    from: join(dir, `${name}.ko`),
  }));
  return [...files, await program(w, "test/vmx/kvm-guest.c")];
}

/** A C program, linked statically since the machine has no C library. */
async function program(w: Workshop, source: string, name = ""): Promise<LabFile> {
  const from = join(ROOT, source);
  if (!existsSync(from)) throw new Missing(`${source} is not there`);
  const base = name || source.slice(source.lastIndexOf("/") + 1).replace(/\.c$/, "");
  mkdirSync(join(w.dir, "bin"), { recursive: true });
  const to = join(w.dir, "bin", base);
  // At an address of chance: a bad pointer of the fuzzer's must not be one of its own.
  const argv = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static-pie"];
  await must([...argv, `-I${join(ROOT, "hv/abi")}`, "-o", to, from, "-lpthread", "-ldl"]);
  return { path: `lab/bin/${base}`, from: to };
}

/** A dynamic program's libraries and its linker, at the places where it looks for them. */
async function libraries(path: string): Promise<LabFile[]> {
  const list = await must(["ldd", path]);
  const paths = [...list.matchAll(/(?:=> )?(\/\S+) \(0x/g)].map((m) => m[1] ?? "");
  return paths.map((from) => ({ path: from, from }));
}

/** The single executable as it ships. */
async function hvi(): Promise<LabFile[]> {
  await must([process.execPath, join(ROOT, "scripts/build.ts")], { cwd: ROOT });
  const from = join(ROOT, "dist/hvi");
  return [{ path: "lab/bin/hvi", from }, ...(await libraries(from))];
}

/**
 * The conformance suite as one script, with its guests. It runs in the single executable, which is
 * a whole Bun when BUN_BE_BUN is set.
 */
async function conformance(w: Workshop): Promise<LabFile[]> {
  const dir = join(ROOT, "test/conformance");
  await must(["make", "-s", "-C", join(dir, "guests")]);
  const script = join(w.dir, "conformance.js");
  const argv = [process.execPath, "build", "--target=bun", "--minify-syntax"];
  await must([...argv, `--outfile=${script}`, join(dir, "main.ts")]);
  const soft = [process.execPath, join(dir, "main.ts"), "--backend", "soft"];
  await must([...soft, "--out", SOFT_TRANSCRIPT], { cwd: ROOT });
  const images = join(ROOT, "build/conformance");
  const names = readdirSync(images).filter((name) => /\.(bin|sym)$/.test(name));
  return [
    { path: "lab/conformance/main.js", from: script },
    ...names.map((name) => ({ path: `lab/conformance/${name}`, from: join(images, name) })),
  ];
}

/** The scenarios of the introspection core as one script, with the guest's images. */
async function core(w: Workshop): Promise<LabFile[]> {
  const dir = join(ROOT, "test/core");
  await must(["make", "-s", "-C", join(dir, "guest")]);
  const script = join(w.dir, "core.js");
  const argv = [process.execPath, "build", "--target=bun", "--minify-syntax"];
  await must([...argv, `--outfile=${script}`, join(dir, "main.ts")]);
  const images = join(ROOT, "build/core");
  const names = readdirSync(images).filter((name) => /\.(bin|sym)$/.test(name));
  return [
    { path: "lab/core/main.js", from: script },
    { path: "lab/core/zydis.wasm", from: join(ROOT, "build/zydis.wasm") },
    ...names.map((name) => ({ path: `lab/core/${name}`, from: join(images, name) })),
  ];
}

/** Transcripts for steps of `core`: no files for the machine. */
async function softCoreTranscript(effort: string): Promise<LabFile[]> {
  await must(["make", "-s", "-C", join(ROOT, "test/core/guest")]);
  const soft = [process.execPath, join(ROOT, "test/core/main.ts"), "--backend", "soft"];
  await must([...soft, "--effort", effort, "--out", softCore(effort)], { cwd: ROOT });
  return [];
}

/** bench/vmx/engine-cost.ts as one script, for the single executable like the conformance suite. */
async function engineCost(w: Workshop): Promise<LabFile[]> {
  const script = join(w.dir, "engine-cost.js");
  const argv = [process.execPath, "build", "--target=bun", "--minify-syntax"];
  await must([...argv, `--outfile=${script}`, join(ROOT, "bench/vmx/engine-cost.ts")]);
  return [
    { path: "lab/engine-cost/main.js", from: script },
    { path: "lab/engine-cost/zydis.wasm", from: join(ROOT, "build/zydis.wasm") },
  ];
}

/** A stock kernel to boot as a guest, with the fixtures' first file system. */
async function stockGuest(): Promise<LabFile[]> {
  const g = await guest("6.1");
  return [
    { path: "lab/guest/vmlinuz", from: g.kernel },
    { path: "lab/guest/initramfs.cpio", from: g.initrd },
  ];
}

/** Nothing for the machine: the same attacks on hv/soft, to compare with. */
async function softAttacks(): Promise<LabFile[]> {
  const g = await guest("6.1");
  const { console, alerts } = SOFT_ATTACKS;
  const argv = [process.execPath, join(ROOT, "src/main.ts"), "run", "--backend", "soft"];
  argv.push("--kernel", g.kernel, "--initrd", g.initrd, "--append", ATTACKS_APPEND);
  await must([...argv, "--console", console, "--alerts", alerts], { cwd: ROOT });
  return [];
}

/** Another kernel to go over to, whose only step ends well when it gets there. */
async function second(w: Workshop): Promise<LabFile[]> {
  const initrd = archive([
    { path: "init", from: join(import.meta.dir, "init.sh") },
    { path: "bin/busybox", from: join(cacheRoot(), "busybox/busybox") },
    { path: "lab/steps/000-second", text: "grep hvi.second /proc/cmdline\n" },
  ]);
  return [
    { path: "lab/second/vmlinuz", from: w.kernel.vmlinuz },
    { path: "lab/second/initrd", data: initrd },
    await program(w, "test/vmx/kexec.c"),
  ];
}

const INGREDIENTS = {
  module,
  strangers,
  kvm,
  hvi,
  conformance,
  core,
  "soft-core-brief": () => softCoreTranscript("brief"),
  "soft-core-every": () => softCoreTranscript("every"),
  guest: stockGuest,
  "soft-attacks": softAttacks,
  "exit-cost": async (w: Workshop) => [await program(w, "bench/vmx/exit-cost.c")],
  migrate: async (w: Workshop) => [await program(w, "test/vmx/migrate.c")],
  "engine-cost": engineCost,
  second,
  fuzz: async (w: Workshop) => [
    await program(w, "test/vmx/fuzz.c"),
    await program(w, "test/vmx/victim.c"),
    await program(w, "test/vmx/entry.c"),
    await program(w, "test/vmx/abuse.c"),
    ...["counters.sh", "kills.sh"].map((name) => ({
      path: `lab/bin/${name}`,
      from: join(ROOT, "test/vmx", name),
    })),
  ],
};

export function isIngredient(name: string): name is Ingredient {
  return Object.hasOwn(INGREDIENTS, name);
}

/** Those that are large and change seldom, which are kept compressed. */
export const LARGE: ReadonlySet<Ingredient> = new Set<Ingredient>(["hvi"]);

/** Makes one; files of the machine, or why it cannot be had. */
export async function prepare(
  w: Workshop,
  name: Ingredient,
): Promise<{ files: LabFile[] } | { missing: string } | { broken: string }> {
  try {
    const started = Date.now();
    const files = await INGREDIENTS[name](w);
    const ms = Date.now() - started;
    if (ms > 1000) progress(`lab: ${name}: made in ${(ms / 1000).toFixed(1)} s`);
    return { files };
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    return error instanceof Missing ? { missing: text } : { broken: text };
  }
}

/** A key of a kernel for names of folders. */
export function kernelKey(k: Kernel): string {
  return `${k.series}-${sha256(k.version).slice(0, 8)}`;
}
