// SPDX-License-Identifier: MIT
/**
 * The decoder against GNU objdump: over a million distinct instructions of real programs, their
 * lengths and memory operands (segment, base, index, scale, displacement). Differences are explained
 * by name below; anything else fails.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cacheRoot } from "../../fixtures/cache.ts";
import { must } from "../../fixtures/command.ts";
import { guest } from "../../fixtures/guests.ts";
import { decompressPayload } from "../../src/machine/load/payload.ts";
import { decode } from "../../src/x86/decode.ts";
import {
  type CodeMode,
  ENCODING_EVEX,
  ENCODING_VEX,
  type Instruction,
  MEMORY_ADDRESS_ONLY,
  type Operand,
  VISIBLE_EXPLICIT,
} from "../../src/x86/instruction.ts";
import { registerInfo } from "../../src/x86/registers.ts";
import { root } from "../support/native.ts";
import { type MemoryOperand, memoryOperands, objdump } from "./objdump.fixture.ts";

const folder = join(root, "build/agreement");
const LIBC = "/lib/x86_64-linux-gnu/libc.so.6";

/** Why the two may differ. `ours` is undefined where we see no instruction. */
interface Explanation {
  readonly name: string;
  readonly covers: (text: string, ours: Instruction | undefined, length: number) => boolean;
}
const EXPLANATIONS: readonly Explanation[] = [
  {
    name: "FWAIT in front of an x87 instruction is an instruction of its own",
    covers: (text, ours) => ours?.name === "fwait" && /^f(init|clex|save|st[cs]w|stenv)/.test(text),
  },
  {
    name: "LOCK in front of what cannot have it is #UD, and no instruction to us",
    covers: (text, ours) => ours === undefined && /^lock /.test(text),
  },
  {
    name: "MOV to CS and of segment and test registers that do not exist is #UD, and no instruction to us",
    covers: (text, ours) => ours === undefined && /^mov +(cs,|.*\?|.*\btr\d)/.test(text),
  },
  {
    name: "encodings that are not documented, but run: SALC, second places of x87 instructions",
    covers: (text, ours) =>
      /\(bad\)/.test(text) && /^(salc|fxch|fcom|fcomp|fstp|fstpnce|ffreep)$/.test(ours?.name ?? ""),
  },
];

beforeAll(() => mkdirSync(folder, { recursive: true }));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The uncompressed kernel of a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_*). */
async function vmlinux(series: "6.1" | "6.12"): Promise<string> {
  const bytes = new Uint8Array(readFileSync((await guest(series)).kernel));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = ((bytes[0x1f1] || 4) + 1) * 512 + view.getUint32(0x248, true);
  const kernel = await decompressPayload(
    bytes.subarray(start, start + view.getUint32(0x24c, true)),
  );
  if (kernel === undefined) throw new Error(`the kernel ${series} is not unpacked`);
  const path = join(folder, `vmlinux-${series}`);
  writeFileSync(path, kernel);
  return path;
}

/** Segment registers that count for addresses. */
function segmentOf(written: string, base: string, mode: CodeMode): string {
  if (mode === 64) return written === "fs" || written === "gs" ? written : "";
  if (written !== "") return written;
  return /^(e?[sb]p)$/.test(base) ? "ss" : "ds";
}

/** As text, with the displacement as the address size of the instruction sees it. */
function show(o: MemoryOperand, mode: CodeMode, width: number): string {
  const shift = 32 - width;
  const displacement = width < 64 ? (o.displacement << shift) >> shift : o.displacement;
  // objdump's name for "no index" where the encoding has a place for one.
  const index = /^[re]iz$/.test(o.index) ? "" : o.index;
  const scaled = index === "" ? "" : `+${index}*${o.scale || 1}`;
  return `${segmentOf(o.segment, o.base, mode)}:${o.base}${scaled}+${displacement}`;
}

const nameOf = (id: number): string =>
  registerInfo(id).kind === "none" ? "" : registerInfo(id).name;

/** objdump shows what is written out, and both sides of strings; not the stack of PUSH and CALL. */
function isShown(o: Operand): boolean {
  return o.isMemory && (o.visibility === VISIBLE_EXPLICIT || !/^[re]?[sb]p$/.test(nameOf(o.base)));
}
function ourOperands(insn: Instruction): MemoryOperand[] {
  // Nor the [rDI] of MASKMOVQ and MASKMOVDQU.
  const shown = /^v?maskmov(q|dqu)$/.test(insn.name) ? [] : insn.operands.filter(isShown);
  return shown.map((o) => ({
    // LEA does without; objdump shows a prefix all the same.
    segment: o.memoryType === MEMORY_ADDRESS_ONLY ? "" : nameOf(o.segment),
    base: nameOf(o.base),
    index: nameOf(o.index),
    scale: o.scale,
    displacement: o.value,
  }));
}

class Comparison {
  readonly seen = new Set<string>();
  readonly unexplained: string[] = [];
  readonly explained = new Map<string, number>();
  /** Instructions compared, by encoding: 0 legacy, 3 VEX, 4 EVEX. */
  readonly encodings = new Uint32Array(8);
  /** Lines that objdump has no instruction for, and neither have we. */
  neither = 0;
  #code = new Uint8Array(16);

  constructor(readonly mode: CodeMode) {}

  async add(args: readonly string[]): Promise<void> {
    for await (const { hex, text } of objdump(args)) {
      if (this.seen.has(hex)) continue;
      this.seen.add(hex);
      const length = (hex.length + 1) / 3;
      for (let i = 0; i < length; i++) {
        this.#code[i] = Number.parseInt(hex.slice(3 * i, 3 * i + 2), 16);
      }
      this.#compare(hex, text, decode(this.#code, 0, this.mode, length), length);
    }
  }

  #compare(hex: string, text: string, ours: Instruction | undefined, length: number): void {
    const theirs = !text.includes("(bad)");
    if (!theirs && ours === undefined) {
      this.neither++;
      return;
    }
    if (ours !== undefined) this.encodings[ours.encoding]++;
    let difference = "";
    if (!theirs) difference = `objdump has none, we ${ours?.name}`;
    else if (ours === undefined) difference = "we have none";
    else if (ours.length !== length) difference = `length ${ours.length}`;
    else {
      const isLea = ours.name === "lea";
      const b = memoryOperands(text, this.mode)
        .map((o) => (isLea ? { ...o, segment: "" } : o))
        .map((o) => show(o, this.mode, ours.addressWidth))
        .sort();
      const a = ourOperands(ours)
        .map((o) => show(o, this.mode, ours.addressWidth))
        .sort();
      if (a.join(" ") !== b.join(" ")) difference = `[${a}] and not [${b}]`;
    }
    if (difference === "") return;
    const why = EXPLANATIONS.find((e) => e.covers(text, ours, length));
    if (why) this.explained.set(why.name, (this.explained.get(why.name) ?? 0) + 1);
    else this.unexplained.push(`${hex}: ${text}: ${difference}`);
  }

  check(least: number): void {
    if (this.unexplained.length > 0) console.error(this.unexplained.slice(0, 60).join("\n"));
    expect(this.unexplained.length).toBe(0);
    expect(this.seen.size).toBeGreaterThanOrEqual(least);
    // Nearly all of what a linear sweep meets is code.
    expect(this.neither).toBeLessThan(this.seen.size / 100);
  }
}

describe("GNU objdump agrees", () => {
  test("on a million distinct instructions of 64-bit programs", async () => {
    const c = new Comparison(64);
    const sections = ["-d", "-j", ".text", "-j", ".init.text"];
    for (const series of ["6.1", "6.12"] as const)
      await c.add([...sections, await vmlinux(series)]);
    await c.add([...sections.slice(0, 3), join(cacheRoot(), "busybox/busybox")]);
    await c.add([...sections.slice(0, 3), LIBC]);
    c.check(1_000_000);
    expect(c.encodings[ENCODING_VEX]).toBeGreaterThan(1000);
    expect(c.encodings[ENCODING_EVEX]).toBeGreaterThan(500);
  }, 600_000);

  for (const [mode, machine] of [
    [32, "i386"],
    [16, "i8086"],
  ] as const) {
    test(`on the same bytes read as ${mode}-bit code`, async () => {
      const c = new Comparison(mode);
      const text = join(folder, "libc.text");
      await must(["objcopy", "-O", "binary", "-j", ".text", LIBC, text]);
      await c.add(["-D", "-b", "binary", "-m", machine, text]);
      c.check(50_000);
    }, 600_000);
  }
});
