// SPDX-License-Identifier: MIT
import type { CAC } from "cac";
import { InputError } from "../machine/errors.ts";
import { openSnapshot } from "../machine/snapshot/index.ts";
import { PhysicalMemory, parseGpa } from "../memory/index.ts";
import { parseCount } from "./args.ts";
import { Subject } from "./inspect/subject.ts";
import { VERBS } from "./inspect/views.ts";
import { EXIT_OK } from "./output.ts";

interface InspectFlags {
  json?: boolean;
  physical?: boolean;
  cpu: string | number;
  pid?: string | number;
  root?: string | number;
}

const MAX_PID = 4 * 1024 * 1024;

export function registerInspect(cli: CAC): void {
  const verbs = Object.values(VERBS).map((v) => `  ${v.usage.padEnd(36)} ${v.about}`);
  cli
    .command("inspect <file> <what> [...args]", "Look into a guest's snapshot")
    .usage(
      `inspect FILE WHAT [arguments] [options]\n\nWHAT\n${verbs.join("\n")}\n\n` +
        "ADDRESS is hex or a symbol (vfs_read, vfs_read+0x10, module:function).",
    )
    .option("--json", "print JSON")
    .option("--physical", "addresses of read and disasm are guest physical")
    .option("--cpu <n>", "CPU whose registers and address space count", { default: "0" })
    .option("--pid <n>", "address space of a process")
    .option("--root <gpa>", "address space by the root of its page tables, in hex")
    .example("  hvi inspect booted.hvi ps")
    .example("  hvi inspect booted.hvi symbols 'vfs_*'")
    .example("  hvi inspect booted.hvi disasm vfs_read 8")
    .example("  hvi inspect booted.hvi read sys_call_table 128 --json")
    .example("  hvi inspect booted.hvi translate 0x7ffe12345000 --pid 1")
    .action((file: string, what: string, args: string[], flags: InspectFlags) =>
      inspect(String(file), String(what), args.map(String), flags),
    );
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

async function inspect(
  file: string,
  what: string,
  args: string[],
  flags: InspectFlags,
): Promise<number> {
  const verb = Object.hasOwn(VERBS, what) ? VERBS[what] : undefined;
  if (verb === undefined) {
    throw new InputError(
      `inspect: '${what}' is not known`,
      `choose one of ${Object.keys(VERBS).join(", ")}`,
    );
  }
  if (args.length < verb.args[0] || args.length > verb.args[1]) {
    throw new InputError(
      `inspect ${what}: wrong number of arguments`,
      `usage: hvi inspect FILE ${verb.usage}`,
    );
  }
  const options = {
    cpu: parseCount("cpu", String(flags.cpu), 0, 31),
    pid: flags.pid === undefined ? undefined : parseCount("pid", String(flags.pid), 0, MAX_PID),
    root: flags.root === undefined ? undefined : parseRoot(flags.root),
  };
  const snapshot = openSnapshot(file);
  try {
    const subject = new Subject(file, new PhysicalMemory(snapshot.ram), snapshot.vcpus, options);
    const view = verb.show(subject, args, { physical: flags.physical === true });
    const text =
      flags.json === true ? JSON.stringify(view.json, undefined, 2) : view.lines.join("\n");
    await print(`${text}\n`);
  } finally {
    snapshot.close();
  }
  return EXIT_OK;
}
