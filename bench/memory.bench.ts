// SPDX-License-Identifier: MIT
/**
 * Guest memory: cost of a translation and of reads by virtual address, over a
 * synthetic 4-level table in a buffer, and what the GPA cache would cost or save.
 *
 *     bun bench/memory.bench.ts [--json]
 */
import { ptr } from "bun:ffi";
import { GuestRam } from "../src/bridge/ram.ts";
import { FakeTables } from "../src/memory/fake-tables.fixture.ts";
import { GpaCache } from "../src/memory/gpa-cache.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { DEFAULT_FEATURES, Translation, translate, Walk } from "../src/memory/translate.ts";
import { VirtualMemory } from "../src/memory/virtual.ts";
import { measure, peers, report } from "./measure.ts";

const KERNEL = -0x7f000000;
const PAGES = 512;
const ROUNDS = 100_000;

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
const gpaOnly = measure(ROUNDS, (n) => {
  let sum = 1;
  const walk = new Walk();
  walk.aim(memory, tables.root, "4level", DEFAULT_FEATURES);
  for (let i = 0; i < n; i++) sum += walk.to(address(i), undefined);
  return sum;
});
const block = new Uint8Array(64);
const readBlock = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += virtual.readPartial(address(i) & ~0x7f, block);
  return sum;
});
const page = new Uint8Array(0x1000);
const readPage = measure(ROUNDS / 4, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += virtual.readPartial(address(i) & ~0xfff, page);
  return sum;
});

/** Physical address of the page that address() names. */
const gpaAt = (i: number): number => 0x1000000 + ((i * 197) & (PAGES - 1)) * 0x2000;
const cache = new GpaCache(memory);
const cacheHit = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) {
    const entry = cache.findAndAdd(gpaAt(i));
    sum += cache.bytes(entry).length;
    cache.release(entry);
  }
  return sum;
});
const newView = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) sum += memory.map(gpaAt(i), 0x1000)?.length ?? Number.NaN;
  return sum;
});
const cacheFetch = measure(ROUNDS, (n) => {
  let sum = 1;
  for (let i = 0; i < n; i++) if (cache.fetch(gpaAt(i), block)) sum++;
  return sum;
});

/** Tables above 4 GiB, in the second of two ranges of RAM. */
const two = new GuestRam(
  [
    { gpa: 0, size: 32 * 0x100000, offset: 0 },
    { gpa: 0x100000000, size: 32 * 0x100000, offset: 32 * 0x100000 },
  ],
  [new ArrayBuffer(64 * 0x100000)],
);
const highMemory = new PhysicalMemory(two);
const HIGH = 0x100000000;
const high = new FakeTables(highMemory, "4level", HIGH + 0x10000);
for (let i = 0; i < PAGES; i++) high.map(KERNEL + i * 0x1000, HIGH + 0x800000 + i * 0x2000);
const translateHigh = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    translate(highMemory, high.root, "4level", address(i), t);
    sum += t.gpa;
  }
  return sum;
});
// Last: the walk has then two kinds of memory to deal with, which costs all that comes after.
const walkCache = new GpaCache(memory);
const translateCached = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    translate(walkCache, tables.root, "4level", address(i), t);
    sum += t.gpa;
  }
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
  { name: "translate without the record", ns: gpaOnly, bound: 60 },
  { name: "translate a kernel GVA, tables above 4 GiB", ns: translateHigh },
  { name: "read 64 bytes by GVA", ns: readBlock },
  { name: "read 4 KiB by GVA", ns: readPage },
  {
    name: "GPA cache: a hit, with its release",
    ns: cacheHit,
    bound: 25,
    peer: { name: "a new view of the page", ns: newView },
  },
  { name: "GPA cache: fetch 64 bytes", ns: cacheFetch },
  {
    name: `translate a kernel GVA through the GPA cache, hit rate ${walkCache.hitRate.toFixed(5)}`,
    ns: translateCached,
    peer: { name: "without it", ns: translate4k },
  },
]);
