// SPDX-License-Identifier: MIT
import {
  HVI_ACCESS_GVA,
  HVI_ACCESS_WRITE,
  HVI_EXIT_EPT,
  HVI_EXIT_STEP,
  type Vcpu,
  type Vm,
} from "./bridge/index.ts";
import { ALLOW, GpaHooks } from "./ept/gpa-hooks.ts";
import { ExitInstructions } from "./ept/instructions.ts";
import type { WrittenBytes } from "./ept/page-tables.ts";
import type { PhysicalMemory } from "./memory/physical.ts";

/**
 * What of introspection does not depend on the guest's operating system: the hooks on memory and
 * registers, and who gets which exit.
 */
export class Introspection {
  readonly hooks: GpaHooks;
  readonly written: WrittenBytes;

  constructor(vm: Vm, memory: PhysicalMemory) {
    const instructions = new ExitInstructions(vm, memory);
    this.hooks = new GpaHooks(vm, instructions);
    this.written = (access, out) => instructions.bytes(access, out);
  }

  /**
   * First refusal of an exit.
   * @returns true when it was for a hook and the reply is set
   */
  handle(vcpu: Vcpu): boolean {
    const ours = this.#dispatch(vcpu);
    this.hooks.commit();
    return ours;
  }

  #dispatch(vcpu: Vcpu): boolean {
    this.hooks.settle(vcpu);
    switch (vcpu.exitReason) {
      case HVI_EXIT_EPT:
        return this.hooks.dispatch(vcpu);
      case HVI_EXIT_STEP:
        // The news that an instruction is over, which settle() has dealt with.
        vcpu.resume();
        return true;
      default:
        return false;
    }
  }

  /**
   * Whether a device may write guest memory for the instruction at hand, which no EPT sees.
   * @param gva linear address of the first byte; the range does not leave its page
   */
  mayWrite(vcpu: Vcpu, gva: number, gpa: number, size: number): boolean {
    const action = this.hooks.ask(vcpu, gpa, size, gva, HVI_ACCESS_WRITE | HVI_ACCESS_GVA);
    this.hooks.commit();
    return action === ALLOW;
  }
}
