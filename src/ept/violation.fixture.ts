// SPDX-License-Identifier: MIT
import type { FakeBackend } from "../bridge/fake.fixture.ts";
import {
  EXIT_ACCESS,
  EXIT_GPA,
  EXIT_GVA,
  EXIT_REASON,
  EXIT_SIZE,
  HVI_ACCESS_GVA,
  HVI_EXIT_EPT,
  VCPU_RIP,
  type Vcpu,
  type Vm,
} from "../bridge/index.ts";
import type { ExitAccesses } from "./gpa-hooks.ts";

/** The exits' instructions cannot be decoded: what the exit says counts. */
export const noInstructions: ExitAccesses = {
  accesses: () => undefined,
  length: () => 0,
  gpaOf: () => -1,
};

/** Lets the fake backend's vCPU 0 exit with an EPT violation, and returns it. */
export function violate(
  vm: Vm,
  backend: FakeBackend,
  o: { gpa: number; access: number; size?: number; gva?: number; rip?: number },
): Vcpu {
  backend.exits.push((page) => {
    const words = page(0);
    words[EXIT_REASON >>> 2] = HVI_EXIT_EPT;
    words[EXIT_GPA >>> 2] = o.gpa;
    if (o.rip !== undefined) words[VCPU_RIP >>> 2] = o.rip;
    words[EXIT_SIZE >>> 2] = o.size ?? 0;
    const gva = o.gva ?? 0;
    words[EXIT_GVA >>> 2] = gva >>> 0;
    words[(EXIT_GVA >>> 2) + 1] = Math.floor(gva / 2 ** 32) >>> 0;
    words[EXIT_ACCESS >>> 2] = o.access | (o.gva === undefined ? 0 : HVI_ACCESS_GVA);
    return 0;
  });
  return vm.run();
}
