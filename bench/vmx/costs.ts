// SPDX-License-Identifier: MIT
/**
 * What exits cost: the lines of exit-cost.c and engine-cost.ts, the bounds that they must keep, and the table that
 * people read.
 */

/** Ticks by name of the figure and backend. Under Bochs a tick is an instruction. */
export type Costs = ReadonlyMap<string, ReadonlyMap<string, number>>;

/** At most so many ticks on hvi. */
const BOUNDS: Readonly<Record<string, number>> = {
  "port write to user space and back": 2600,
  "access exit to user space and back": 3000,
  "CPUID in the kernel": 900,
  "rights of 1 page (KVM: flags of a slot)": 800,
  "rights of 64 pages, one range": 4000,
  "rights of 64 pages, 64 ranges": 4000,
  "engine: write exit, denied by scratch": 12_000,
  "engine: write exit, stepped in another view": 12_000,
};

/** The same exit answered by a C program, whose rest is the module's and the system call's. */
const IN_C: Readonly<Record<string, string>> = {
  "engine: write exit, let through": "write exit, let through",
  "engine: write exit, denied by scratch": "write exit, denied by scratch",
  "engine: write exit, denied, its bytes known": "write exit, denied by scratch",
  "engine: write exit, stepped in another view": "read exit, stepped in another view",
};

export function parseCosts(text: string): Costs {
  const costs = new Map<string, Map<string, number>>();
  for (const line of text.split("\n")) {
    const [name, backend, ticks] = line.split("\t");
    if (name === undefined || backend === undefined || ticks === undefined) continue;
    const row = costs.get(name) ?? new Map<string, number>();
    row.set(backend, Number(ticks));
    costs.set(name, row);
  }
  return costs;
}

/** The figures that are missing or beyond their bound. */
export function overBudget(costs: Costs): string[] {
  const bad: string[] = [];
  for (const [name, bound] of Object.entries(BOUNDS)) {
    const have = costs.get(name)?.get("hvi");
    if (have === undefined) bad.push(`${name}: not measured on hvi`);
    else if (have > bound) bad.push(`${name}: ${have}, bound ${bound}`);
  }
  return bad;
}

/** Where the engine's instructions go: the module, a system call through bun:ffi, and the rest of Bun. */
function parts(costs: Costs): string[] {
  const hvi = (name: string): number => costs.get(name)?.get("hvi") ?? Number.NaN;
  const call = hvi("engine: system call that fails at once");
  const lines: string[] = [];
  for (const [name, same] of Object.entries(IN_C)) {
    const module = hvi(same) - hvi("system call that fails at once");
    const rest = hvi(name) - module - call;
    if (Number.isNaN(rest)) continue;
    lines.push(`${name}: module ${module}, system call ${call}, Bun ${rest}`);
  }
  return lines;
}

/** A table: a line a figure. */
export function costTable(costs: Costs): string[] {
  const row = (name: string, kvm: string, hvi: string, bound: string): string =>
    `${name.padEnd(46)}${kvm.padStart(9)}${hvi.padStart(9)}${bound.padStart(9)}`;
  const lines = [row("instructions", "KVM", "hvi", "bound")];
  for (const [name, by] of costs) {
    const text = (backend: string): string => String(by.get(backend) ?? "-");
    lines.push(row(name, text("kvm"), text("hvi"), String(BOUNDS[name] ?? "")));
  }
  return [...lines, ...parts(costs)];
}
