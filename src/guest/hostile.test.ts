// SPDX-License-Identifier: MIT
/**
 * Guests whose memory is damaged at random: every question gets an answer, none
 * throws, none takes long.
 */
import { expect, test } from "bun:test";
import { identify } from "./identify.ts";
import type { LinuxGuest } from "./linux/kernel.ts";
import { AT, type SyntheticGuest, syntheticGuest } from "./synthetic.fixture.ts";

/** xorshift32: the same damage in every run. */
function random(seed: number): () => number {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}

/** Everything that introspection can be asked about a guest. */
function askAll(g: SyntheticGuest, guest: LinuxGuest): void {
  guest.tasks();
  guest.modules();
  guest.currentTask(g.cpu);
  for (const kind of ["text", "rodata", "init", "idt", "syscall-table", "image"] as const) {
    guest.kernelRange(kind);
  }
  for (const offset of [0, 0x1234, 0x10_8e10, 0x1f_ffff]) {
    guest.symbolize(g.base + offset);
    guest.inKernelText(g.base + offset);
  }
  for (const module of guest.modules().modules) guest.moduleSymbols(module);
  guest.resolve("fn_77");
  guest.resolve("a:b");
  guest.unwind(g.cpu, 64);
  for (let i = 0; i < guest.symbols.count; i += 50) guest.symbols.nameAt(i);
}

const REGIONS: Array<[name: string, start: number, length: number]> = [
  ["page tables", 0x1000, 0x5000],
  ["kallsyms", 0x40_0000 + AT.kallsyms, 0x6000],
  ["BTF", 0x40_0000 + AT.btf, 0x400],
  ["lists", 0x40_0000 + AT.initTask, 0x1100],
];

for (const [name, start, length] of REGIONS) {
  test(`random damage to ${name}`, () => {
    let identified = 0;
    for (let round = 1; round <= 60; round++) {
      const next = random(round * 7919);
      const g = syntheticGuest();
      const hits = 1 + (next() % 12);
      for (let i = 0; i < hits; i++) g.memory.write8(start + (next() % length), next() & 0xff);
      const attempt = identify(g.memory, g.cpu);
      if (!attempt.ok) continue;
      identified++;
      askAll(g, attempt.guest);
      // What was found once must also stand damage that comes later.
      for (let i = 0; i < 64; i++) g.memory.write8(start + (next() % length), next() & 0xff);
      askAll(g, attempt.guest);
    }
    expect(identified).toBeGreaterThan(0);
  }, 90_000);
}
