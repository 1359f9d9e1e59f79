// SPDX-License-Identifier: MIT
/** Guest memory: physical, and virtual under any root and paging mode. */
export * from "./address.ts";
export { GuestMemory, type PagingRegisters } from "./guest-memory.ts";
export { PhysicalMemory, type U64 } from "./physical.ts";
export { type AddressSpace, rootTable } from "./space.ts";
export * from "./swapped.ts";
export * from "./translate.ts";
export { type Mapped, READ_LIMIT, type ReadRange, VirtualMemory, WRITE_LIMIT } from "./virtual.ts";
