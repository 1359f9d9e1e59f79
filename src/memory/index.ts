// SPDX-License-Identifier: MIT
/** Guest memory: physical, and virtual under any root and paging mode. */
export * from "./address.ts";
export { PhysicalMemory, type U64 } from "./physical.ts";
export type { AddressSpace } from "./space.ts";
export * from "./translate.ts";
export { VirtualMemory } from "./virtual.ts";
