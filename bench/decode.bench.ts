// SPDX-License-Identifier: MIT
/**
 * Decoding: cost of a decode with all operands, of a cache hit (checked
 * against the bytes in memory) and of working out an operand's address, over a
 * mix of instructions as compilers make them; the list of accesses and the
 * written value of common stores, in 4-level paging. A million of these must
 * leave the heap as it was, without a collection: they allocate nothing.
 *
 *     bun bench/decode.bench.ts [--json]
 */
import { ptr } from "bun:ffi";
import { heapStats } from "bun:jsc";
import { HVI_CS, HVI_RBX, HVI_RCX, HVI_RDI, HVI_RSI, HVI_RSP } from "../src/bridge/abi.ts";
import { fakeVm } from "../src/bridge/fake.fixture.ts";
import { FakeTables } from "../src/memory/fake-tables.fixture.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { VirtualMemory } from "../src/memory/virtual.ts";
import { AccessList } from "../src/x86/access-list.ts";
import { listAccesses } from "../src/x86/accesses.ts";
import { DecodeCache } from "../src/x86/cache.ts";
import type { InsnContext } from "../src/x86/context.ts";
import { decode, format } from "../src/x86/decode.ts";
import { linearAddress } from "../src/x86/operand.ts";
import { Written, writtenValue } from "../src/x86/written.ts";
import { XsaveLayout } from "../src/x86/xsave.ts";
import { measure, peers, report } from "./measure.ts";

/** Common forms: moves, arithmetic, stack, branches, a locked one, strings, SSE. */
const CODE = [
  "48 89 44 cb 10",
  "48 8b 05 34 12 00 00",
  "55",
  "48 89 e5",
  "e8 fb 00 00 00",
  "0f 84 10 00 00 00",
  "48 83 c4 20",
  "65 48 8b 04 25 28 00 00 00",
  "f0 48 0f b1 13",
  "f3 a4",
  "0f 11 0b",
  "c7 03 ef be ad de",
  "31 c0",
  "c3",
].map((line) => Uint8Array.from(line.split(" "), (b) => Number.parseInt(b, 16)));
const ROUNDS = 1_000_000;
/** Bytes by which the heap may grow in 16 million questions: what the runtime itself rounds up. */
const MAX_GROWTH = 64 * 1024;

const { vm } = fakeVm({ size: 0x1000000 });
const memory = new PhysicalMemory(vm.ram);
const code = new Uint8Array(0x100000);
const starts: number[] = [];
for (let at = 0, i = 0; at < code.length - 16; i++) {
  const bytes = CODE[i % CODE.length];
  if ((at & 0xfff) + bytes.length > 0x1000) {
    at = (at | 0xfff) + 1;
    continue;
  }
  code.set(bytes, at);
  starts.push(at);
  at += bytes.length;
}
memory.write(0, code);
const HOT = 4096;
const cache = new DecodeCache(memory);
for (let i = 0; i < HOT; i++) cache.atGpa(starts[i], 64);
const store = decode(code, 0, 64);
if (!store) throw new Error("the decoder does not work");
const vcpu = vm.vcpus[0];
vcpu.setGprNumber(HVI_RBX, -0x7f000000);

const hit = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += cache.atGpa(starts[(i * 13) % HOT], 64)?.length ?? 0;
  return sum;
});
const miss = measure(ROUNDS, (n) => {
  let sum = 0;
  const cold = new DecodeCache(memory);
  for (let i = 0; i < n; i++) {
    // Each start comes back only after all others, when its slot is long taken.
    sum += cold.atGpa(starts[i % starts.length], 64)?.length ?? 0;
  }
  if (cold.hitRate > 0.05) throw new Error("these were hits");
  return sum;
});
const plain = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += decode(code, starts[i % HOT], 64)?.length ?? 0;
  return sum;
});
const address = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += linearAddress(vcpu, store, store.operands[0]);
  return sum;
});
const text = measure(ROUNDS / 8, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += format(code, starts[i % HOT], 64, i)?.length ?? 0;
  return sum;
});

/** Stores whose accesses and values are asked for at an exit. */
const STORES: readonly (readonly [string, string])[] = [
  ["mov", "48 89 03"],
  ["add", "48 01 03"],
  ["xchg", "48 87 03"],
  ["cmpxchg", "f0 48 0f b1 0b"],
  ["stos", "f3 48 ab"],
  ["movs", "f3 48 a5"],
  ["push", "50"],
  ["movups", "0f 11 03"],
];
const TABLES = 0x800000;
const DATA = 0xc00000;
const tables = new FakeTables(memory, "4level", TABLES);
for (let i = 0; i < 0x10000; i += 0x1000) tables.map(DATA + i, DATA + i);
vcpu.efer = 0xd01;
vcpu.setSeg(HVI_CS, 0x10, 0, 0xffffffff, 0xa09b);
for (const register of [HVI_RBX, HVI_RSI, HVI_RDI, HVI_RSP])
  vcpu.setGprNumber(register, DATA + 0x800);
vcpu.setGprNumber(HVI_RCX, 3);
const area = new Uint8Array(832);
const layout = new XsaveLayout([]);
const context: InsnContext = {
  vcpu,
  memory: new VirtualMemory(memory, tables.root, "4level"),
  xsave: () => area,
  xsaveLayout: () => layout,
};
const accesses = new AccessList();
const written = new Written();
const stores = STORES.map(([name, code]) => {
  const bytes = Uint8Array.from(code.split(" "), (b) => Number.parseInt(b, 16));
  const insn = decode(bytes, 0, 64);
  if (!insn) throw new Error(`${name} is not decoded`);
  return { name, insn };
});
const listed = measure(ROUNDS, (n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) {
    sum += listAccesses(context, stores[i % stores.length].insn, accesses);
  }
  return sum;
});
const values = stores.map(({ name, insn }) => {
  const ns = measure(ROUNDS, (n) => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += writtenValue(context, insn, written) ? 1 : 0;
    return sum;
  });
  return { name: `written value, ${name}`, ns, bound: 500 };
});

/** Bytes by which the heap grows in a million questions about each store; objects not collected count. */
function allocated(): number {
  Bun.gc(true);
  const before = heapStats();
  for (const { insn } of stores) {
    for (let i = 0; i < 1_000_000; i++) {
      listAccesses(context, insn, accesses);
      writtenValue(context, insn, written);
    }
  }
  const after = heapStats();
  return after.heapSize - before.heapSize + (after.heapCapacity - before.heapCapacity);
}
// Once for the compilers, which keep notes on the heap.
allocated();
const growth = allocated();
if (growth > MAX_GROWTH) {
  console.error(`access lists and written values allocate: ${growth} bytes`);
  process.exitCode = 1;
}

const c = peers();
const startWords = Uint32Array.from(starts.slice(0, HOT));
const native = measure(ROUNDS, (n) => c.peer_decode(ptr(code), ptr(startWords), HOT, n));
const peer = { name: "native Zydis", ns: native };

report("decode", [
  { name: "decode through the cache, hit", ns: hit, bound: 40, peer },
  { name: "decode through the cache, miss", ns: miss, bound: 1000, peer },
  { name: "decode with operands, no cache", ns: plain, peer },
  { name: "linear address of an operand", ns: address },
  { name: "access list", ns: listed },
  ...values,
  { name: "disassemble to text", ns: text },
]);
