// SPDX-License-Identifier: MIT
/** Instructions as GNU objdump disassembles them: bytes, mnemonic and memory operands. */
import type { Subprocess } from "bun";
import type { CodeMode } from "../../src/x86/instruction.ts";

/** A memory operand in the terms that both disassemblers have. Registers by name; "" for none. */
export interface MemoryOperand {
  /** "fs", "gs" or, for all that are flat in 64-bit code, "". Elsewhere as it is written. */
  segment: string;
  base: string;
  index: string;
  scale: number;
  /** Signed. */
  displacement: number;
}

export interface Disassembled {
  readonly hex: string;
  readonly text: string;
}

/** The lines of `objdump` with these arguments; Intel syntax, all bytes of an instruction in one line. */
export async function* objdump(args: readonly string[]): AsyncGenerator<Disassembled> {
  const child: Subprocess<"ignore", "pipe", "pipe"> = Bun.spawn(
    ["objdump", "-M", "intel", "--insn-width=15", "--no-addresses", ...args],
    { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  );
  const latin = new TextDecoder("latin1");
  let rest = "";
  for await (const chunk of child.stdout) {
    const lines = (rest + latin.decode(chunk)).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      // "\t48 8d 25 51 3f 60 01 \tlea    rsp,[rip+0x1603f51]        # ..."
      if (line.charCodeAt(0) !== 9) continue;
      const tab = line.indexOf("\t", 1);
      if (tab < 0) continue;
      const comment = line.indexOf("#", tab);
      yield {
        hex: line.slice(1, tab).trimEnd(),
        text: (comment < 0 ? line.slice(tab + 1) : line.slice(tab + 1, comment)).trimEnd(),
      };
    }
  }
  const code = await child.exited;
  if (code !== 0) {
    const said = await new Response(child.stderr).text();
    throw new Error(`objdump: exit ${code}, signal ${child.signalCode}: ${said}`);
  }
}

const BRACKETS = /(?:([c-gs]s):)?\[([^\]]*)\]/g;
/** An address alone: "ds:0x1234", or MOV's "fs:0x28". */
const ABSOLUTE = /\b([c-gs]s):(-?0x[0-9a-f]+)/g;

/** A hexadecimal number of up to 64 bits, signed in `bits`. */
function signed(text: string, bits: number): number {
  const negative = text.startsWith("-");
  const value = BigInt(negative ? text.slice(1) : text);
  return Number(BigInt.asIntN(bits, negative ? -value : value));
}

/** The memory operands in a line of objdump, in the order of the text. */
export function memoryOperands(text: string, mode: CodeMode): MemoryOperand[] {
  const found: { at: number; operand: MemoryOperand }[] = [];
  for (const match of text.matchAll(BRACKETS)) {
    const operand = { segment: match[1] ?? "", base: "", index: "", scale: 0, displacement: 0 };
    for (const term of match[2].match(/[+-]?[^+-]+/g) ?? []) {
      const name = term.startsWith("+") ? term.slice(1) : term;
      if (/^-?0x/.test(name)) operand.displacement = signed(name, 64);
      else if (name.includes("*")) {
        const [register, scale] = name.split("*");
        operand.index = register;
        operand.scale = Number(scale);
      } else if (operand.base === "") operand.base = name;
      // Two registers of 16-bit addressing; a vector index of scale 1 has its "*1".
      else operand.index = name;
    }
    found.push({ at: match.index, operand });
  }
  for (const match of text.matchAll(ABSOLUTE)) {
    const operand = { segment: match[1], base: "", index: "", scale: 0 };
    const bits = mode === 64 ? 64 : 32;
    found.push({ at: match.index, operand: { ...operand, displacement: signed(match[2], bits) } });
  }
  return found.sort((a, b) => a.at - b.at).map((f) => f.operand);
}
