// SPDX-License-Identifier: MIT
import type { CAC } from "cac";
import { ask, findMachine } from "../control/client.ts";
import type { ControlServer } from "../control/server.ts";
import type { Engine } from "../engine.ts";
import { InputError } from "../errors.ts";
import type { Machine } from "../machine/machine.ts";
import { openSnapshot } from "../machine/snapshot/index.ts";
import { PhysicalMemory, parseGpa } from "../memory/index.ts";
import { printable } from "../printable.ts";
import { Statistics } from "../statistics.ts";
import { parseCount } from "./args.ts";
import { type SpaceOptions, Subject } from "./inspect/subject.ts";
import { VERBS } from "./inspect/views.ts";
import { EXIT_OK } from "./output.ts";

interface InspectFlags {
  json?: boolean;
  physical?: boolean;
  cpu: string | number;
  pid?: string | number;
  root?: string | number;
  live?: boolean;
  machine?: string | number;
}

/** One look: what to show and where; also what is sent to a running machine. */
interface Look {
  what: string;
  args: string[];
  physical: boolean;
  json: boolean;
  space: SpaceOptions;
}

const MAX_PID = 4 * 1024 * 1024;

export function registerInspect(cli: CAC): void {
  const verbs = Object.values(VERBS).map((v) => `  ${v.usage.padEnd(36)} ${v.about}`);
  cli
    .command("inspect [...words]", "Look into a running guest or a snapshot")
    .usage(
      `inspect FILE|--live WHAT [arguments] [options]\n\nWHAT\n${verbs.join("\n")}\n\n` +
        "ADDRESS is hex or a symbol (vfs_read, vfs_read+0x10, module:function).",
    )
    .option("--live", "look into the guest that runs now")
    .option("--machine <pid>", "with --live: the hvi process, when several run")
    .option("--json", "print JSON")
    .option("--physical", "addresses of read and disasm are guest physical")
    .option("--cpu <n>", "CPU whose registers and address space count", { default: "0" })
    .option("--pid <n>", "address space of a process")
    .option("--root <gpa>", "address space by the root of its page tables, in hex")
    .example("  hvi inspect --live ps")
    .example("  hvi inspect --live stats --json")
    .example("  hvi inspect booted.hvi ps")
    .example("  hvi inspect booted.hvi symbols 'vfs_*'")
    .example("  hvi inspect booted.hvi disasm vfs_read 8")
    .example("  hvi inspect booted.hvi read sys_call_table 128 --json")
    .example("  hvi inspect booted.hvi translate 0x7ffe12345000 --pid 1")
    .action((words: string[], flags: InspectFlags) => inspect(words.map(String), flags));
}

/** A GPA in hex; the option parser may have made a number of it already. */
function parseRoot(value: string | number): number {
  const root = typeof value === "number" ? value : parseGpa(value);
  if (root === undefined || !(root >= 0 && root < 2 ** 52)) {
    throw new InputError(
      `--root ${value}: not a physical address`,
      "write it in hex, as 0x2a04000",
    );
  }
  return root;
}

/** To stdout, all of it, however slowly it is read; a reader that has enough (head) is no error. */
async function print(text: string): Promise<void> {
  try {
    await Bun.write(Bun.stdout, text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
  }
}

/** Checks what was asked for. Throws InputError. */
function parse(what: string | undefined, args: string[], flags: InspectFlags): Look {
  const known = Object.keys(VERBS).join(", ");
  if (what === undefined) {
    throw new InputError("inspect: nothing to show", `say FILE or --live, then one of ${known}`);
  }
  if (!Object.hasOwn(VERBS, what)) {
    throw new InputError(`inspect: '${what}' is not known`, `choose one of ${known}`);
  }
  const verb = VERBS[what];
  if (args.length < verb.args[0] || args.length > verb.args[1]) {
    throw new InputError(
      `inspect ${what}: wrong number of arguments`,
      `usage: hvi inspect FILE|--live ${verb.usage}`,
    );
  }
  return {
    what,
    args,
    physical: flags.physical === true,
    json: flags.json === true,
    space: {
      cpu: parseCount("cpu", String(flags.cpu), 0, 31),
      pid: flags.pid === undefined ? undefined : parseCount("pid", String(flags.pid), 0, MAX_PID),
      root: flags.root === undefined ? undefined : parseRoot(flags.root),
    },
  };
}

function show(subject: Subject, look: Look): string {
  const view = VERBS[look.what].show(subject, look.args, { physical: look.physical });
  return look.json ? JSON.stringify(view.json, undefined, 2) : view.lines.map(printable).join("\n");
}

async function inspect(words: string[], flags: InspectFlags): Promise<number> {
  if (flags.live === true) {
    const look = parse(words[0], words.slice(1), flags);
    const asked = flags.machine;
    const pid = asked === undefined ? undefined : parseCount("machine", String(asked), 1, MAX_PID);
    const text = await ask(await findMachine(pid), "inspect", look);
    await print(`${String(text)}\n`);
    return EXIT_OK;
  }
  if (flags.machine !== undefined) {
    throw new InputError("--machine goes with --live", "add --live");
  }
  const [file, ...rest] = words;
  if (file !== undefined && rest.length === 0 && Object.hasOwn(VERBS, file)) {
    throw new InputError(
      `inspect ${file}: in what?`,
      `hvi inspect FILE ${file}, or --live ${file}`,
    );
  }
  const look = parse(rest[0], rest.slice(1), flags);
  const snapshot = openSnapshot(file as string);
  try {
    const memory = new PhysicalMemory(snapshot.ram);
    const subject = new Subject(file as string, memory, snapshot.vcpus, look.space);
    await print(`${show(subject, look)}\n`);
  } finally {
    snapshot.close();
  }
  return EXIT_OK;
}

/** Lets a running machine answer `hvi inspect --live`, with what its engine, if any, knows. */
export function serveInspect(
  server: ControlServer,
  machine: Machine,
  engine: Engine | undefined,
): void {
  const statistics = engine?.core.statistics ?? new Statistics(machine.vm);
  server.on("inspect", (argument) => {
    const asked = argument as Partial<Look> | null;
    // The other end may be anything that speaks JSON: check it as the command line is checked.
    const look = parse(String(asked?.what), (asked?.args ?? []).map(String), {
      cpu: String(asked?.space?.cpu ?? 0),
      pid: asked?.space?.pid ?? undefined,
      root: asked?.space?.root ?? undefined,
      physical: asked?.physical === true,
      json: asked?.json === true,
    });
    const memory = new PhysicalMemory(machine.vm.ram);
    const known = { guest: engine?.guest, statistics };
    return show(new Subject("--live", memory, machine.vm.vcpus, look.space, known), look);
  });
}
