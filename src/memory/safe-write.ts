// SPDX-License-Identifier: MIT
/**
 * Writes to guest memory where the address comes from the guest: only where its
 * CPU would have written.
 */
import { HVI_W } from "../bridge/abi.ts";
import type { Vcpu } from "../bridge/vcpu.ts";
import { PTE_D, Translation, TranslationStatus } from "./translate.ts";
import type { VirtualMemory } from "./virtual.ts";

/** Longest safe write. */
export const SAFE_WRITE_LIMIT = 0x100000;
const PTE_A = 1 << 5;

const CR0_WP = 1 << 16;
const CR4_SMAP = 1 << 21;
const CR4_PKE = 1 << 22;
const CR4_PKS = 1 << 24;
const RFLAGS_AC = 1 << 18;

/** Bits of a page fault's error code (SDM vol. 3, 4.7). */
export const PF_PRESENT = 1 << 0;
export const PF_WRITE = 1 << 1;
export const PF_USER = 1 << 2;
export const PF_RESERVED = 1 << 3;
export const PF_KEY = 1 << 5;

/** What decides about a write beside the tables (SDM vol. 3, 4.6); reused from write to write. */
export class WriteAccess {
  /** 0..3; 3 is user mode. */
  ring = 0;
  /** CR0.WP: the supervisor keeps to R/W as well. */
  wp = true;
  /** CR4.SMAP, and RFLAGS.AC which suspends it. */
  smap = false;
  ac = false;
  /** CR4.PKE, with PKRU; -1 when it is not known: pages of the user are then refused. */
  pke = false;
  pkru = -1;
  /** CR4.PKS. Its register is not among those that can be read: pages of the supervisor are refused. */
  pks = false;

  /**
   * Takes over the state of a vCPU.
   * @param ring whose rights count; the vCPU's own when left out
   * @param pkru PKRU, where CR4.PKE is set; -1 when not known
   */
  from(vcpu: Vcpu, ring = vcpu.cpl, pkru = -1): this {
    const cr4 = vcpu.cr4;
    this.ring = ring;
    this.wp = (vcpu.cr0 & CR0_WP) !== 0;
    this.smap = (cr4 & CR4_SMAP) !== 0;
    this.ac = (vcpu.rflags & RFLAGS_AC) !== 0;
    this.pke = (cr4 & CR4_PKE) !== 0;
    this.pks = (cr4 & CR4_PKS) !== 0;
    this.pkru = pkru;
    return this;
  }
}

/** Why a safe write did not take place. */
export enum WriteStop {
  None = 0,
  /** The CPU would raise #PF, with `errorCode`. */
  PageFault = 1,
  /** The CPU would raise #GP or #SS: the address is not canonical. */
  NotCanonical = 2,
  /** The EPT of the view does not let the page be written. */
  Ept = 3,
  /** There is no RAM: a device, or page tables that lead nowhere. */
  NoRam = 4,
  /** Longer than SAFE_WRITE_LIMIT, or protection keys that are not known. */
  Unsupported = 5,
}

/** What a safe write came to; reused from write to write. */
export class WriteOutcome {
  stop = WriteStop.None;
  /** First address of the range that cannot be written; NaN when all was. */
  gva = Number.NaN;
  /** Of the page fault; 0 for other stops. */
  errorCode = 0;
}

const record = new Translation();
/** Where the pages of the write at hand stand. */
const targets = new Float64Array(SAFE_WRITE_LIMIT / 0x1000 + 1);

/**
 * Writes all bytes, if the CPU could have: canonical addresses, present entries
 * without reserved bits, rights of all levels for the ring with CR0.WP, SMAP and
 * protection keys, RAM, and a view of the EPT that lets every page be written.
 * Otherwise nothing is written and `out` tells why. As on the CPU, the entries
 * that were used are marked accessed and the pages dirty: a guest's system that
 * takes a page for clean may drop it with what was written.
 *
 * The write goes to RAM, also where the view has another page in its place.
 * @param rights EPT rights (HVI_R | HVI_W | HVI_X) of a GFN in the view that counts
 */
export function safeWrite(
  memory: VirtualMemory,
  gva: number,
  bytes: Uint8Array,
  access: WriteAccess,
  rights: (gfn: number) => number,
  out: WriteOutcome,
): boolean {
  out.stop = WriteStop.None;
  out.gva = Number.NaN;
  out.errorCode = 0;
  const length = bytes.length;
  if (length > SAFE_WRITE_LIMIT) return stop(out, gva, WriteStop.Unsupported);
  if (!Number.isSafeInteger(gva)) return stop(out, gva, WriteStop.NotCanonical);
  const end = gva + length;
  let pages = 0;
  for (let at = gva; at < end; at += 0x1000 - (at & 0xfff)) {
    const gpa = memory.walkTo(at, record);
    if (!mayWrite(access, out, at)) return false;
    if (memory.physical.read8(gpa) < 0) return stop(out, at, WriteStop.NoRam);
    if ((rights(Math.floor(gpa / 0x1000)) & HVI_W) === 0) return stop(out, at, WriteStop.Ept);
    targets[pages++] = gpa;
  }
  for (let i = 0, at = gva; i < pages; i++, at += 0x1000 - (at & 0xfff)) {
    if (memory.walkTo(at, record) === targets[i]) markUsed(memory);
  }
  memory.physical.scatter(targets, bytes);
  return true;
}

function stop(out: WriteOutcome, gva: number, why: WriteStop, errorCode = 0): false {
  out.stop = why;
  out.gva = gva;
  out.errorCode = errorCode;
  return false;
}

/** What the walk in `record` says of a write (SDM vol. 3, 4.6.1). */
function mayWrite(access: WriteAccess, out: WriteOutcome, gva: number): boolean {
  const user = access.ring === 3;
  const code = PF_WRITE | (user ? PF_USER : 0);
  switch (record.status) {
    case TranslationStatus.Ok:
      break;
    case TranslationStatus.NotCanonical:
      return stop(out, gva, WriteStop.NotCanonical);
    case TranslationStatus.NotPresent:
      return stop(out, gva, WriteStop.PageFault, code);
    case TranslationStatus.Reserved:
      return stop(out, gva, WriteStop.PageFault, code | PF_PRESENT | PF_RESERVED);
    default:
      return stop(out, gva, WriteStop.NoRam);
  }
  if (record.mode === "none") return true;
  let allowed: boolean;
  if (user) allowed = record.user && record.writable;
  else {
    allowed = record.writable || !access.wp;
    if (record.user && access.smap && !access.ac) allowed = false;
  }
  if (!allowed) return stop(out, gva, WriteStop.PageFault, code | PF_PRESENT);
  return keysAllow(access, out, gva, code);
}

/** Protection keys, which long mode has: bits 62..59 of the entry that maps the page. */
function keysAllow(access: WriteAccess, out: WriteOutcome, gva: number, code: number): boolean {
  if (record.mode !== "4level" && record.mode !== "5level") return true;
  if (!record.user) return access.pks ? stop(out, gva, WriteStop.Unsupported) : true;
  if (!access.pke) return true;
  if (access.pkru < 0) return stop(out, gva, WriteStop.Unsupported);
  const key = (record.entryHi[record.depth - 1] >>> 27) & 0xf;
  const denied = (access.pkru >>> (2 * key)) & 3;
  const disabled = (denied & 1) !== 0;
  // Write-disable binds the supervisor only with CR0.WP.
  const readOnly = (denied & 2) !== 0 && (access.ring === 3 || access.wp);
  if (!disabled && !readOnly) return true;
  return stop(out, gva, WriteStop.PageFault, code | PF_PRESENT | PF_KEY);
}

/** Sets the accessed bits of the entries in `record`, and the dirty bit of the last. */
function markUsed(memory: VirtualMemory): void {
  for (let i = 0; i < record.depth; i++) {
    // PAE's PDPTEs have neither.
    if (record.mode === "pae" && i === 0) continue;
    const bits = PTE_A | (i === record.depth - 1 ? PTE_D : 0);
    const low = record.entryLo[i];
    if ((low & bits) !== bits) memory.physical.write32(record.entryGpa[i], low | bits);
  }
}
