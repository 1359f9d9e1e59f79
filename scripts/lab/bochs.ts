// SPDX-License-Identifier: MIT
/**
 * Bochs 3.0, the machine with VT-x that the lab runs in. It comes from Debian's trixie whatever the
 * machine's own release is: apt downloads the packages and what they depend on, and of their files
 * those that Bochs loads are kept in the cache. Nothing is installed, and it needs no root: the
 * program is started through its own release's dynamic linker.
 */
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { cached, progress } from "../../fixtures/cache.ts";
import { must } from "../../fixtures/command.ts";
import { Apt, unpack } from "../../fixtures/kernels/apt.ts";

const PACKAGES = ["bochs", "bochsbios", "vgabios", "bochs-term"];
const LIBRARIES = "usr/lib/x86_64-linux-gnu";
const LINKER = "ld-linux-x86-64.so.2";
/** Changes with the layout of the cache's entry. */
const LAYOUT = 2;

/** Of the plugins of the display, the one that needs no window system. */
const UNWANTED = /gui\.so/;
const WANTED = /term_gui\.so/;

/** Plugins that the C library of the tree can load; others want what is not installed. */
function plugins(dir: string): string[] {
  return readdirSync(dir)
    .filter((name) => name.endsWith(".so"))
    .filter((name) => !UNWANTED.test(name) || WANTED.test(name))
    .filter((name) => !/sound(?!dummy)|voodoo/.test(name));
}

/** The libraries that a program of `tree` loads, as paths. */
async function needed(tree: string, program: string): Promise<string[]> {
  const lib = join(tree, LIBRARIES);
  const list = await must([join(lib, LINKER), "--library-path", lib, "--list", program]);
  const paths: string[] = [];
  for (const line of list.split("\n")) {
    const match = /=> (\S+)/.exec(line);
    if (/not found/.test(line)) throw new Error(`${basename(program)}: ${line.trim()}`);
    if (match?.[1]?.startsWith("/")) paths.push(match[1]);
  }
  return paths;
}

async function make(dir: string): Promise<Record<string, unknown>> {
  progress("lab: downloading Bochs from Debian trixie");
  const state = join(dir, "apt");
  const tree = join(dir, "tree");
  const apt = await Apt.open(state, ["trixie"]);
  const debs = await apt.downloadAll(PACKAGES);
  for (const deb of debs) await unpack(deb, tree);
  for (const sub of ["lib", "plugins", "share"]) mkdirSync(join(dir, sub));

  const program = join(tree, "usr/bin/bochs-bin");
  const from = join(tree, LIBRARIES, "bochs/plugins");
  const all = new Set<string>(await needed(tree, program));
  for (const name of plugins(from)) {
    copyFileSync(realpathSync(join(from, name)), join(dir, "plugins", name));
    for (const path of await needed(tree, join(from, name))) all.add(path);
  }
  all.add(join(tree, LIBRARIES, LINKER));
  for (const path of all) copyFileSync(realpathSync(path), join(dir, "lib", basename(path)));
  chmodSync(join(dir, "lib", LINKER), 0o755);
  copyFileSync(program, join(dir, "bochs-bin"));
  for (const name of ["BIOS-bochs-latest", "VGABIOS-lgpl-latest"]) {
    copyFileSync(join(tree, "usr/share/bochs", name), join(dir, "share", name));
  }
  rmSync(state, { recursive: true });
  rmSync(tree, { recursive: true });
  return { packages: debs.map((deb) => basename(deb, ".deb")) };
}

/** The folder of Bochs in the cache, fetched when it is absent or damaged. */
export async function bochs(): Promise<string> {
  return (await cached(`lab/bochs-${LAYOUT}`, make)).dir;
}

/** CPU models of Bochs that the lab uses; the last two have a VT-x that is too old for hvi. */
export const MODELS = [
  "broadwell_ult",
  "corei7_icelake_u",
  "arrow_lake",
  "corei5_lynnfield_750",
  "core2_penryn_t9600",
] as const;
export type CpuModel = (typeof MODELS)[number];

/** A BIOS whose owner has switched VT-x off: for all CPUs, or for those that start later. */
export type Firmware = "vtx-off" | "vtx-off-on-others";

/** What Bochs's BIOS does on the first CPU, and on the others: IA32_FEATURE_CONTROL |= enabled, locked. */
const FEATURE_CONTROL = {
  first: ["b93a000000" + "0f32" + "83c805" + "0f30", "b93a000000" + "0f32" + "83c801" + "0f30"],
  others: [
    "66b93a000000" + "0f32" + "6683c805" + "0f30",
    "66b93a000000" + "0f32" + "6683c801" + "0f30",
  ],
} as const;

function bios(bochsDir: string, o: MachineOptions): string {
  const stock = join(bochsDir, "share/BIOS-bochs-latest");
  if (o.firmware === undefined) return stock;
  let hex = readFileSync(stock).toString("hex");
  for (const [from, to] of o.firmware === "vtx-off"
    ? [FEATURE_CONTROL.first, FEATURE_CONTROL.others]
    : [FEATURE_CONTROL.others]) {
    if (hex.split(from).length !== 2)
      throw new Error(`${stock}: its VT-x setup is not where it was`);
    hex = hex.replace(from, to);
  }
  const changed = join(o.dir, "bios");
  writeFileSync(changed, Buffer.from(hex, "hex"));
  return changed;
}

export interface MachineOptions {
  readonly iso: string;
  /** Folder for the files of this run: settings, serial lines, Bochs's log. */
  readonly dir: string;
  readonly model: CpuModel;
  readonly cpus: number;
  /** A feature of the CPU, in Bochs's words, that it is not to have. */
  readonly without?: string;
  readonly firmware?: Firmware;
  /** MiB. */
  readonly memory: number;
}

/** Where the two serial lines of a run end up. */
export const CONSOLE = "console.log";
export const CHANNEL = "channel.log";

/** Writes the settings of a machine and answers the command that starts it. */
export function machineCommand(bochsDir: string, o: MachineOptions): string[] {
  const at = (name: string): string => join(o.dir, name);
  writeFileSync(at(CONSOLE), "");
  writeFileSync(at(CHANNEL), "");
  const without = o.without === undefined ? "" : `, exclude_features="${o.without}"`;
  const settings = [
    `cpu: model=${o.model}, count=${o.cpus}, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1${without}`,
    `memory: guest=${o.memory}, host=${o.memory}`,
    `romimage: file=${bios(bochsDir, o)}`,
    `vgaromimage: file=${join(bochsDir, "share/VGABIOS-lgpl-latest")}`,
    "boot: cdrom",
    "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
    `ata0-master: type=cdrom, path=${o.iso}, status=inserted`,
    `com1: enabled=1, mode=file, dev=${at(CONSOLE)}`,
    `com2: enabled=1, mode=file, dev=${at(CHANNEL)}`,
    "clock: sync=none",
    "sound: driver=dummy",
    "display_library: term",
    `log: ${at("bochs.log")}`,
    "panic: action=fatal",
    "error: action=report",
    "info: action=ignore",
    "debug: action=ignore",
    "",
  ];
  writeFileSync(at("bochsrc"), settings.join("\n"));
  // The package is built with the debugger, which waits for a command at the start.
  writeFileSync(at("commands"), "c\n");
  const lib = join(bochsDir, "lib");
  const argv = [join(lib, LINKER), "--library-path", lib, join(bochsDir, "bochs-bin")];
  argv.push("-q", "-f", at("bochsrc"), "-rc", at("commands"));
  return argv;
}
