// SPDX-License-Identifier: MIT
import type { GuestRam, Vcpu } from "../../bridge/index.ts";

/** What `hvi run` was asked to start. */
export interface LoadRequest {
  kernel: Uint8Array;
  /** File name, for messages. */
  kernelName: string;
  initrd: Uint8Array | undefined;
  initrdName: string;
  /** Command line of the guest. */
  append: string;
  /** Bytes of RAM. */
  memory: number;
  cpus: number;
  /** Values in [0, 1), for KASLR. */
  random: () => number;
}

/**
 * A guest image that was checked against the machine it shall run in: nothing
 * that the user gave can be wrong after it was made.
 */
export interface LoadableImage {
  readonly kind: string;
  /** What was decided, one line each, for --verbose. */
  readonly notes: string[];
  /** It may count on a BIOS's interrupt set-up: vectors in real mode, timer tick. */
  readonly firmware: boolean;
  /** Puts everything into RAM and the first vCPU into its entry state. */
  place(ram: GuestRam, vcpu: Vcpu): void;
}
