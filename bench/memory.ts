// SPDX-License-Identifier: MIT
/**
 * Guest memory: cost of a translation and of reads by virtual address, over a
 * synthetic 4-level table in a buffer. No result cache takes part.
 *
 *     bun bench/memory.ts [--json]
 */
import { GuestRam } from "../src/bridge/ram.ts";
import { FakeTables } from "../src/memory/fake_tables.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { Translation, translate } from "../src/memory/translate.ts";
import { VirtualMemory } from "../src/memory/virtual.ts";

const KERNEL = -0x7f000000;
const PAGES = 512;
const ROUNDS = 2_000_000;
const REPEATS = 7;

/** Best nanoseconds an operation of several runs; the best is the least disturbed by others. */
function measure(body: (rounds: number) => number): number {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < REPEATS; i++) {
    const start = Bun.nanoseconds();
    if (Number.isNaN(body(ROUNDS))) throw new Error("a read failed");
    best = Math.min(best, (Bun.nanoseconds() - start) / ROUNDS);
  }
  return Math.round(best * 10) / 10;
}

const memory = new PhysicalMemory(GuestRam.allocate(64 * 0x100000));
const tables = new FakeTables(memory, "4level", 0x10000);
for (let i = 0; i < PAGES; i++) tables.map(KERNEL + i * 0x1000, 0x1000000 + i * 0x2000);
tables.map(KERNEL + 0x40000000, 0x2000000, { pageSize: 0x200000 });
const virtual = new VirtualMemory(memory, tables.root, "4level");
const t = new Translation();

/** Walks over the pages in an order that no stride prefetcher helps with. */
function address(i: number): number {
  return KERNEL + ((i * 197) & (PAGES - 1)) * 0x1000 + ((i * 8) & 0xff8);
}

const results: Record<string, number> = {
  "translate a kernel GVA, 4 KiB pages": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) {
      translate(memory, tables.root, "4level", address(i), t);
      sum += t.gpa;
    }
    return sum;
  }),
  "translate a kernel GVA, 2 MiB page": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) {
      translate(memory, tables.root, "4level", KERNEL + 0x40000000 + ((i * 8) & 0xfffff), t);
      sum += t.gpa;
    }
    return sum;
  }),
  "read a QWORD by GVA": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += virtual.readU64(address(i))?.lo ?? Number.NaN;
    return sum;
  }),
  "read a pointer by GVA": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += virtual.readPtr(address(i));
    return sum;
  }),
  "read a DWORD by GVA": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += virtual.read32(address(i));
    return sum;
  }),
  "read a DWORD by GPA": measure((n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += memory.read32((i * 4) & 0xffffff);
    return sum;
  }),
};

if (process.argv.includes("--json")) {
  console.log(JSON.stringify({ bench: "memory", unit: "ns", results }));
} else {
  for (const [name, ns] of Object.entries(results)) {
    console.log(`${ns.toFixed(1).padStart(8)} ns  ${name}`);
  }
}
