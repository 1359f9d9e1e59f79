// SPDX-License-Identifier: MIT
/**
 * Guest introspection: how long a kernel takes to be identified, and what
 * questions cost after that.
 *
 *     bun bench/guest.bench.ts [--json]
 */
import type { Series } from "../fixtures/kernels/kernels.ts";
import { identify } from "../src/guest/identify.ts";
import { copyKernelImage } from "../src/guest/linux/image.ts";
import { findKallsyms } from "../src/guest/linux/kallsyms.ts";
import type { LinuxGuest } from "../src/guest/linux/kernel.ts";
import { loadKernel } from "../src/guest/linux/loaded.fixture.ts";
import { AT, DIRECT, HEAP, syntheticGuest, TASK } from "../src/guest/synthetic.fixture.ts";
import { measure, type Row, report } from "./measure.ts";

const TASKS = 1000;
const rows: Row[] = [];

for (const series of ["6.1", "6.12"] as Series[]) {
  const { memory, cpu } = await loadKernel(series, "quiet");
  let guest: LinuxGuest | undefined;
  const whole = measure(1, () => {
    const attempt = identify(memory, cpu);
    if (attempt.ok) guest = attempt.guest;
    return attempt.ok ? 1 : 0;
  });
  if (guest === undefined) throw new Error(`Linux ${series} is not identified`);
  const { symbols } = guest;
  const image = copyKernelImage(memory, cpu.cr3, 4, undefined);
  if (image === undefined) throw new Error("no image");
  const tables = measure(1, () =>
    typeof findKallsyms(image.bytes, image.base) === "string" ? 0 : 1,
  );
  rows.push({ name: `identify Linux ${series}, BTF and ${symbols.count} symbols`, ns: whole });
  rows.push({ name: `find and read kallsyms of ${series}`, ns: tables, bound: 300e6 });
  const at = guest.symbols.lookup("vfs_read") ?? 0;
  rows.push({
    name: "symbol by name",
    ns: measure(20_000, (n) => {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += symbols.lookup("sys_call_table") ?? Number.NaN;
      return sum;
    }),
  });
  rows.push({
    name: "symbol by address",
    ns: measure(20_000, (n) => {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += symbols.at(at + i)?.size ?? Number.NaN;
      return sum;
    }),
  });
}

const g = syntheticGuest();
let last = g.base + AT.initTask;
for (let i = 1; i <= TASKS; i++) {
  const task = DIRECT + HEAP + i * 0x400;
  g.write32(task + TASK.pid, i);
  g.write32(task + TASK.tgid, i);
  g.writeText(task + TASK.comm, `worker/${i}`);
  g.writePtr(task + TASK.parent, g.base + AT.initTask);
  g.writePtr(last + TASK.tasks, task + TASK.tasks);
  g.writePtr(task + TASK.tasks, g.base + AT.initTask + TASK.tasks);
  last = task;
}
const attempt = identify(g.memory, g.cpu);
if (!attempt.ok) throw new Error(attempt.reason);
rows.push({
  name: "processes, each",
  ns: measure(TASKS * 10, (n) => {
    let seen = 0;
    while (seen < n) seen += attempt.guest.tasks().tasks.length - 1;
    return seen === n ? 1 : 0;
  }),
});

report("guest", rows);
