// SPDX-License-Identifier: MIT
/**
 * What hooks on registers and the checks of integrity regions cost. A real-mode guest writes LSTAR in
 * a loop; each write leaves the guest, is put to a hook and goes on. Nothing may be allocated: the
 * heap's growth over a million exits is measured too.
 *
 *     bun bench/registers.bench.ts [--json]
 */
import { GuestRam, HVI_INTERCEPT_MSR_WRITE, openVm, type Vm } from "../src/bridge/index.ts";
import { ACCEPT, Integrity, MAX_COPIED } from "../src/ept/integrity.ts";
import { ALLOW } from "../src/hook-action.ts";
import { enterRealMode } from "../src/machine/load/entry.ts";
import { FakeTables } from "../src/memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { VirtualMemory } from "../src/memory/virtual.ts";
import { RegisterHooks } from "../src/registers/register-hooks.ts";
import { growth, measure, report } from "./measure.ts";

const ROUNDS = 200_000;
const MILLION = 1_000_000;
const CODE_PAGE = 8;
const LSTAR = 0xc0000082;
/** Bytes of heap that a million exits may leave: less than an eighth of a byte each. */
const MAX_GROWTH = 128 * 1024;

/** mov ecx, LSTAR; wrmsr; jmp back to the wrmsr */
const WRITE = [0x66, 0xb9, 0x82, 0x00, 0x00, 0xc0, 0x0f, 0x30, 0xeb, 0xfc];

function guest(): Vm {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 1 << 20 });
  vm.mapMemory();
  vm.ram.bytes[0].set(WRITE, CODE_PAGE * 4096);
  enterRealMode(vm.vcpus[0], CODE_PAGE);
  return vm;
}

/** Lets the guest exit `n` times; how many were for the hooks. */
function exits(vm: Vm, hooks: RegisterHooks, n: number): number {
  let ours = 0;
  for (let i = 0; i < n; i++) {
    const vcpu = vm.run();
    if (hooks.dispatch(vcpu)) ours++;
  }
  return ours === n ? n : Number.NaN;
}

const hooked = guest();
const hooks = new RegisterHooks(hooked);
hooks.addMsr(LSTAR, () => ALLOW);
const whole = measure(ROUNDS, (n) => exits(hooked, hooks, n));

const grown = growth(() => exits(hooked, hooks, MILLION));

// The record of the last exit stands: what TypeScript alone costs.
const vcpu = hooked.run();
const dispatch = measure(ROUNDS, (n) => {
  let ours = 0;
  for (let i = 0; i < n; i++) if (hooks.dispatch(vcpu)) ours++;
  return ours;
});
hooked.close();

const bare = guest();
bare.intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR, 1);
const floor = measure(ROUNDS, (n) => {
  for (let i = 0; i < n; i++) bare.run().resume();
  return n;
});
bare.close();

/** A check of 4 MiB of regions of this length, in nanoseconds a 4 KiB page. */
function check(length: number): number {
  const size = 4 << 20;
  const physical = new PhysicalMemory(GuestRam.allocate(3 * size));
  const tables = new FakeTables(physical, "4level", 0x10000);
  for (let at = 0; at < size; at += 0x1000) tables.map(at, size + at);
  const space = new VirtualMemory(physical, tables.root, "4level");
  const integrity = new Integrity(physical);
  for (let at = 0; at < size; at += length) integrity.add(space, at, length, () => ACCEPT);
  if (integrity.checksPerRound !== 1) throw new Error("not one round");
  return (
    measure(16, (n) => {
      for (let i = 0; i < n; i++) integrity.check();
      return n;
    }) /
    (size / 0x1000)
  );
}

report("registers", [
  {
    name: "hooked MSR write: exit, dispatch, answer, entry",
    ns: whole,
    peer: { name: "the same exit answered at once", ns: floor },
  },
  { name: "dispatch of it in TypeScript", ns: dispatch, bound: 500 },
  { name: "integrity: a page compared with its copy", ns: check(MAX_COPIED) },
  { name: "integrity: a page hashed", ns: check(4 << 20) },
]);
if (!process.argv.includes("--json")) {
  console.log(`${String(grown).padStart(8)} bytes of heap more after a million exits`);
}
if (grown > MAX_GROWTH) {
  console.error(`the heap grew by ${grown} bytes: something on the way of an exit allocates`);
  process.exitCode = 1;
}
