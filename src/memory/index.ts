// SPDX-License-Identifier: MIT
/** Guest memory: physical, and virtual under any root and paging mode. */
export * from "./address.ts";
export { GPA_NO_RAM, GPA_NO_ROOM, GpaCache } from "./gpa-cache.ts";
export { GuestMemory, type PagingRegisters } from "./guest-memory.ts";
export { PhysicalMemory, type TableSource, type U64 } from "./physical.ts";
export * from "./safe-write.ts";
export { type AddressSpace, rootTable } from "./space.ts";
export * from "./swapped.ts";
export * from "./translate.ts";
export { type Mapped, READ_LIMIT, type ReadRange, VirtualMemory, WRITE_LIMIT } from "./virtual.ts";
