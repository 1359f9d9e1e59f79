// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  HVI_ACCESS_WRITE,
  HVI_REPLY_RESUME,
  HVI_REPLY_SCRATCH,
  REPLY_ACTION,
} from "../bridge/index.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { ALLOW, DENY, GpaHooks, type HookAction } from "./gpa-hooks.ts";
import { type TranslationChange, TranslationWatch } from "./page-tables.ts";
import { noInstructions, violate } from "./violation.fixture.ts";

const BASE = -0x7f000000; // 0xffffffff81000000
const PML4 = 0x1000;
const PDPT = 0x2000;
const PD = 0x3000;
const PT = 0x4000;
const NEW_PT = 0x6000;

/** PML4[511] -> PDPT[510] -> PD[8] a 2 MiB page, PD[9] -> PT; the watched range is 4 MiB from BASE. */
function setup(handler: (c: TranslationChange) => HookAction) {
  const { vm, backend } = fakeVm();
  const memory = new PhysicalMemory(vm.ram);
  memory.writeU64(PML4 + 511 * 8, PDPT | 3, 0);
  memory.writeU64(PDPT + 510 * 8, PD | 3, 0);
  memory.writeU64(PD + 8 * 8, 0x40000000 | 0x83, 0);
  memory.writeU64(PD + 9 * 8, PT | 3, 0);
  for (let i = 0; i < 512; i++) memory.writeU64(PT + i * 8, 0x50000 + i * 0x1000 + 1, 0);
  const hooks = new GpaHooks(vm, noInstructions);
  let bytes: number[] | undefined;
  const watch = new TranslationWatch(
    hooks,
    memory,
    (_access, out) => {
      if (bytes === undefined) return -1;
      out.set(bytes);
      return bytes.length;
    },
    PML4,
    BASE,
    BASE + 0x400000,
    handler,
  );
  const write = (gpa: number, what: number[] | undefined, size = what?.length ?? 8): number => {
    bytes = what;
    const vcpu = violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size });
    expect(hooks.dispatch(vcpu)).toBe(true);
    hooks.commit();
    return vcpu.u32[REPLY_ACTION >>> 2] as number;
  };
  return { vm, backend, memory, hooks, watch, write };
}

function entry(lo: number, hi = 0): number[] {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, lo >>> 0, true);
  view.setUint32(4, hi >>> 0, true);
  return [...new Uint8Array(view.buffer)];
}

test("every table on the way is hooked, and nothing else", () => {
  const { backend, watch } = setup(() => ALLOW);
  expect([...backend.restricted(0).keys()].sort()).toEqual([1, 2, 3, 4]);
  expect(watch.tableCount).toBe(4);
});

test("a new address is reported with level, linear address, old and new entry", () => {
  const seen: TranslationChange[] = [];
  const { write } = setup((c) => {
    seen.push({ ...c });
    return DENY;
  });
  expect(write(PT + 3 * 8, entry(0x99001))).toBe(HVI_REPLY_SCRATCH);
  expect(seen).toHaveLength(1);
  expect(seen[0]).toMatchObject({
    level: 1,
    gva: BASE + 0x203000,
    oldLo: 0x53001,
    newLo: 0x99001,
    known: true,
    entryGpa: PT + 24,
  });
});

test.each([
  ["accessed and dirty bits", PT, entry(0x50061)],
  ["software bits", PT, entry(0x50e01)],
  ["an entry outside the range", PD + 10 * 8, entry(0x77083)],
  ["nothing at all", PD + 8 * 8, entry(0x40000083)],
])("a change of %s is none", (_what, gpa, bytes) => {
  let calls = 0;
  const { write } = setup(() => {
    calls++;
    return DENY;
  });
  expect(write(gpa, bytes)).toBe(HVI_REPLY_RESUME);
  expect(calls).toBe(0);
});

test.each([
  ["P", entry(0x50000)],
  ["R/W", entry(0x50003)],
  ["U/S", entry(0x50005)],
  ["NX", entry(0x50001, 0x80000000)],
  ["the address above 4 GiB", entry(0x50001, 1)],
])("a change of %s is one", (_what, bytes) => {
  let calls = 0;
  const { write } = setup(() => {
    calls++;
    return ALLOW;
  });
  write(PT, bytes);
  expect(calls).toBe(1);
});

test("a write of part of an entry is laid over the rest", () => {
  const seen: number[] = [];
  const { write } = setup((c) => {
    seen.push(c.newLo, c.newHi);
    return DENY;
  });
  write(PT + 5 * 8 + 1, [0x12, 0x34]);
  expect(seen).toEqual([0x341201, 0]);
});

test("a 16-byte write that covers two entries asks for both", () => {
  const seen: number[] = [];
  const { write } = setup((c) => {
    seen.push(c.gva);
    return ALLOW;
  });
  write(PT + 8, [...entry(0x1001), ...entry(0x2001)]);
  expect(seen).toEqual([BASE + 0x201000, BASE + 0x202000]);
});

test("a large page that is split has its new table hooked", () => {
  const { write, memory, backend } = setup(() => ALLOW);
  for (let i = 0; i < 512; i++) memory.writeU64(NEW_PT + i * 8, 0x40000001 + i * 0x1000, 0);
  write(PD + 8 * 8, entry(NEW_PT | 3));
  expect(backend.restricted(0).has(NEW_PT / 4096)).toBe(true);
});

test("an instruction whose value is not known is asked about, as not known", () => {
  const seen: boolean[] = [];
  const { write } = setup((c) => {
    seen.push(c.known);
    return DENY;
  });
  expect(write(PT, undefined)).toBe(HVI_REPLY_SCRATCH);
  expect(seen).toEqual([false]);
});

test("tables that point to themselves do not hang it", () => {
  const { vm } = fakeVm();
  const memory = new PhysicalMemory(vm.ram);
  for (let i = 0; i < 512; i++) memory.writeU64(PML4 + i * 8, PML4 | 3, 0);
  const hooks = new GpaHooks(vm, noInstructions);
  new TranslationWatch(
    hooks,
    memory,
    () => -1,
    PML4,
    BASE,
    BASE + 0x400000,
    () => ALLOW,
  );
  expect(hooks.pageCount).toBe(1);
});

test("removal gives every right back", () => {
  const { hooks, watch, backend } = setup(() => ALLOW);
  watch.remove();
  hooks.commit();
  expect(backend.restricted(0).size).toBe(0);
});
