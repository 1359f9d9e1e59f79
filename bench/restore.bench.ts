// SPDX-License-Identifier: MIT
/**
 * Milliseconds from opening a 256 MiB snapshot to its first guest instruction, beside reading the
 * same file whole, which a restore without copy-on-write would have to do.
 *
 *     bun bench/restore.bench.ts [--json]
 */
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { guest } from "../fixtures/guests.ts";
import { Console } from "../src/machine/console.ts";
import { openSnapshot, restoreMachine } from "../src/machine/snapshot/index.ts";
import { report } from "./measure.ts";

const root = join(import.meta.dir, "..");
const ROUNDS = 5;
/** Nanoseconds (issue 2). */
const BOUND = 50e6;

const folder = mkdtempSync(join(tmpdir(), "hvi-restore-"));
try {
  const file = join(folder, "booted.hvi");
  const { kernel, initrd } = await guest("6.1");
  const argv = ["run", "--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet"];
  const child = Bun.spawn(
    [process.execPath, join(root, "src/main.ts"), ...argv].concat([
      "--memory",
      "256M",
      "--protect",
      "none",
      "--snapshot-at",
      "HVI-SHELL ready",
      "--snapshot",
      file,
    ]),
    { stdio: ["ignore", "ignore", "inherit"] },
  );
  if ((await child.exited) !== 0) throw new Error("no snapshot was taken");

  const console = new Console(openSync("/dev/null", "w"));
  const restore = (): number => {
    const start = Bun.nanoseconds();
    const snapshot = openSnapshot(file);
    const machine = restoreMachine(snapshot, {
      backend: "soft",
      console,
      interactive: false,
      inputOpen: false,
      epoch: 0,
    });
    const [vcpu] = machine.vm.vcpus;
    const before = vcpu?.instructions ?? 0;
    machine.vm.run((vcpu?.tsc ?? 0) + 1);
    const ns = Bun.nanoseconds() - start;
    if ((vcpu?.instructions ?? 0) <= before) throw new Error("the guest did not run");
    machine.close();
    snapshot.close();
    return ns;
  };
  const first = restore();
  let best = first;
  for (let i = 1; i < ROUNDS; i++) best = Math.min(best, restore());
  const start = Bun.nanoseconds();
  const { length } = readFileSync(file);
  const whole = {
    name: `reading the file's ${(length / 2 ** 20).toFixed(0)} MiB`,
    ns: Bun.nanoseconds() - start,
  };
  report("restore", [
    {
      name: "restore to first instruction, first time in the process",
      ns: first,
      bound: BOUND,
      peer: whole,
    },
    { name: "restore to first instruction, again", ns: best, bound: BOUND, peer: whole },
  ]);
} finally {
  rmSync(folder, { recursive: true });
}
