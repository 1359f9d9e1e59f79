// SPDX-License-Identifier: MIT
/**
 * What an exit costs: a real-mode guest stores to a hooked page in a loop; each store leaves the
 * guest, finds its hook, is allowed or denied, and goes on. Nothing is raised, so nothing may be
 * allocated: the heap's growth over a million exits is measured too.
 *
 *     bun bench/exit.bench.ts [--json]
 */
import { heapStats } from "bun:jsc";
import { HVI_EXIT_EPT, HVI_R, HVI_W, HVI_X, openVm, type Vm } from "../src/bridge/index.ts";
import { ALLOW, DENY, GpaHooks, type HookAction } from "../src/ept/gpa-hooks.ts";
import { ExitInstructions } from "../src/ept/instructions.ts";
import { enterRealMode } from "../src/machine/load/entry.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { measure, report } from "./measure.ts";

const ROUNDS = 200_000;
const MILLION = 1_000_000;
const CODE_PAGE = 8;
const HOOKED_GFN = 2;
/** Bytes of heap that a million exits may leave: less than an eighth of a byte each. */
const MAX_GROWTH = 128 * 1024;

/** mov [0x2000], al; jmp back */
const STORE = [0xa2, 0x00, 0x20, 0xeb, 0xfb];

function guest(): Vm {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 1 << 20 });
  vm.mapMemory();
  vm.ram.bytes[0].set(STORE, CODE_PAGE * 4096);
  enterRealMode(vm.vcpus[0], CODE_PAGE);
  return vm;
}

/** Lets the guest exit `n` times with this answer; how many were for the hook. */
function exits(vm: Vm, hooks: GpaHooks, n: number): number {
  let ours = 0;
  for (let i = 0; i < n; i++) {
    const vcpu = vm.run();
    if (vcpu.exitReason === HVI_EXIT_EPT && hooks.dispatch(vcpu)) ours++;
  }
  return ours === n ? n : Number.NaN;
}

function hooked(action: HookAction): { vm: Vm; hooks: GpaHooks } {
  const vm = guest();
  const hooks = new GpaHooks(vm, new ExitInstructions(vm, new PhysicalMemory(vm.ram)));
  hooks.add(HOOKED_GFN, HVI_W, () => action);
  hooks.commit();
  return { vm, hooks };
}

const allowed = hooked(ALLOW);
const allow = measure(ROUNDS, (n) => exits(allowed.vm, allowed.hooks, n));

Bun.gc(true);
const before = heapStats().heapSize;
exits(allowed.vm, allowed.hooks, MILLION);
Bun.gc(true);
const growth = heapStats().heapSize - before;
allowed.vm.close();

const denied = hooked(DENY);
const deny = measure(ROUNDS, (n) => exits(denied.vm, denied.hooks, n));
denied.vm.close();

// The same exit answered at once: what the backend and the call alone cost.
const bare = guest();
bare.setRights(0, HOOKED_GFN, 1, HVI_R | HVI_X);
const floor = measure(ROUNDS, (n) => {
  for (let i = 0; i < n; i++) bare.run().resume();
  return n;
});
bare.close();

report("exit", [
  { name: "EPT violation, answered without a look", ns: floor },
  { name: "EPT violation, one hook, allowed", ns: allow },
  { name: "EPT violation, one hook, denied (scratch)", ns: deny },
]);
if (!process.argv.includes("--json")) {
  console.log(
    `${Math.round(1e9 / allow)
      .toString()
      .padStart(8)} exits a second with one hook`,
  );
  console.log(`${String(growth).padStart(8)} bytes of heap more after a million exits`);
}
if (growth > MAX_GROWTH) {
  console.error(`the heap grew by ${growth} bytes: something on the way of an exit allocates`);
  process.exitCode = 1;
}
