// SPDX-License-Identifier: MIT
import type { PhysicalMemory } from "./physical.ts";
import { type AddressSpace, rootTable } from "./space.ts";
import {
  type PagingFeatures,
  type PagingMode,
  pagingFeaturesOf,
  pagingModeOf,
} from "./translate.ts";
import { VirtualMemory } from "./virtual.ts";

/** Address spaces that `of` remembers. */
const SPACES = 64;
const CR4_PSE = 1 << 4;
const EFER_NXE = 1 << 11;

/** The registers that say how a vCPU translates. A Vcpu of the bridge has them. */
export interface PagingRegisters {
  readonly cr0: number;
  readonly cr3: number;
  readonly cr4: number;
  readonly efer: number;
}

/** Follows a vCPU from one address space to the next. */
class CurrentMemory extends VirtualMemory {
  declare root: number;
  declare mode: PagingMode;
  declare features: PagingFeatures;
  declare pointerSize: 4 | 8;

  follow(root: number, mode: PagingMode, features: PagingFeatures): void {
    this.root = root;
    this.mode = mode;
    this.features = features;
    this.pointerSize = VirtualMemory.pointerSizeOf(mode);
    this.walk.aim(this.physical, root, mode, features);
  }
}

/**
 * The memory of one guest, by address space: the kernel's, that which a vCPU is
 * in, and any other. Objects are used again, so that an exit which asks for one
 * that was asked for before allocates nothing.
 */
export class GuestMemory {
  /**
   * With page-table isolation, the root of the kernel's half for a CR3 that may
   * be the user's; the guest layer sets it. What it answers sees the memory of
   * both. CR3 itself at the start.
   */
  kernelRootOf: (cr3: number) => number = (cr3) => cr3;
  #kernel: VirtualMemory | undefined;
  readonly #features: readonly PagingFeatures[];
  readonly #current: CurrentMemory;
  readonly #spaces = new Map<number, VirtualMemory>();

  /** @param physicalBits MAXPHYADDR of the guest's CPUs, 32..52 */
  constructor(
    readonly physical: PhysicalMemory,
    physicalBits = 52,
  ) {
    this.#features = [0, CR4_PSE].flatMap((cr4) =>
      [0, EFER_NXE].map((efer) => pagingFeaturesOf(cr4, efer, physicalBits)),
    );
    this.#current = new CurrentMemory(physical, 0, "none", this.#features[0]);
  }

  /** The kernel's address space, for kernel addresses; undefined until the guest is known. */
  get kernel(): VirtualMemory | undefined {
    return this.#kernel;
  }
  setKernel(space: AddressSpace): void {
    this.#kernel = new VirtualMemory(this.physical, space.root, space.mode, space.features);
  }

  /** What CR4 and EFER say, in an object that is the same each time. */
  features(cpu: PagingRegisters): PagingFeatures {
    const pse = (cpu.cr4 & CR4_PSE) !== 0 ? 2 : 0;
    return this.#features[pse + ((cpu.efer & EFER_NXE) !== 0 ? 1 : 0)];
  }

  /**
   * The address space that a vCPU is in, with the kernel's root in place of the
   * user's. The object is the same each time and follows the last vCPU asked of:
   * good until the next call.
   */
  current(cpu: PagingRegisters): VirtualMemory {
    const mode = pagingModeOf(cpu.cr0, cpu.cr4, cpu.efer);
    this.#current.follow(this.kernelRootOf(cpu.cr3), mode, this.features(cpu));
    return this.#current;
  }

  /**
   * The address space of a root, in the paging mode of a vCPU; root 0 is the one
   * it is in (as with `current`). Allocates for a root that is not among the last
   * 64 asked of.
   * @param root CR3, PCID bits allowed
   */
  of(root: number, cpu: PagingRegisters): VirtualMemory {
    if (root === 0) return this.current(cpu);
    const mode = pagingModeOf(cpu.cr0, cpu.cr4, cpu.efer);
    const features = this.features(cpu);
    const table = rootTable(mode, root);
    const known = this.#spaces.get(table);
    if (known !== undefined && known.mode === mode && known.features === features) return known;
    const space = new VirtualMemory(this.physical, root, mode, features);
    if (known === undefined && this.#spaces.size >= SPACES) {
      for (const oldest of this.#spaces.keys()) {
        this.#spaces.delete(oldest);
        break;
      }
    }
    this.#spaces.set(table, space);
    return space;
  }
}
