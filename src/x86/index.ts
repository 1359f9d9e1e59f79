// SPDX-License-Identifier: MIT
/** Instructions, registers, segments and modes. */
export * from "./access-list.ts";
export { listAccesses, listWholeRep, repeatCount } from "./accesses.ts";
export { DecodeCache } from "./cache.ts";
export { type InsnContext, readBytes } from "./context.ts";
export { type DisassembledLine, decode, disassemble, format, MAX_INSTRUCTION } from "./decode.ts";
export {
  EVENT_WITH_CODE,
  type EventKind,
  listDelivery,
  PLAIN_EVENT,
  SOFTWARE_EVENT,
} from "./descriptors.ts";
export * from "./instruction.ts";
export * from "./operand.ts";
export * from "./registers.ts";
export * from "./segments.ts";
export { destinationValue, type NoValue, Written, writtenValue } from "./written.ts";
export * from "./xsave.ts";
