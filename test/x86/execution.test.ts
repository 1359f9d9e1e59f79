// SPDX-License-Identifier: MIT
/**
 * Access lists and written values against execution: each state here ran on the host's CPU and in
 * hv/soft, with the same result (test/isa). What the instruction changed in memory must lie in the
 * list's writes and be the value worked out; each access that left hv/soft must be in the list, and
 * each page of the list must have left it.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { HVI_ACCESS_READ, HVI_ACCESS_WRITE } from "../../src/bridge/abi.ts";
import {
  ACCESS_CONDITIONAL,
  ACCESS_READ,
  ACCESS_WRITE,
  AccessList,
} from "../../src/x86/access-list.ts";
import { listAccesses, listWholeRep } from "../../src/x86/accesses.ts";
import { decode, format } from "../../src/x86/decode.ts";
import type { Instruction } from "../../src/x86/instruction.ts";
import { registerInfo } from "../../src/x86/registers.ts";
import { destinationValue, Written, writtenValue } from "../../src/x86/written.ts";
import { readVector } from "../../src/x86/xsave.ts";
import { make, root, run } from "../support/native.ts";
import { Recording } from "./execution.fixture.ts";

/** States a form is tried with; HVI_X86_STATES multiplies them. */
const factor = Number(process.env.HVI_X86_STATES ?? 1);

/**
 * The mnemonics of row D4 that a user program can run (LIDT and LGDT: system.test.ts), with states a
 * form: the fewer forms a mnemonic has, and the more of its states fault, the more.
 */
const GROUPS: readonly (readonly [number, string])[] = [
  [85, "mov add adc sub sbb and or xor movzx movsx"],
  [130, "movdqu movupd movups movss movsd addps"],
  [
    260,
    "imul movhps movhpd movlps movlpd stosb stosw stosd stosq movsb movsw movsq movnti movsxd xchg cmpxchg cmpxchg8b mul div idiv " +
      "rcl rcr rol ror bts btr btc xadd inc dec not neg",
  ],
  [380, "movaps movapd cmpxchg16b"],
];
const D4 = GROUPS.flatMap(([, names]) => names.split(" "));

const out = new Written();
const list = new AccessList();
const folder = join(root, "build/x86");

function record(name: string, states: number, ...options: string[]): string {
  const path = join(folder, name);
  rmSync(path, { force: true });
  const n = String(Math.ceil(states * factor));
  // What differs between CPUs makes it end with 1: that is test/isa's to report. States that differ are not in the record.
  const { code, output } = run(["build/isa/isa", "--states", n, "--record", path, ...options]);
  if (code > 1) throw new Error(output);
  return path;
}

afterAll(() => rmSync(folder, { recursive: true, force: true }));

beforeAll(() => {
  make("hv/soft", "test/isa");
  mkdirSync(folder, { recursive: true });
}, 300_000);

/** Problems with one state, each told a few times. */
class Complaints {
  readonly lines: string[] = [];
  count = 0;
  add(r: Recording, what: string): void {
    this.count++;
    if (this.lines.length >= 80) return;
    const text = format(r.code, 0, r.mode, r.vcpu.rip);
    this.lines.push(`${r.mode}: ${text}: ${what}`);
  }
  check(): void {
    if (this.count > 0) console.error(this.lines.join("\n"));
    expect(this.count).toBe(0);
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

function inWrites(l: AccessList, gva: number): boolean {
  for (let i = 0; i < l.length; i++) {
    if ((l.flags[i] & ACCESS_WRITE) === 0) continue;
    if (gva >= l.gva[i] && gva < l.gva[i] + l.size[i]) return true;
  }
  return false;
}

/** Every byte that changed lies in one of the writes. */
function checkChanges(r: Recording, insn: Instruction, complaints: Complaints): void {
  listWholeRep(r, insn, list);
  if (!list.complete) complaints.add(r, "the list is not complete");
  const { before, memoryAfter } = r;
  for (const i of r.changed) {
    if (before[i] === memoryAfter[i]) continue;
    const at = Recording.address(i);
    if (!inWrites(list, at)) {
      complaints.add(r, `${at.toString(16)} changed, and is not in the list`);
      return;
    }
  }
}

/** What memory holds at [gva, gva + n) afterwards; undefined outside of the recording. */
function memoryAfter(r: Recording, gva: number, n: number): Uint8Array | undefined {
  const bytes = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    const offset = Recording.offset(gva + i);
    if (offset < 0) return undefined;
    bytes[i] = r.memoryAfter[offset];
  }
  return bytes;
}

const PAIRS = ["mul", "div", "idiv"];
function isPair(insn: Instruction): boolean {
  return PAIRS.includes(insn.name) || (insn.name === "imul" && insn.visibleCount === 1);
}

/** The bytes of the destination register after it ran; undefined for one that is not looked at. */
function registerAfter(r: Recording, insn: Instruction, size: number): Uint8Array | undefined {
  const bytes = new Uint8Array(size);
  const general = (index: number, n: number, at: number, shift: number) => {
    const words = r.after.subarray(2 * index, 2 * index + 2);
    const value = (BigInt(words[1]) << 32n) | BigInt(words[0]);
    for (let i = 0; i < n; i++) bytes[at + i] = Number((value >> BigInt(shift + 8 * i)) & 0xffn);
  };
  if (isPair(insn)) {
    const n = size / 2;
    // AX holds both halves of a byte's product, AL and AH those of a division.
    general(0, n, 0, 0);
    if (n === 1) general(0, 1, 1, 8);
    else general(2, n, n, 0);
    return bytes;
  }
  const operand = insn.operands[0];
  if (!operand.isRegister) return undefined;
  const info = registerInfo(operand.register);
  if (info.kind === "gpr") general(info.index, size, 0, info.high ? 8 : 0);
  else if (info.kind !== "xmm" && info.kind !== "ymm") return undefined;
  else if (!r.hasVectors || !readVector(r.xsaveAfter, info.index, bytes)) return undefined;
  return bytes;
}

test("written values: every mnemonic and operand size of D4", () => {
  const states = new Map<string, number>();
  const complaints = new Complaints();
  const files = GROUPS.map(([states, names], i) =>
    record(`d4-${i}.bin`, states, "--mnemonics", names.split(" ").join(",")),
  );
  for (const file of files) {
    const r = new Recording(file);
    while (r.next()) {
      const insn = decode(r.code, 0, r.mode);
      if (insn === undefined) {
        complaints.add(r, "is not decoded");
        continue;
      }
      checkChanges(r, insn, complaints);
      const done = (kind: string, size: number) => {
        const key = `${insn.name} ${kind} ${size}`;
        states.set(key, (states.get(key) ?? 0) + 1);
      };
      if (writtenValue(r, insn, out)) {
        const is = memoryAfter(r, out.gva, out.size);
        if (is === undefined) complaints.add(r, `writes outside, at ${out.gva.toString(16)}`);
        else if (hex(is) !== hex(out.bytes.subarray(0, out.size))) {
          complaints.add(r, `memory ${hex(is)}, computed ${hex(out.bytes.subarray(0, out.size))}`);
        }
        done("memory", out.size);
      } else if (!Number.isNaN(list.firstWritten) && out.missing !== "writes nothing") {
        complaints.add(r, `no value: ${out.missing}`);
      }
      if (insn.operands[0]?.isMemory && insn.operands[0].writes) continue;
      if (!destinationValue(r, insn, out)) {
        const segment = insn.operands.some(
          (o) => o.isRegister && registerInfo(o.register).kind === "segment",
        );
        if (!segment && out.missing !== "writes nothing") {
          complaints.add(r, `no destination value: ${out.missing}`);
        }
        continue;
      }
      const is = registerAfter(r, insn, out.size);
      if (is === undefined) continue;
      if (hex(is) !== hex(out.bytes.subarray(0, out.size))) {
        complaints.add(r, `register ${hex(is)}, computed ${hex(out.bytes.subarray(0, out.size))}`);
      }
      done("register", out.size);
    }
  }
  complaints.check();
  const few = [...states].filter(([, n]) => n < 200);
  if (process.env.HVI_X86_STATES) console.log(Object.fromEntries(states));
  expect(few).toEqual([]);
  const seen = new Set([...states.keys()].map((key) => key.split(" ")[0]));
  expect(D4.filter((name) => !seen.has(name))).toEqual([]);
}, 600_000);

describe("access lists", () => {
  /** The part of entry i that lies in the page of gva. */
  function partInPage(i: number, gva: number): { from: number; to: number } | undefined {
    const page = Math.floor(gva / 4096) * 4096;
    const from = Math.max(list.gva[i], page);
    const to = Math.min(list.gva[i] + list.size[i], page + 4096);
    return from < to ? { from, to } : undefined;
  }
  /** Whether entries cover the bytes of an exit in this direction: one, or of FXSAVE and XSAVE several. */
  function covered(gva: number, size: number, kind: number): boolean {
    const end = gva + size;
    for (let at = gva; at < end; ) {
      let next = at;
      for (let i = 0; i < list.length; i++) {
        const part = (list.flags[i] & kind) === 0 ? undefined : partInPage(i, gva);
        if (part !== undefined && at >= part.from) next = Math.max(next, part.to);
      }
      if (next === at) return false;
      at = next;
    }
    return true;
  }

  test("every form: the accesses that left hv/soft, and no others", () => {
    const complaints = new Complaints();
    const r = new Recording(record("all.bin", 10));
    let states = 0;
    let accesses = 0;
    const forms = new Set<string>();
    while (r.next()) {
      const insn = decode(r.code, 0, r.mode);
      if (insn === undefined) {
        complaints.add(r, "is not decoded");
        continue;
      }
      states++;
      checkChanges(r, insn, complaints);
      listAccesses(r, insn, list);
      if (list.length > 0) forms.add(`${r.mode} ${insn.name} ${insn.operands.map((o) => o.bits)}`);
      for (const exit of r.accesses) {
        accesses++;
        const kind =
          ((exit.kind & HVI_ACCESS_READ) !== 0 ? ACCESS_READ : 0) |
          ((exit.kind & HVI_ACCESS_WRITE) !== 0 ? ACCESS_WRITE : 0);
        if (!covered(exit.gva, exit.size, kind)) {
          complaints.add(r, `${kind} ${exit.gva.toString(16)} ${exit.size} is not in the list`);
        }
      }
      for (let i = 0; i < list.length; i++) {
        if ((list.flags[i] & ACCESS_CONDITIONAL) !== 0) continue;
        const first = Math.floor(list.gva[i] / 4096);
        const last = Math.floor((list.gva[i] + list.size[i] - 1) / 4096);
        for (let page = first; page <= last; page++) {
          // The page of the code itself was not taken away.
          if (Recording.offset(page * 4096) < 0) continue;
          if (!r.accesses.some((exit) => Math.floor(exit.gva / 4096) === page)) {
            complaints.add(r, `entry ${i} at ${list.gva[i].toString(16)} did not leave the guest`);
          }
        }
      }
    }
    complaints.check();
    expect(states).toBeGreaterThan(40_000);
    expect(accesses).toBeGreaterThan(20_000);
    expect(forms.size).toBeGreaterThan(1000);
  }, 600_000);
});
