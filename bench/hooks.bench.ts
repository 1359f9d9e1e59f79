// SPDX-License-Identifier: MIT
/**
 * Hooks on linear addresses and on translations: what it takes to set them, and what a write to a
 * watched page table costs beside one to a page with a plain hook.
 *
 *     bun bench/hooks.bench.ts [--json]
 */
import { HVI_W, openVm, type Vm } from "../src/bridge/index.ts";
import { ALLOW } from "../src/ept/gpa-hooks.ts";
import { Introspection } from "../src/introspection.ts";
import { enterRealMode } from "../src/machine/load/entry.ts";
import { FakeTables } from "../src/memory/fake-tables.fixture.ts";
import { DEFAULT_FEATURES, PhysicalMemory } from "../src/memory/index.ts";
import { growth, measure, report } from "./measure.ts";

const PAGES = 1000;
const ROUNDS = 100_000;
const MILLION = 1_000_000;
/** Bytes of heap that a million exits may leave: less than an eighth of a byte each. */
const MAX_GROWTH = 128 * 1024;
const CODE_PAGE = 8;
const TABLE = 0x2000;
/** mov [0x2000], al; jmp back */
const STORE = [0xa2, 0x00, 0x20, 0xeb, 0xfb];
/** xor byte [0x2000], 1; jmp back: an entry's P goes off and on. */
const TOGGLE = [0x80, 0x36, 0x00, 0x20, 0x01, 0xeb, 0xf9];

function guest(code: readonly number[]): { vm: Vm; core: Introspection } {
  const vm = openVm({ backend: "soft" });
  vm.create({ vcpus: 1 });
  vm.addMemory({ gpa: 0, size: 32 << 20 });
  vm.mapMemory();
  vm.ram.bytes[0].set(code, CODE_PAGE * 4096);
  enterRealMode(vm.vcpus[0], CODE_PAGE);
  return { vm, core: new Introspection(vm, new PhysicalMemory(vm.ram)) };
}

/** Sets hooks on pages `stride` apart and takes them away; nanoseconds for all of them. */
function setUp(stride: number): number {
  const { vm, core } = guest(STORE);
  const tables = new FakeTables(core.memory.physical, "4level", 0x100000);
  for (let i = 0; i < PAGES; i++) tables.map(-0x40000000 + i * stride, 0x1000000 + i * 0x1000);
  const space = { root: tables.root, mode: "4level", features: DEFAULT_FEATURES } as const;
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 10; round++) {
    const hooks = [];
    const start = Bun.nanoseconds();
    for (let i = 0; i < PAGES; i++) {
      hooks.push(core.gva.add(space, -0x40000000 + i * stride, HVI_W, () => ALLOW));
    }
    core.hooks.commit();
    best = Math.min(best, Bun.nanoseconds() - start);
    for (const hook of hooks) if (hook !== undefined) core.gva.remove(hook);
    core.hooks.commit();
    if (core.hooks.pageCount !== 0) throw new Error("hooks are left");
  }
  vm.close();
  return best;
}

function exits(vm: Vm, core: Introspection, n: number): number {
  let ours = 0;
  for (let i = 0; i < n; i++) if (core.handle(vm.run())) ours++;
  return ours === n ? n : Number.NaN;
}

/** Nanoseconds of an exit for a write to the table's first entry, when `hook` has been set. */
function write(code: readonly number[], hook: (core: Introspection) => void): [number, number] {
  const { vm, core } = guest(code);
  hook(core);
  core.hooks.commit();
  const ns = measure(ROUNDS, (n) => exits(vm, core, n));
  const grown = growth(() => exits(vm, core, MILLION));
  vm.close();
  return [ns, grown];
}

const space = { root: TABLE, mode: "4level", features: DEFAULT_FEATURES } as const;
const watch =
  (gva: number) =>
  (core: Introspection): void => {
    core.tables.watch(space, gva, gva + 0x1000, { before: () => ALLOW });
  };
const [plain, plainGrowth] = write(STORE, (core) => core.hooks.add(2, HVI_W, () => ALLOW));
const [beside, besideGrowth] = write(STORE, watch(-0x1000));
const [same, sameGrowth] = write(STORE, watch(0));
const [changed, changedGrowth] = write(TOGGLE, watch(0));

report("hooks", [
  { name: "1,000 hooks on linear addresses, side by side", ns: setUp(0x1000), bound: 20e6 },
  { name: "the same with a table each", ns: setUp(0x200000), bound: 20e6 },
  { name: "exit: write to a page with a plain hook", ns: plain },
  { name: "exit: write to a table's entry that nobody watches", ns: beside },
  { name: "exit: write to a watched entry that changes nothing", ns: same },
  { name: "exit: write that makes a watched entry present or absent", ns: changed },
]);
const grown = Math.max(plainGrowth, besideGrowth, sameGrowth, changedGrowth);
if (!process.argv.includes("--json")) {
  console.log(`${String(grown).padStart(8)} bytes of heap more after a million exits, at most`);
}
if (grown > MAX_GROWTH) {
  console.error(`the heap grew by ${grown} bytes: something on the way of an exit allocates`);
  process.exitCode = 1;
}
