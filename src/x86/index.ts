// SPDX-License-Identifier: MIT
/** Instructions, registers, segments and modes. */
export { DecodeCache } from "./cache.ts";
export { type DisassembledLine, decode, disassemble, format, MAX_INSTRUCTION } from "./decode.ts";
export * from "./instruction.ts";
export * from "./operand.ts";
export * from "./registers.ts";
export * from "./segments.ts";
export * from "./sse.ts";
export { type WriteContext, type Written, writtenValue } from "./written.ts";
