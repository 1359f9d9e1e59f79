// SPDX-License-Identifier: MIT
/**
 * What an EPT violation costs that the engine in TypeScript answers: a 64-bit guest stores to a
 * hooked page in a loop; each store leaves the guest, finds its hook, gets its reply and goes on.
 *
 *     bun bench/vmx/engine-cost.ts [--backend vmx|soft] [--zydis FILE]
 *
 * Prints lines as bench/vmx/exit-cost.c does: name, backend, median, minimum of batches of exits, in
 * ticks of the TSC an exit. Everything is warm: the code is compiled before it is measured.
 */
import { CFunction, dlopen, FFIType, type Pointer, toArrayBuffer } from "bun:ffi";
import { parseArgs } from "node:util";
import {
  HVI_EXIT_EPT,
  HVI_R,
  HVI_RDI,
  HVI_RWX,
  HVI_W,
  HVI_X,
  openVm,
  registerAsset,
  type Vm,
} from "../../src/bridge/index.ts";
import {
  ALLOW,
  DENY,
  GpaHooks,
  type HookHandler,
  REPLIED,
  RETRY,
} from "../../src/ept/gpa-hooks.ts";
import { ExitInstructions } from "../../src/ept/instructions.ts";
import { enterLinux64 } from "../../src/machine/load/entry.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";

const WARM_UP = 30_000;
const BATCHES = 101;
/** Exits a batch: few enough that the host's timer interrupts miss most of them. */
const BATCH = 20;
const CODE = 0x100000;
const HOOKED = 0x180000;
/** mov %al, (%rdi); jmp back */
const STORE = [0x88, 0x07, 0xeb, 0xfc];

const { values } = parseArgs({
  options: { backend: { type: "string", default: "vmx" }, zydis: { type: "string" } },
});
const backend = values.backend === "soft" ? "soft" : "vmx";
if (values.zydis !== undefined) registerAsset("zydis.wasm", values.zydis);

const libc = dlopen("libc.so.6", {
  mmap: { args: ["ptr", "u64", "i32", "i32", "i32", "i64"], returns: "ptr" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
}).symbols;

/** The host's TSC: Bun's own clocks are too coarse. */
function makeTicks(): () => number {
  const readable = 7;
  const privateAnonymous = 0x22;
  const page = libc.mmap(null, 4096, readable, privateAnonymous, -1, 0) as Pointer;
  // lfence; rdtsc; shl $32, %rdx; or %rdx, %rax; ret
  const code = [0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xc3];
  new Uint8Array(toArrayBuffer(page, 0, 4096)).set(code);
  const rdtsc = CFunction({ ptr: page, args: [], returns: FFIType.u64_fast });
  return () => Number(rdtsc());
}
const ticks = makeTicks();

/** Ticks that `body` takes for one of its `n` operations: median and minimum. */
function measure(body: (n: number) => void): { median: number; min: number } {
  body(WARM_UP);
  const all: number[] = [];
  for (let i = 0; i < BATCHES; i++) {
    const t = ticks();
    body(BATCH);
    all.push((ticks() - t) / BATCH);
  }
  all.sort((a, b) => a - b);
  return { median: Math.round(all[BATCHES >> 1]), min: Math.round(all[0]) };
}

function report(name: string, cost: { median: number; min: number }): void {
  console.log(`${name}\thvi\t${cost.median}\t${cost.min}`);
}

function makeGuest(): Vm {
  const vm = openVm({ backend });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 4 << 20 });
  vm.setCpuid(vm.supportedCpuid());
  vm.mapMemory();
  vm.ram.bytes[0].set(STORE, CODE);
  const [vcpu] = vm.vcpus;
  enterLinux64(vm.ram, vcpu, CODE, 0);
  vcpu.setGprNumber(HVI_RDI, HOOKED);
  return vm;
}

/** What the engine's loop does with each exit that a hook answers (src/engine.ts). */
function exits(vm: Vm, hooks: GpaHooks, n: number): void {
  for (let i = 0; i < n; i++) {
    const vcpu = vm.run();
    if (vcpu.exitReason !== HVI_EXIT_EPT || !hooks.dispatch(vcpu)) {
      throw new Error(`exit ${vcpu.exitName} is not the hook's`);
    }
    hooks.commit();
  }
}

function hooked(
  name: string,
  make: (vm: Vm, instructions: ExitInstructions) => HookHandler,
  left: number,
): void {
  const vm = makeGuest();
  const instructions = new ExitInstructions(vm, new PhysicalMemory(vm.ram));
  const hooks = new GpaHooks(vm, instructions);
  hooks.add(HOOKED / 4096, HVI_W, make(vm, instructions));
  hooks.commit();
  vm.ram.bytes[0][HOOKED] = 0xee;
  vm.vcpus[0].setGprNumber(0, 0x55);
  report(
    name,
    measure((n) => exits(vm, hooks, n)),
  );
  if (vm.ram.bytes[0][HOOKED] !== left)
    throw new Error(`${name}: page holds ${vm.ram.bytes[0][HOOKED]}`);
  vm.close();
}

report(
  "engine: system call that fails at once",
  measure((n) => {
    for (let i = 0; i < n; i++) libc.ioctl(-1, 0, null);
  }),
);

const bare = makeGuest();
bare.setRights(0, HOOKED / 4096, 1, HVI_R | HVI_X);
report(
  "engine: write exit, run again without a look",
  measure((n) => {
    for (let i = 0; i < n; i++) bare.run().retry();
  }),
);
bare.close();

hooked("engine: write exit, run again", () => () => RETRY, 0xee);
hooked("engine: write exit, let through", () => () => ALLOW, 0x55);
hooked("engine: write exit, denied by scratch", () => () => DENY, 0xee);
hooked(
  "engine: write exit, denied, its bytes known",
  (_vm, instructions) => {
    const bytes = new Uint8Array(256);
    return (access) => {
      if (instructions.bytes(access, bytes) !== 1 || bytes[0] !== 0x55) throw new Error("bytes");
      return DENY;
    };
  },
  0xee,
);
hooked(
  "engine: write exit, stepped in another view",
  (vm) => {
    const view = vm.createView(0);
    vm.setRights(view, HOOKED / 4096, 1, HVI_RWX);
    return (access) => {
      access.vcpu.step(view);
      return REPLIED;
    };
  },
  0x55,
);
