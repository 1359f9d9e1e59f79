// SPDX-License-Identifier: MIT
/** Words that the case files share. */
import * as abi from "../../../src/bridge/abi.ts";
import { type Bench, fromHex, toHex } from "../bench.ts";

export const R = abi.HVI_R;
export const W = abi.HVI_W;
export const X = abi.HVI_X;
export const RW = R | W;
export const RX = R | X;
export const RWX = abi.HVI_RWX;

export const VALUE = 0x8877665544332211n;

/** Where registers stand in a standard-format XSAVE area (SDM vol. 1, 13.4). */
const XSAVE_XMM0 = 160;
const XSAVE_BV = 512;
const XSAVE_YMM0 = 576;

/** YMM0 := 32 bytes given as hex (16 when the guest has no AVX). */
export function setYmm0(t: Bench, bytes: string, cpu = 0): void {
  const area = t.vm.getXsave(cpu).slice();
  const b = fromHex(bytes);
  area.set(b.subarray(0, 16), XSAVE_XMM0);
  area[XSAVE_BV]! |= 2;
  if (t.avx && b.length > 16) {
    area.set(b.subarray(16, 32), XSAVE_YMM0);
    area[XSAVE_BV]! |= 4;
  }
  t.vm.setXsave(cpu, area);
}
/** The first `size` bytes of YMM0 as hex. */
export function ymm0(t: Bench, size: number, cpu = 0): string {
  const area = t.vm.getXsave(cpu);
  const bv = area[XSAVE_BV]!;
  const low = bv & 2 ? area.slice(XSAVE_XMM0, XSAVE_XMM0 + 16) : new Uint8Array(16);
  const high = bv & 4 ? area.slice(XSAVE_YMM0, XSAVE_YMM0 + 16) : new Uint8Array(16);
  return (toHex(low) + toHex(high)).slice(0, 2 * size);
}
export function letters(rights: number): string {
  return (rights & R ? "r" : "") + (rights & W ? "w" : "") + (rights & X ? "x" : "") || "none";
}
