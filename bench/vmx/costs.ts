// SPDX-License-Identifier: MIT
/**
 * What exits cost: the lines of exit-cost.c, the bounds that they must keep, and the table that
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

/** A table: a line a figure. */
export function costTable(costs: Costs): string[] {
  const row = (name: string, kvm: string, hvi: string, bound: string): string =>
    `${name.padEnd(42)}${kvm.padStart(9)}${hvi.padStart(9)}${bound.padStart(9)}`;
  const lines = [row("instructions", "KVM", "hvi", "bound")];
  for (const [name, by] of costs) {
    const text = (backend: string): string => String(by.get(backend) ?? "-");
    lines.push(row(name, text("kvm"), text("hvi"), String(BOUNDS[name] ?? "")));
  }
  return lines;
}
