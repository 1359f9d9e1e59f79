// SPDX-License-Identifier: MIT
/** The introspection core as scenarios use it: the engine's classes over one guest. */
import { HVI_EXIT_EPT, type Vcpu } from "../../src/bridge/index.ts";
import { GpaHooks, type PageAccess } from "../../src/ept/gpa-hooks.ts";
import { ExitInstructions } from "../../src/ept/instructions.ts";
import type { CoreGuest, ExitHandler } from "./guest.ts";

export class Core implements ExitHandler {
  readonly hooks: GpaHooks;
  readonly #instructions: ExitInstructions;

  constructor(guest: CoreGuest) {
    this.#instructions = new ExitInstructions(guest.vm, guest.memory);
    this.hooks = new GpaHooks(guest.vm, this.#instructions);
  }

  handle(vcpu: Vcpu): boolean {
    this.hooks.settle(vcpu);
    if (vcpu.exitReason !== HVI_EXIT_EPT) return false;
    const ours = this.hooks.dispatch(vcpu);
    if (ours) this.hooks.commit();
    return ours;
  }

  /** Bytes that an access writes from its address on; how many there are, -1 when they are not known. */
  written(access: PageAccess, out: Uint8Array): number {
    return this.#instructions.bytes(access, out);
  }
}
