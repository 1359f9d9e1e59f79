// SPDX-License-Identifier: MIT
/** Zydis as WebAssembly: loads build/zydis.wasm at first use. See glue.c for the other side. */
import { assetBytes } from "../../bridge/assets.ts";

/** Words of result[] in glue.c. */
export const HEADER_WORDS = 20;
export const OPERAND_WORDS = 16;
/** Bytes of input[] in glue.c; no instruction is longer than 15. */
export const INPUT_BYTES = 16;

interface Exports {
  memory: WebAssembly.Memory;
  setup(): number;
  input_address(): number;
  result_address(): number;
  text_address(): number;
  register_address(): number;
  decode(mode: number, length: number): number;
  format(addressLo: number, addressHi: number): number;
  mnemonic_name(id: number): number;
  mnemonic_count(): number;
  register_count(): number;
  register_info(id: number): number;
  category_name(id: number): number;
}

export interface Zydis {
  readonly input: Uint8Array;
  /** The same bytes as four words. */
  readonly inputWords: Uint32Array;
  readonly result: Int32Array;
  /** Names of mnemonics, registers and categories, by number. */
  readonly mnemonics: readonly string[];
  readonly registers: readonly RegisterInfo[];
  readonly categories: readonly string[];
  decode(mode: number, length: number): number;
  /** Intel syntax of the last decoded instruction; undefined when it does not fit. */
  format(addressLo: number, addressHi: number): string | undefined;
}

/** What one register is. */
export interface RegisterInfo {
  /** Zydis's number. */
  readonly id: number;
  /** "rax", "ah", "xmm3"; "none" for number 0. */
  readonly name: string;
  readonly kind: RegisterKind;
  /** Number in the encoding: RAX 0, RCX 1, ... R15 15; AH..BH as RAX..RBX. -1 for none. */
  readonly index: number;
  /** Bytes in 64-bit mode. */
  readonly size: number;
  /** AH, CH, DH, BH: bits 15..8 of their register. */
  readonly high: boolean;
}

export type RegisterKind =
  | "none"
  | "gpr"
  | "xmm"
  | "ymm"
  | "zmm"
  | "mmx"
  | "x87"
  | "segment"
  | "control"
  | "debug"
  | "flags"
  | "ip"
  | "mask"
  | "other";

/** ZydisRegisterClass (Zydis/Register.h), by number, in groups. */
const KINDS: readonly RegisterKind[] = [
  "none",
  "gpr",
  "gpr",
  "gpr",
  "gpr",
  "x87",
  "mmx",
  "xmm",
  "ymm",
  "zmm",
  "other",
  "flags",
  "ip",
  "segment",
  "other",
  "other",
  "control",
  "debug",
  "mask",
  "other",
];

let loaded: Zydis | undefined;

/** The module, loaded once. Throws with the next step when it was not built. */
export function zydis(): Zydis {
  loaded ??= load();
  return loaded;
}

function load(): Zydis {
  const bytes = assetBytes("zydis.wasm");
  if (!bytes) {
    throw new Error("the decoder (build/zydis.wasm) is not built; run: npm run setup");
  }
  const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes));
  const e = instance.exports as unknown as Exports;
  if (e.setup() !== 0) throw new Error("the decoder does not start");
  // The memory never grows, so views of it stay good.
  const memory = e.memory.buffer;
  const text = new Uint8Array(memory, e.text_address());
  const row = new Uint32Array(memory, e.register_address(), 4);
  const latin = new TextDecoder("latin1");
  const taken = (length: number): string => latin.decode(text.subarray(0, length));

  const mnemonics = Array.from({ length: e.mnemonic_count() }, (_, i) => taken(e.mnemonic_name(i)));
  const registers = Array.from({ length: e.register_count() }, (_, id): RegisterInfo => {
    const name = taken(e.register_info(id));
    const kind = KINDS[row[0]] ?? "other";
    return { id, name, kind, index: row[1] | 0, size: row[2] >>> 3, high: row[3] !== 0 };
  });
  const categories: string[] = [];
  for (let i = 0, n = e.category_name(0); n > 0; n = e.category_name(++i)) {
    categories.push(taken(n).toLowerCase());
  }

  return {
    input: new Uint8Array(memory, e.input_address(), INPUT_BYTES),
    inputWords: new Uint32Array(memory, e.input_address(), INPUT_BYTES / 4),
    result: new Int32Array(memory, e.result_address(), HEADER_WORDS + 10 * OPERAND_WORDS),
    mnemonics,
    registers,
    categories,
    decode: e.decode,
    format(addressLo, addressHi) {
      const n = e.format(addressLo, addressHi);
      return n < 0 ? undefined : taken(n);
    },
  };
}
