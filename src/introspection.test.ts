// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "./bridge/fake.fixture.ts";
import {
  EXIT_REASON,
  EXIT_TSC,
  HVI_ACCESS_WRITE,
  HVI_EXIT_CPUID,
  HVI_EXIT_STEP,
  HVI_REPLY_RESUME,
  HVI_REPLY_SCRATCH,
  HVI_W,
  type Vcpu,
} from "./bridge/index.ts";
import { DENY } from "./ept/gpa-hooks.ts";
import { ACCEPT } from "./ept/integrity.ts";
import { violate } from "./ept/violation.fixture.ts";
import { Introspection } from "./introspection.ts";
import { FakeTables } from "./memory/fake-tables.fixture.ts";
import { PhysicalMemory, VirtualMemory } from "./memory/index.ts";

const KERNEL = -0x7f000000;
const FRAME = 0x8000;

function setup() {
  const { vm, backend } = fakeVm({ size: 0x100000 });
  const memory = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(memory, "4level", 0x10000);
  tables.map(KERNEL, FRAME);
  const space = new VirtualMemory(memory, tables.root, "4level");
  const core = new Introspection(vm, memory);
  const vcpu = vm.vcpus[0];
  const second = vm.info.tscKhz * 1000;
  /** An exit at some time, and the work that was due then. */
  const at = (vcpu: Vcpu, tsc: number, reason = HVI_EXIT_CPUID): boolean => {
    vcpu.u32[EXIT_REASON >>> 2] = reason;
    vcpu.u32[EXIT_TSC >>> 2] = tsc;
    vcpu.u32[(EXIT_TSC >>> 2) + 1] = Math.floor(tsc / 2 ** 32);
    const ours = core.handle(vcpu);
    if (core.deadline <= tsc) core.poll(vcpu);
    return ours;
  };
  return { vm, backend, memory, space, core, vcpu, second, at };
}

describe("exits", () => {
  test("on hooked pages are answered, and what hooks changed is in the EPT before the guest goes on", () => {
    const { vm, backend, core } = setup();
    const hook = core.hooks.add(5, HVI_W, () => {
      core.hooks.remove(hook);
      return DENY;
    });
    core.hooks.commit();
    const exit = violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 4 });
    expect(core.handle(exit)).toBe(true);
    expect(exit.replyAction).toBe(HVI_REPLY_SCRATCH);
    expect(backend.restricted(0).size).toBe(0);
    expect(core.statistics.read().exits).toEqual({ EPT: 1 });
  });

  test("of nobody's are the devices'", () => {
    const { core, vcpu, at } = setup();
    expect(at(vcpu, 1)).toBe(false);
    expect(core.deadline).toBe(Number.POSITIVE_INFINITY);
    expect(core.eager).toBe(false);
  });

  test("that only say that an instruction is over go on", () => {
    const { vcpu, at } = setup();
    vcpu.skip();
    expect(at(vcpu, 1, HVI_EXIT_STEP)).toBe(true);
    expect(vcpu.replyAction).toBe(HVI_REPLY_RESUME);
  });

  test("make their vCPU the current one", () => {
    const { vm } = fakeVm({ vcpus: 2 });
    const core = new Introspection(vm, new PhysicalMemory(vm.ram));
    core.handle(vm.vcpus[1] as Vcpu);
    expect(core.state.current).toBe(vm.vcpus[1] as Vcpu);
  });
});

describe("the second's work", () => {
  test("is due once a second while there is any", () => {
    const { core, vcpu, second, at, space, memory } = setup();
    const changes: number[] = [];
    const region = core.integrity.add(space, KERNEL, 64, (report) => {
      changes.push(report.changes.length);
      return ACCEPT;
    });
    at(vcpu, 1000);
    memory.write8(FRAME + 3, 7);
    expect(core.deadline).toBe(1000 + second);
    at(vcpu, second);
    expect(changes).toEqual([]);
    at(vcpu, 1000 + second);
    expect(changes).toEqual([1]);
    expect(core.deadline).toBe(1000 + 2 * second);
    if (region !== undefined) core.integrity.remove(region);
    at(vcpu, 1000 + 2 * second);
    expect(core.deadline).toBe(Number.POSITIVE_INFINITY);
  });

  test("goes on when the guest sets its TSC back", () => {
    const { core, vcpu, second, at, space, memory } = setup();
    let changes = 0;
    core.integrity.add(space, KERNEL, 64, () => {
      changes++;
      return ACCEPT;
    });
    at(vcpu, 100 * second);
    memory.write8(FRAME, 1);
    core.poll(vcpu);
    vcpu.u32[EXIT_TSC >>> 2] = 0;
    vcpu.u32[(EXIT_TSC >>> 2) + 1] = 0;
    core.poll(vcpu);
    expect(core.deadline).toBe(second);
    at(vcpu, second);
    expect(changes).toBe(1);
  });
});

test("memory that is not there is asked for after every exit, and read when it has come", () => {
  const { core, vcpu, at, space, memory } = setup();
  const results: boolean[] = [];
  core.swapped.read(space, KERNEL + 0x1000, 8, {}, (result) => {
    results.push(result.ok);
  });
  expect(core.eager).toBe(true);
  at(vcpu, 1000);
  expect(results).toEqual([]);
  new FakeTables(memory, "4level", 0x10000).map(KERNEL + 0x1000, 0x9000);
  at(vcpu, core.deadline);
  expect(results).toEqual([true]);
  expect(core.eager).toBe(false);
});

test("devices see what the guest would, and do not write what it could not", () => {
  const { core, vcpu, space, memory } = setup();
  const made = core.cloaks.cloak(space, KERNEL + 16, 4, {
    patched: Uint8Array.of(1, 2, 3, 4),
    apply: true,
  });
  expect(made.ok).toBe(true);
  const bytes = memory.read(FRAME + 14, 4) as Uint8Array;
  expect([...bytes]).toEqual([0, 0, 1, 2]);
  core.overlay(FRAME + 14, bytes);
  expect([...bytes]).toEqual([0, 0, 0, 0]);
  expect(core.mayWrite(vcpu, KERNEL + 12, FRAME + 12, 4)).toBe(true);
  expect(core.mayWrite(vcpu, KERNEL + 13, FRAME + 13, 4)).toBe(false);
  core.cloaks.uncloakAll();
  core.stop();
  expect(core.hooks.pageCount).toBe(0);
});

test("a table that a device wrote is looked at", () => {
  const { core, space, memory } = setup();
  const moved: number[] = [];
  core.tables.watch(space, KERNEL, KERNEL + 0x1000, {
    after: (change) => moved.push(change.after.gpa),
  });
  expect(space.gpaOf(KERNEL)).toBe(FRAME);
  const entry = space.last.entryGpa[3] as number;
  memory.write32(entry, 0xa000 | 7);
  core.wrote(entry);
  expect(moved).toEqual([0xa000]);
});
