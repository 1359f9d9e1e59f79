// SPDX-License-Identifier: MIT
/** Replies for one instruction: bytes supplied, writes let through around them, and the notice of its end. */

import { type Bench, fromHex, le, pattern, toHex } from "../bench.ts";
import { type Case, ept } from "../case.ts";
import { R, setYmm0, ymm0 } from "./words.ts";

const STORED = pattern(32, 0x61);
const BEFORE = pattern(96, 0xc0);
const SIZES = [1, 2, 4, 8, 16, 32];
const needs = (size: number) => (size === 32 ? ("avx" as const) : undefined);

/** What a store of `size` bytes writes: RAX, XMM0 or YMM0. */
const storedRax = BigInt(`0x${fromHexReversed(STORED.slice(0, 16))}`);
function fromHexReversed(s: string): string {
  return toHex(fromHex(s).reverse());
}

/** `under` with the bytes of `over` in place from byte `at` on. */
function patched(under: string, at: number, bytes: string): string {
  return under.slice(0, 2 * at) + bytes + under.slice(2 * at + bytes.length);
}
/** A load's result of `size` bytes, in RAX or YMM0. */
function loadedBytes(t: Bench, size: number): string {
  return size > 8 ? ymm0(t, size) : le(t.reg("rax"), size);
}

/** A store of `size` at byte 32 of 96 on page 0, EMULATE with WRITE and a range of `length` bytes from `from` on. */
function storeAround(size: number, from: number, length: number): Case {
  const o = 0x100;
  const written = patched(BEFORE, 32, STORED.slice(0, 2 * size));
  // Bytes inside the range stay as they were.
  const memory = patched(
    written,
    32 + from,
    BEFORE.slice(2 * (32 + from), 2 * (32 + from + length)),
  );
  return {
    name: `emulate.write.store.${size}.range.${from}.${length}`,
    entry: `st${size}`,
    needs: needs(size),
    regs: (t) => ({ rdi: t.d(0, o + 32), rax: storedRax }),
    setup: (t) => {
      setYmm0(t, STORED);
      t.poke(t.p(0, o), BEFORE);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("w", t.p(0, o + 32), { size }).emulate([[t.p(0, o + 32 + from), pattern(length, 0x11)]], {
        write: true,
      }),
    ],
    memory: (t) => [[t.p(0, o), memory]],
  };
}

/** A load of `size` at byte 32 of 96, of which the range supplies `length` bytes from `from` on. */
function loadAround(size: number, from: number, length: number): Case {
  const o = 0x100;
  const seen = patched(BEFORE, 32 + from, pattern(length, 0x11)).slice(64, 64 + 2 * size);
  return {
    name: `emulate.load.${size}.range.${from}.${length}`,
    entry: `ld${size}`,
    needs: needs(size),
    regs: (t) => ({ rsi: t.d(0, o + 32) }),
    setup: (t) => {
      t.poke(t.p(0, o), BEFORE);
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      ept("r", t.p(0, o + 32), { size }).emulate([[t.p(0, o + 32 + from), pattern(length, 0x11)]], {
        write: true,
      }),
    ],
    memory: (t) => [[t.p(0, o), BEFORE]],
    check: (t) =>
      loadedBytes(t, size) === seen ? undefined : `read ${loadedBytes(t, size)}, should be ${seen}`,
  };
}

/** Spare page 0 with bytes that count in words, so that each place has its own. */
function fillSpare(t: Bench, spare: number, seed: number): void {
  const page = t.vm.spare(spare);
  for (let i = 0; i < 4096; i++) page[i] = (i * 7 + (i >> 8) + seed) & 0xff;
}
function spareBytes(t: Bench, spare: number, offset: number, length: number): string {
  return toHex(t.vm.spare(spare).subarray(offset, offset + length));
}

/** A load that sees a spare page instead of page 0, and of page 1 too when it crosses. */
function loadSpare(size: number, offset: number): Case {
  const crossing = offset + size > 4096;
  const first = Math.min(size, 4096 - offset);
  return {
    name: `emulate.spare.load.${size}.at.${offset}`,
    entry: `ld${size}`,
    needs: needs(size),
    regs: (t) => ({ rsi: t.d(0, offset) }),
    setup: (t) => {
      t.vm.addSpare(2);
      fillSpare(t, 0, 3);
      fillSpare(t, 1, 90);
      t.poke(t.p(0), pattern(0x2000, 0x99));
      t.rights(t.p(0), 0);
      t.rights(t.p(1), 0);
    },
    script: (t) => [
      ept("r", t.p(0, offset), { size: first }).emulateSpare([[t.p(0), 4096, 0]]),
      ...(crossing
        ? [ept("r", t.p(1), { size: size - first }).emulateSpare([[t.p(1), 4096, 1]])]
        : []),
    ],
    check: (t) => {
      const seen =
        spareBytes(t, 0, offset, first) + (crossing ? spareBytes(t, 1, 0, size - first) : "");
      const have = loadedBytes(t, size);
      return have === seen ? undefined : `read ${have}, should be ${seen}`;
    },
  };
}

/** Ranges relative to an access of `size` bytes: before it, over its edges, inside, around it, behind it. */
function rangesAround(size: number): [number, number][] {
  const all: [number, number][] = [
    [-8, 4],
    [-3, 4],
    [0, 1],
    [0, size],
    [size - 1, 1],
    [size - 1, 9],
    [size, 8],
    [-16, 64],
  ];
  return all.filter(
    ([from, length], i) => all.findIndex(([f, l]) => f === from && l === length) === i,
  );
}

export const replies: Case[] = [
  ...SIZES.flatMap((size) =>
    rangesAround(size).flatMap(([from, length]) => [
      storeAround(size, from, length),
      loadAround(size, from, length),
    ]),
  ),
  ...Array.from({ length: 30 }, (_, i) => i + 2).flatMap((n) => [
    storeAround(32, 32 - n, n),
    loadAround(32, 32 - n, n),
    storeAround(16, (n % 16) - 8, n),
    loadAround(8, (n % 8) - 4, n),
  ]),
  ...SIZES.flatMap((size) => [
    loadSpare(size, 0),
    loadSpare(size, 0x7f1),
    loadSpare(size, 4096 - size),
    ...(size > 1 ? [loadSpare(size, 4096 - size / 2)] : []),
    ...(size > 2 ? [loadSpare(size, 4095)] : []),
  ]),
];
