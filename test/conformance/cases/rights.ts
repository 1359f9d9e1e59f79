// SPDX-License-Identifier: MIT
/** A3: every right alone and combined, on data, code and page-table pages. */

import { le } from "../bench.ts";
import { type Case, ept } from "../case.ts";
import { HIGH, HIGH_SIZE, LARGE, WALK } from "../layout.ts";
import { letters, R, RW, RWX, RX, VALUE, W, X } from "./words.ts";

const ALL = [0, R, X, RX, RW, RWX];
const needs: [string, string, number][] = [
  ["read", "ld8", R],
  ["write", "st8", W],
  ["rmw", "add8", RW],
  ["lock", "lock_add8", RW],
];

function dataCases(): Case[] {
  return ALL.flatMap((rights) =>
    needs.map(([name, entry, need]): Case => {
      const violates = (rights & need) !== need;
      return {
        name: `rights.data.${letters(rights)}.${name}`,
        entry,
        regs: (t) => ({ rsi: t.d(0, 0x40), rdi: t.d(0, 0x40), rax: VALUE }),
        needs: rights === X ? "exec-only" : undefined,
        setup: (t) => {
          t.put64(t.p(0, 0x40), 0x10n);
          t.rights(t.p(0), rights);
        },
        script: (t) =>
          violates ? [ept(letters(need), t.p(0, 0x40), { size: 8, rights }).resume()] : [],
        memory: (t) => [
          [
            t.p(0, 0x40),
            need === R ? le(0x10, 8) : need === W ? le(VALUE, 8) : le(VALUE + 0x10n, 8),
          ],
        ],
        end: { rax: need === R ? 0x10n : VALUE },
      };
    }),
  );
}

/** NOP and OUT in a page of its own: RESUME lets one instruction through. */
function codeCases(): Case[] {
  return ALL.map((rights): Case => {
    const violates = (rights & X) === 0;
    return {
      name: `rights.code.${letters(rights)}`,
      needs: rights === X ? "exec-only" : undefined,
      setup: (t) => {
        t.code(3, 0x10, "90 e6ee");
        t.rights(t.p(3), rights);
      },
      script: (t) =>
        violates
          ? [
              ept("x", t.p(3, 0x10), { rights, rip: t.d(3, 0x10) }).resume(),
              ept("x", t.p(3, 0x11), { rights, rip: t.d(3, 0x11) }).resume(),
            ]
          : [],
    };
  });
}

/** Each level of the window's walk; level 0 maps the code as well. */
function walkCases(): Case[] {
  return [1, 2, 3].flatMap((level) =>
    ALL.map((rights): Case => {
      const entry = WALK.long![level]!;
      const violates = (rights & R) === 0;
      return {
        name: `rights.walk.level${4 - level}.${letters(rights)}`,
        entry: "ld8",
        regs: (t) => ({ rsi: t.d(0, 8) }),
        needs: rights === X ? "exec-only" : undefined,
        setup: (t) => {
          t.put64(t.p(0, 8), VALUE);
          t.rights(entry, rights);
        },
        script: (t) =>
          violates ? [ept("rk|rwk", entry, { gva: t.d(0, 8), rights }).resume()] : [],
        end: { rax: VALUE },
      };
    }),
  );
}

const single: Case[] = [
  {
    name: "rights.walk.root.fetch",
    entry: "nothing",
    setup: (t) => t.rights(WALK.long![0]!, 0),
    script: (t) => [ept("rk|rwk", 0x10000, { gva: t.symbol("nothing"), rights: 0 }).resume()],
  },
  {
    name: "rights.walk.two-levels",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0, 8) }),
    setup: (t) => {
      t.put64(t.p(0, 8), VALUE);
      t.rights(WALK.long![2]!, 0);
      t.rights(WALK.long![3]!, 0);
    },
    script: (t) => [
      ept("rk|rwk", WALK.long![2]!, { gva: t.d(0, 8), rights: 0 }).resume(),
      ept("rk|rwk", WALK.long![3]!, { gva: t.d(0, 8), rights: 0 }).resume(),
    ],
    end: { rax: VALUE },
  },
  {
    name: "rights.walk.and-data",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 8), rax: VALUE }),
    setup: (t) => {
      t.rights(WALK.long![3]!, 0);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("rk|rwk", WALK.long![3]!, { gva: t.d(0, 8), rights: 0 }).resume(),
      ept("w", t.p(0, 8), { rights: R, size: 8 }).scratch(),
    ],
    memory: (t) => [[t.p(0, 8), le(0, 8)]],
  },
  {
    name: "rights.walk.user",
    mode: "user",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(WALK.user![3]!, 0),
    script: (t) => [ept("rku|rwku|rk|rwk", WALK.user![3]!, { gva: t.d(0), rights: 0 }).resume()],
  },
  {
    name: "rights.table.guest-write",
    entry: "st8",
    regs: { rdi: WALK.long![3]!, rax: 0x201067 },
    setup: (t) => t.rights(WALK.long![3]!, R),
    script: [ept("w", WALK.long![3]!, { size: 8, rights: R }).resume()],
    memory: [[WALK.long![3]!, le(0x201067, 8)]],
  },
  {
    name: "rights.table.guest-write-denied",
    entry: "st8",
    regs: { rdi: WALK.long![3]!, rax: 0x201067 },
    setup: (t) => t.rights(WALK.long![3]!, R),
    script: [ept("w", WALK.long![3]!, { size: 8, rights: R }).scratch()],
    memory: [[WALK.long![3]!, le(0x200067, 8)]],
  },
  {
    name: "rights.execute-only.read-of-own-code",
    needs: "exec-only",
    // MOV RAX, [RIP - 7]: reads the bytes it consists of.
    setup: (t) => {
      t.code(3, 0, "488b05f9ffffff e6ee");
      t.rights(t.p(3), X);
    },
    script: (t) => [ept("r", t.p(3, 0), { size: 8, rights: X, rip: t.d(3) }).resume()],
    end: { rax: 0xe6fffffff9058b48n },
  },
  {
    name: "rights.fetch.crossing.second",
    // A 10-byte MOV RAX, imm64 of which 4 bytes stand on the next page.
    setup: (t) => {
      t.code(3, 0xffa, "48b8 1122334455667788 e6ee");
      t.rights(t.p(4), RW);
    },
    script: (t) => [
      ept("x", t.p(4, 0), { rights: RW, rip: t.d(3, 0xffa) }).resume(),
      ept("x", t.p(4, 4), { rights: RW, rip: t.d(4, 4) }).resume(),
    ],
    end: { rax: 0x8877665544332211n },
  },
  {
    name: "rights.fetch.crossing.both",
    setup: (t) => {
      t.code(3, 0xffa, "48b8 1122334455667788 e6ee");
      t.rights(t.p(3), RW);
      t.rights(t.p(4), RW);
    },
    script: (t) => [
      ept("x", t.p(3, 0xffa), { rights: RW, rip: t.d(3, 0xffa) }).resume(),
      ept("x", t.p(4, 0), { rights: RW, rip: t.d(3, 0xffa) }).resume(),
      ept("x", t.p(4, 4), { rights: RW, rip: t.d(4, 4) }).resume(),
    ],
    end: { rax: 0x8877665544332211n },
  },
  {
    name: "rights.fetch.retry",
    setup: (t) => {
      t.code(3, 0, "90 90 90 e6ee");
      t.rights(t.p(3), R);
    },
    script: (t) => [ept("x", t.p(3), { rights: R, rip: t.d(3) }).retryWith(RWX)],
  },
  {
    name: "rights.fetch.call-target",
    entry: "call_rax",
    regs: (t) => ({ rax: t.d(5) }),
    setup: (t) => {
      t.poke(t.p(5), "c3");
      t.rights(t.p(5), RW);
    },
    // The CALL is done: the violation is that of the next instruction.
    script: (t) => [ept("x", t.p(5), { rip: t.d(5), regs: { rsp: 0x1efef8 } }).resume()],
    end: { rsp: 0x1eff00 },
  },
  {
    name: "rights.fetch.self-modified",
    // MOV BYTE [RIP+0], 0x90 over a UD2's first byte, then the second.
    setup: (t) => {
      t.code(3, 0, "c605 07000000 90 c605 01000000 90 0f0b e6ee");
      t.rights(t.p(3), RX);
    },
    script: (t) => [
      ept("w", t.p(3, 0xe), { size: 1, rip: t.d(3) }).resume(),
      ept("w", t.p(3, 0xf), { size: 1, rip: t.d(3, 7) }).resume(),
    ],
  },
  {
    name: "rights.large-page.one-gfn",
    entry: "st8x2",
    // One 4 KiB page of a guest 2 MiB page; its neighbours stay free.
    regs: { rdi: LARGE + 0x5ff8, rax: VALUE },
    setup: (t) => t.rights(LARGE + 0x6000, R),
    script: (t) => [
      ept("w", LARGE + 0x6000, { rights: R, size: 8, rip: t.symbol("st8x2") + 3 }).resume(),
    ],
    memory: [[LARGE + 0x5ff8, le(VALUE, 8) + le(VALUE, 8)]],
  },
  {
    name: "rights.no-ram.read",
    entry: "ld4",
    regs: (t) => ({ rsi: t.d(0x20, 4) }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfec00067n),
    script: (t) => [
      ept("rn", 0xfec00004, { gva: t.d(0x20, 4), size: 4, rights: 0 }).do((v) => {
        v.setGpr(0, 0x12345678, 0);
        v.rip += 2;
        v.retry();
      }),
    ],
    end: { rax: 0x12345678 },
  },
  {
    name: "rights.no-ram.write",
    entry: "st4",
    regs: (t) => ({ rdi: t.d(0x20), rax: 7 }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfee00067n),
    script: (t) => [ept("wn", 0xfee00000, { gva: t.d(0x20), size: 4, rights: 0 }).skip()],
  },
  {
    name: "rights.no-ram.read.emulate",
    entry: "ld4",
    regs: (t) => ({ rsi: t.d(0x20, 4) }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfec00067n),
    script: (t) => [
      ept("rn", 0xfec00004, { gva: t.d(0x20, 4), size: 4, rights: 0 }).do((v) =>
        v.emulate(0xfec00004, Uint8Array.of(1, 2, 3, 4)),
      ),
    ],
    end: { rax: 0x04030201 },
  },
  {
    name: "rights.no-ram.write.scratch",
    entry: "st4",
    regs: (t) => ({ rdi: t.d(0x20), rax: 7 }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfee00067n),
    script: (t) => [ept("wn", 0xfee00000, { gva: t.d(0x20), size: 4, rights: 0 }).scratch()],
  },
  {
    name: "rights.no-ram.rmw.emulate",
    entry: "add4",
    regs: (t) => ({ rdi: t.d(0x20), rax: 1 }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfee00067n),
    script: (t) => [
      ept("rwn", 0xfee00000, { gva: t.d(0x20), size: 4, rights: 0 }).do((v) =>
        v.emulate(0xfee00000, Uint8Array.of(0xff, 0xff, 0xff, 0xff)),
      ),
    ],
    end: { flags: 0x45 },
  },
  {
    name: "rights.no-ram.rep-movs.source",
    entry: "rep_movsb",
    regs: (t) => ({ rsi: t.d(0x20), rdi: t.d(0), rcx: 2 }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, 0xfec00067n),
    script: (t) =>
      [0, 1].map((i) =>
        ept("rn", 0xfec00000 + i, { gva: t.d(0x20, i), size: 1, rip: "rep_movsb" }).do((v) =>
          v.emulate(0xfec00000 + i, Uint8Array.of(0x41 + i)),
        ),
      ),
    memory: (t) => [[t.p(0), "4142"]],
  },
  {
    name: "rights.high-slot",
    high: true,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0x20, 8), rax: VALUE }),
    setup: (t) => {
      t.put64(WALK.long![3]! + 8 * 0x20, BigInt(HIGH) | 0x67n);
      t.vm.setRights(0, HIGH / 4096, 1, R);
    },
    script: (t) => [ept("w", HIGH + 8, { gva: t.d(0x20, 8), size: 8, rights: R }).resume()],
    check: (t) => {
      const at = t.vm.ram.view(HIGH, 16);
      return at?.[8] === 0x11 && at[15] === 0x88 ? undefined : "the store missed the slot at 4 GiB";
    },
  },
  {
    name: "rights.high-slot.end",
    high: true,
    entry: "st8",
    // The page behind the slot has no memory.
    regs: (t) => ({ rdi: t.d(0x20), rax: VALUE }),
    setup: (t) => t.put64(WALK.long![3]! + 8 * 0x20, BigInt(HIGH + HIGH_SIZE) | 0x67n),
    script: (t) => [ept("wn", HIGH + HIGH_SIZE, { gva: t.d(0x20), rights: 0 }).skip()],
  },
  {
    name: "rights.batch.alternating",
    entry: "rep_stosq",
    regs: (t) => ({ rdi: t.d(8), rcx: 4 * 512, rax: VALUE }),
    setup: (t) => {
      for (const n of [9, 11]) t.rights(t.p(n), R);
    },
    script: (t) => [
      ept("w", t.p(9), { regs: { rcx: 3 * 512, rdi: t.d(9) } }).retryWith(RWX),
      ept("w", t.p(11), { regs: { rcx: 512, rdi: t.d(11) } }).retryWith(RWX),
    ],
    end: { rcx: 0 },
    memory: (t) => [
      [t.p(9), le(VALUE, 8)],
      [t.p(11, 0xff8), le(VALUE, 8)],
    ],
  },
  {
    name: "rights.restored",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(0), RWX);
    },
    script: [],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
];

export const rights: Case[] = [...dataCases(), ...codeCases(), ...walkCases(), ...single];
