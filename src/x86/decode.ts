// SPDX-License-Identifier: MIT
import {
  type CodeMode,
  Instruction,
  OPERAND_MEMORY,
  OPERAND_REGISTER,
  Operand,
} from "./instruction.ts";
import { HEADER_WORDS, OPERAND_WORDS, type Zydis, zydis } from "./zydis/module.ts";

/** The longest instruction (SDM vol. 2, 2.3.11). */
export const MAX_INSTRUCTION = 15;

function modeNumber(mode: CodeMode): number {
  return mode === 64 ? 2 : mode === 32 ? 1 : 0;
}

/** Hands up to 15 bytes to the decoder; answers how many. */
function feed(z: Zydis, bytes: Uint8Array, offset: number, end: number): number {
  const n = Math.min(MAX_INSTRUCTION, end - offset);
  const input = z.input;
  for (let i = 0; i < n; i++) input[i] = bytes[offset + i];
  return n;
}

/**
 * Decodes the instruction at bytes[offset]. Undefined when there is none: an
 * invalid encoding, or the bytes end before the instruction does.
 * @param end where the bytes end; the array's length when left out
 */
export function decode(
  bytes: Uint8Array,
  offset: number,
  mode: CodeMode,
  end: number = bytes.length,
): Instruction | undefined {
  const z = zydis();
  const n = feed(z, bytes, offset, end);
  if (n <= 0 || z.decode(modeNumber(mode), n) < 0) return undefined;
  return take(z, mode);
}

/** Copies the decoder's result. */
function take(z: Zydis, mode: CodeMode): Instruction {
  const r = z.result;
  const count = r[2];
  const operands: Operand[] = new Array(count);
  for (let i = 0; i < count; i++) operands[i] = takeOperand(r, HEADER_WORDS + i * OPERAND_WORDS);
  const length = r[1];
  const input = z.input;
  for (let i = length; i < 16; i++) input[i] = 0;
  return new Instruction(
    mode,
    r[0],
    z.mnemonics[r[0]],
    length,
    z.categories[r[10]],
    r[9] & 0xff,
    (r[9] >>> 8) & 0xff,
    r[9] >>> 16,
    r[6],
    r[7],
    r[8],
    r[15],
    r[12],
    r[13],
    r[14],
    operands,
    r[3],
    z.inputWords[0],
    z.inputWords[1],
    z.inputWords[2],
    z.inputWords[3],
  );
}

function takeOperand(r: Int32Array, at: number): Operand {
  const head = r[at];
  const type = head & 0xff;
  const bits = r[at + 1];
  const elements = r[at + 2];
  if (type === OPERAND_REGISTER) {
    return new Operand(
      type,
      (head >>> 8) & 0xff,
      head >>> 16,
      bits,
      elements & 0xffff,
      elements >>> 16,
      r[at + 3],
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      false,
      false,
    );
  }
  const memory = type === OPERAND_MEMORY;
  return new Operand(
    type,
    (head >>> 8) & 0xff,
    head >>> 16,
    bits,
    elements & 0xffff,
    elements >>> 16,
    memory ? 0 : r[at + 3],
    memory ? r[at + 3] : 0,
    memory ? r[at + 4] : 0,
    memory ? r[at + 5] : 0,
    memory ? r[at + 6] : 0,
    memory ? r[at + 7] : 0,
    r[at + 10],
    r[at + 11],
    !memory && r[at + 4] !== 0,
    !memory && r[at + 3] !== 0,
  );
}

/**
 * Text of the instruction at bytes[offset], Intel syntax; branch targets and
 * RIP-relative operands as absolute addresses. Undefined when there is none.
 * @param address where it stands, signed or unsigned
 */
export function format(
  bytes: Uint8Array,
  offset: number,
  mode: CodeMode,
  address: number,
): string | undefined {
  const z = zydis();
  const n = feed(z, bytes, offset, bytes.length);
  if (n <= 0 || z.decode(modeNumber(mode), n) < 0) return undefined;
  return z.format(address | 0, Math.floor(address / 4294967296) | 0);
}

/** One line of a disassembly. */
export interface DisassembledLine {
  readonly address: number;
  readonly length: number;
  readonly text: string;
}

/**
 * Disassembles up to `count` instructions. Stops where the bytes end inside an
 * instruction; an invalid one is shown as a byte ("db 0x..") and stepped over.
 */
export function disassemble(
  bytes: Uint8Array,
  mode: CodeMode,
  address: number,
  count: number,
): DisassembledLine[] {
  const out: DisassembledLine[] = [];
  for (let at = 0; at < bytes.length && out.length < count; ) {
    const text = format(bytes, at, mode, address + at);
    if (text === undefined && bytes.length - at < MAX_INSTRUCTION) break;
    const length = text === undefined ? 1 : zydis().result[1];
    out.push({
      address: address + at,
      length,
      text: text ?? `db 0x${bytes[at].toString(16).padStart(2, "0")}`,
    });
    at += length;
  }
  return out;
}
