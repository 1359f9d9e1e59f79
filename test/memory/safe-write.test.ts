// SPDX-License-Identifier: MIT
/**
 * Safe writes against a CPU: hv/soft stores to a page under random tables and
 * control registers, and safeWrite must come to the same end: written or not,
 * the same page fault or EPT violation, the same accessed and dirty bits.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { resolve } from "node:path";
import * as abi from "../../src/bridge/abi.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";
import { safeWrite, WriteAccess, WriteOutcome, WriteStop } from "../../src/memory/safe-write.ts";
import { pagingFeaturesOf } from "../../src/memory/translate.ts";
import { VirtualMemory } from "../../src/memory/virtual.ts";
import { Bench } from "../conformance/bench.ts";
import { imagesFrom } from "../conformance/guests.ts";
import {
  type Mode,
  PORT_DONE,
  PORT_VECTOR,
  SEL,
  STACK,
  STACK_RSP0,
  STACK_USER,
  TABLES,
  WALK,
} from "../conformance/layout.ts";

const directory = resolve(import.meta.dir, "../../build/conformance");
const STATES = Number(process.env.SAFE_WRITE_STATES ?? 2000);
const PORT_PF = PORT_VECTOR + 14;

let seed = 12345;
/** 0 .. n - 1 */
function random(n: number): number {
  seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
  return Math.floor((seed / 2 ** 32) * n);
}
const chance = (percent: number): boolean => random(100) < percent;

beforeAll(() => {
  const guests = resolve(import.meta.dir, "../conformance/guests");
  const make = Bun.spawnSync(["make", "-s", "-C", guests]);
  if (make.exitCode !== 0) throw new Error(`the guests cannot be built: ${make.stderr.toString()}`);
});

const benches: Bench[] = [];
afterAll(() => {
  for (const t of benches) t.close();
});

/** What the CPU itself uses (descriptor tables, stacks) must not be the user's: SMAP counts for it. */
function supervisorPages(t: Bench): void {
  const pt = TABLES + 0x3000;
  for (let gpa = 0; gpa < 0x200000; gpa += 0x1000) {
    const code = gpa >= 0x100000 && gpa < STACK_RSP0 - 0x1000;
    const entry = pt + 8 * (gpa >>> 12);
    if (!code && gpa !== STACK_USER - 0x1000) t.put64(entry, t.get64(entry) & ~4n);
  }
}

function flags(entry: bigint): bigint {
  let e = entry & ~0x67n;
  if (chance(92)) e |= 1n;
  if (chance(75)) e |= 2n;
  if (chance(75)) e |= 4n;
  if (chance(50)) e |= 0x20n;
  if (chance(50)) e |= 0x40n;
  return e;
}

function state(t: Bench, mode: Mode): string {
  const walk = WALK[mode] ?? [];
  const user = mode === "user";
  const { cpu, vm } = t;
  const vcpu = t.vcpu();
  // All entries of the walk, and that of the neighbour page, at random.
  const entries = [...walk, (walk[walk.length - 1] ?? 0) + 8];
  const kept = entries.map((gpa) => t.get64(gpa));
  for (const [i, gpa] of entries.entries()) {
    let e = flags(kept[i] ?? 0n);
    if (chance(4)) e |= 1n << 50n;
    t.put64(gpa, e);
  }
  const crossing = chance(40);
  const offset = crossing ? 0xfff - random(7) : random(0xff8);
  const size = crossing ? 8 : ([1, 2, 4, 8][random(4)] ?? 1);
  const gva = chance(3) ? 0x800000000000n + BigInt(offset) : t.d(0, offset);
  const rights = [0, 1].map(() => (chance(85) ? abi.HVI_RWX : abi.HVI_R | abi.HVI_X));
  for (const [n, r] of rights.entries()) t.rights(t.p(n), r);
  const wp = chance(60) ? 0x10000 : 0;
  const smap = chance(50) ? 0x200000 : 0;
  const ac = chance(50) ? 0x40000 : 0;
  cpu.segment("cs", user ? SEL.userCode64 : SEL.code64, 0, 0xffffffff, user ? 0xa0fb : 0xa09b);
  cpu.segment("ss", user ? SEL.userData : SEL.data, 0, 0xffffffff, user ? 0xc0f3 : 0xc093);
  cpu.setAll({
    rip: t.symbol(`st${size}`),
    rdi: gva,
    rax: 0x1122334455667788n,
    rsp: user ? STACK_USER - 0x100 : STACK - 0x100,
    rflags: (user ? 0x3002 : 2) | ac,
    cr0: 0x80000033 + wp,
    cr4: 0x40620 | smap,
    cr3: TABLES,
  });

  // What safeWrite makes of it, in memory put back afterwards.
  const tables = entries.map((gpa) => t.get64(gpa));
  const data = new PhysicalMemory(vm.ram).map(t.p(0), 0x2000) as Uint8Array;
  data.fill(0);
  const signed = Number(BigInt.asIntN(64, gva));
  const physicalBits = 46;
  const features = pagingFeaturesOf(0x40620, 0xd01, physicalBits);
  const v = new VirtualMemory(new PhysicalMemory(vm.ram), TABLES, "4level", features);
  const out = new WriteOutcome();
  const bytes = Uint8Array.from([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11].slice(0, size));
  const ok = safeWrite(
    v,
    signed,
    bytes,
    new WriteAccess().from(vcpu, user ? 3 : 0),
    (gfn) => vm.rights(0, gfn),
    out,
  );
  const ours = [...entries.map((gpa) => t.get64(gpa)), Bun.hash(data)];
  for (const [i, gpa] of entries.entries()) t.put64(gpa, tables[i] ?? 0n);
  data.fill(0);

  // What the CPU makes of it. Setting CR3 and CR4 by the ABI flushes what it has translated.
  vcpu.retry();
  vm.run(vcpu.tsc + 10_000);
  const theirs = [...entries.map((gpa) => t.get64(gpa)), Bun.hash(data)];
  const reason = vcpu.exitReason;
  let cpuEnd: string;
  if (reason === abi.HVI_EXIT_IO && vcpu.exitNumber === PORT_DONE) cpuEnd = "written";
  else if (reason === abi.HVI_EXIT_IO && vcpu.exitNumber === PORT_PF) {
    cpuEnd = `#PF ${t.get64(Number(t.reg("rsp")))} at ${t.reg("cr2").toString(16)}`;
  } else if (reason === abi.HVI_EXIT_IO) cpuEnd = "not canonical";
  else if (reason === abi.HVI_EXIT_EPT) cpuEnd = `EPT ${vcpu.exitGpa.toString(16)}`;
  else cpuEnd = reason === abi.HVI_EXIT_ENTRY_FAILED ? vcpu.entryFailure : vcpu.exitName;

  let end = "written";
  if (!ok) {
    const where = BigInt.asUintN(64, BigInt(out.gva));
    if (out.stop === WriteStop.PageFault) end = `#PF ${out.errorCode} at ${where.toString(16)}`;
    else if (out.stop === WriteStop.NotCanonical) end = "not canonical";
    else if (out.stop === WriteStop.Ept) end = `EPT ${v.gpaOf(out.gva).toString(16)}`;
    else end = WriteStop[out.stop] ?? "";
  }
  expect(ok).toBe(cpuEnd === "written");
  // Which page of two is named first is the CPU's business where both are refused.
  if (!crossing) expect(end).toBe(cpuEnd);
  // A CPU may mark entries before it finds that it cannot go on; only what was done counts.
  if (ok) expect(ours).toEqual(theirs);
  for (const [i, gpa] of entries.entries()) t.put64(gpa, kept[i] ?? 0n);
  for (const n of [0, 1]) t.rights(t.p(n), abi.HVI_RWX);
  return ok ? "written" : (WriteStop[out.stop] ?? "");
}

for (const mode of ["long", "user"] as const) {
  test(`${STATES} stores of a CPU in ${mode === "user" ? "user mode" : "ring 0"} end as safe writes`, () => {
    const t = new Bench("soft", imagesFrom(directory), mode, 1);
    benches.push(t);
    supervisorPages(t);
    const ends = new Set<string>();
    for (let i = 0; i < STATES; i++) ends.add(state(t, mode));
    // The states are worth something: every end was met.
    expect([...ends].sort()).toEqual(["Ept", "NotCanonical", "PageFault", "written"]);
  });
}
