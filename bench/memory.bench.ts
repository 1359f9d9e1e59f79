// SPDX-License-Identifier: MIT
/**
 * Guest memory: cost of a translation and of reads by virtual address, over a
 * synthetic 4-level table in a buffer. No result cache takes part.
 *
 *     bun bench/memory.bench.ts [--json]
 */
import { ptr } from "bun:ffi";
import { GuestRam } from "../src/bridge/ram.ts";
import { FakeTables } from "../src/memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { Translation, translate } from "../src/memory/translate.ts";
import { VirtualMemory } from "../src/memory/virtual.ts";
import { measure, peers, report } from "./measure.ts";

const KERNEL = -0x7f000000;
const PAGES = 512;
const ROUNDS = 2_000_000;

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

const translate4k = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    translate(memory, tables.root, "4level", address(i), t);
    sum += t.gpa;
  }
  return sum;
});
const translate2m = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    translate(memory, tables.root, "4level", KERNEL + 0x40000000 + ((i * 8) & 0xfffff), t);
    sum += t.gpa;
  }
  return sum;
});
const readQword = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += virtual.readU64(address(i))?.lo ?? Number.NaN;
  return sum;
});
const readPointer = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += virtual.readPtr(address(i));
  return sum;
});
const readDword = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += virtual.read32(address(i));
  return sum;
});
const readPhysical = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += memory.read32((i * 4) & 0xffffff);
  return sum;
});

const c = peers();
const base = ptr(memory.ram.bytes[0]);
const walk = "bare walk in C";
const walkNs = measure(ROUNDS, (n) => c.peer_translate(base, tables.root, KERNEL, PAGES, n));
const readNs = measure(ROUNDS, (n) => c.peer_read(base, tables.root, KERNEL, PAGES, n));

report("memory", [
  {
    name: "translate a kernel GVA, 4 KiB pages",
    ns: translate4k,
    bound: 60,
    peer: { name: walk, ns: walkNs },
  },
  { name: "translate a kernel GVA, 2 MiB page", ns: translate2m, bound: 60 },
  {
    name: "read a QWORD by GVA",
    ns: readQword,
    bound: 100,
    peer: { name: `${walk} and read`, ns: readNs },
  },
  { name: "read a pointer by GVA", ns: readPointer, bound: 100 },
  { name: "read a DWORD by GVA", ns: readDword, bound: 100 },
  { name: "read a DWORD by GPA", ns: readPhysical },
]);
