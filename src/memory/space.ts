// SPDX-License-Identifier: MIT
import type { PagingFeatures, PagingMode } from "./translate.ts";

/** One address space of the guest: what a walk of its tables needs to know. VirtualMemory is one. */
export interface AddressSpace {
  /** CR3; bits that are no address (PCID) are allowed. */
  readonly root: number;
  readonly mode: PagingMode;
  readonly features: PagingFeatures;
}
