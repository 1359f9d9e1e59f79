// SPDX-License-Identifier: MIT
/**
 * What an exit costs: a 64-bit guest stores to a hooked page in a loop; each store leaves the guest,
 * is decoded, finds its hook, is allowed or denied, and goes on. Nothing is raised, so nothing may be
 * allocated: the heap's growth over a million exits is measured too.
 *
 *     bun bench/exit.bench.ts [--json]
 */
import {
  HVI_EXIT_EPT,
  HVI_R,
  HVI_RDI,
  HVI_W,
  HVI_X,
  openVm,
  type Vcpu,
  type Vm,
} from "../src/bridge/index.ts";
import { ALLOW, DENY, type HookAction } from "../src/ept/gpa-hooks.ts";
import { Introspection } from "../src/introspection.ts";
import { enterLinux64 } from "../src/machine/load/entry.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { growth, measure, report } from "./measure.ts";

const ROUNDS = 200_000;
const MILLION = 1_000_000;
const CODE = 0x100000;
const HOOKED = 0x180000;
/** Bytes of heap that a million exits may leave: less than an eighth of a byte each. */
const MAX_GROWTH = 128 * 1024;
/** Exits a second that must be reached with one hook. */
const MIN_RATE = 250_000;

/** mov [rdi], al; jmp back */
const STORE = [0x88, 0x07, 0xeb, 0xfc];

function guest(): Vm {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 4 << 20 });
  vm.setCpuid(vm.supportedCpuid());
  vm.mapMemory();
  vm.ram.bytes[0].set(STORE, CODE);
  enterLinux64(vm.ram, vm.vcpus[0], CODE, 0);
  vm.vcpus[0].setGprNumber(HVI_RDI, HOOKED);
  return vm;
}

/** Lets the guest exit `n` times with this answer; how many were for the hook. */
function exits(vm: Vm, core: Introspection, n: number): number {
  let ours = 0;
  for (let i = 0; i < n; i++) {
    const vcpu = vm.run();
    if (vcpu.exitReason === HVI_EXIT_EPT && core.handle(vcpu)) ours++;
  }
  return ours === n ? n : Number.NaN;
}

function hooked(answer: HookAction): { vm: Vm; core: Introspection } {
  const vm = guest();
  const core = new Introspection(vm, new PhysicalMemory(vm.ram));
  core.hooks.add(HOOKED / 4096, HVI_W, () => answer);
  core.hooks.commit();
  return { vm, core };
}

const allowed = hooked(ALLOW);
const allow = measure(ROUNDS, (n) => exits(allowed.vm, allowed.core, n));
const grownByExits = growth(() => exits(allowed.vm, allowed.core, MILLION));

// The engine's part alone: the record of one exit, handled again and again.
const vcpu: Vcpu = allowed.vm.run();
const dispatch = (n: number): number => {
  let ours = 0;
  for (let i = 0; i < n; i++) if (allowed.core.handle(vcpu)) ours++;
  return ours === n ? n : Number.NaN;
};
const inside = measure(ROUNDS, dispatch);
const grownByDispatch = growth(() => dispatch(MILLION));
allowed.vm.close();

const denied = hooked(DENY);
const deny = measure(ROUNDS, (n) => exits(denied.vm, denied.core, n));
denied.vm.close();

// The same exit answered at once: what the backend and the call alone cost.
const bare = guest();
bare.setRights(0, HOOKED / 4096, 1, HVI_R | HVI_X);
const floor = measure(ROUNDS, (n) => {
  for (let i = 0; i < n; i++) bare.run().resume();
  return n;
});
bare.close();

const peer = { name: "answered without a look", ns: floor };
report("exit", [
  { name: "EPT violation, answered without a look", ns: floor },
  {
    name: "the engine's part: record to reply, decode cache hit, one hook",
    ns: inside,
    bound: 1500,
  },
  { name: "EPT violation, one hook, allowed", ns: allow, bound: 1e9 / MIN_RATE, peer },
  { name: "EPT violation, one hook, denied (scratch)", ns: deny, bound: 1e9 / MIN_RATE, peer },
]);
if (!process.argv.includes("--json")) {
  console.log(`${Math.round(1e9 / allow)} exits a second with one hook (at least ${MIN_RATE})`);
  console.log(`${grownByExits} bytes of heap more after a million exits`);
  console.log(`${grownByDispatch} bytes of heap more after a million times the engine's part`);
}
for (const bytes of [grownByExits, grownByDispatch]) {
  if (bytes <= MAX_GROWTH) continue;
  console.error(`the heap grew by ${bytes} bytes: something on the way of an exit allocates`);
  process.exitCode = 1;
}
