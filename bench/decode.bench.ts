// SPDX-License-Identifier: MIT
/**
 * Decoding: cost of a decode with all operands, of a cache hit (checked
 * against the bytes in memory) and of working out an operand's address, over a
 * mix of instructions as compilers make them.
 *
 *     bun bench/decode.bench.ts [--json]
 */
import { ptr } from "bun:ffi";
import { HVI_RBX } from "../src/bridge/abi.ts";
import { fakeVm } from "../src/bridge/fake.fixture.ts";
import { PhysicalMemory } from "../src/memory/physical.ts";
import { DecodeCache } from "../src/x86/cache.ts";
import { decode, format } from "../src/x86/decode.ts";
import { linearAddress } from "../src/x86/operand.ts";
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

const c = peers();
const startWords = Uint32Array.from(starts.slice(0, HOT));
const native = measure(ROUNDS, (n) => c.peer_decode(ptr(code), ptr(startWords), HOT, n));
const peer = { name: "native Zydis", ns: native };

report("decode", [
  { name: "decode through the cache, hit", ns: hit, bound: 40, peer },
  { name: "decode through the cache, miss", ns: miss, bound: 1000, peer },
  { name: "decode with operands, no cache", ns: plain, peer },
  { name: "linear address of an operand", ns: address },
  { name: "disassemble to text", ns: text },
]);
