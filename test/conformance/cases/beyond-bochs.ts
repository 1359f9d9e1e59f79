// SPDX-License-Identifier: MIT
/**
 * Cases outside the suite, for hv/soft alone: Bochs 3.0, where the VT-x module is tested, looks up
 * the part of a write's first byte only, and sets accessed and dirty bits without a look at the EPT.
 */
import { le } from "../bench.ts";
import { type Case, ept, trap } from "../case.ts";
import { TABLES, WALK } from "../layout.ts";
import { R, VALUE } from "./words.ts";

/** A store of 8 bytes at 0xfc of data page 0, over the border of parts 1 and 2. */
function crossing(name: string, mask: number): Case {
  return {
    name: `spp.crossing.${name}`,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 0xfc), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), mask);
    },
    script: (t) => [ept("w", t.p(0, 0xfc), { rights: R }).scratch()],
    memory: (t) => [[t.p(0, 0xfc), le(0, 8)]],
  };
}

/** The leaf entry of data page 0 lacks the dirty bit, or that and the accessed bit. */
function walk(name: string, entry: string, flags: bigint, after: bigint): Case {
  const leaf = WALK.long![3]!;
  const INFO = 0x5000;
  return {
    name: `ve.walk.${name}`,
    entry,
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(0) }),
    setup: (t) => {
      t.put64(leaf, BigInt(t.p(0)) | flags);
      t.rights(TABLES + 0x7000, R);
      t.vm.setVe(0, true, INFO, []);
      t.vm.setVePages(0, leaf >>> 12, 1, true);
    },
    // With the information area busy the bits are set as without #VE.
    script: [trap(20, { rip: entry })],
    check: (t) =>
      t.get64(INFO + 24) === BigInt(leaf) &&
      (t.get64(INFO + 8) & 0x1ffn) === 0x8bn &&
      t.get64(leaf) === (BigInt(t.p(0)) | after)
        ? undefined
        : `gpa ${t.get64(INFO + 24)}, qualification ${t.get64(INFO + 8)}, entry ${t.get64(leaf)}`,
  };
}

export const beyondBochs: Case[] = [
  crossing("from-open-to-closed", 0b010),
  crossing("from-closed-to-open", 0b100),
  // hvi.h leaves this one open; hv/soft exits.
  crossing("from-open-to-open", 0xffffffff),
  walk("accessed", "ld8", 0x07n, 0x27n),
  walk("dirty", "st8", 0x27n, 0x67n),
];
