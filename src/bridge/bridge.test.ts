// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import * as abi from "./abi.ts";
import { EptRanges } from "./ept-ranges.ts";
import { BackendError, HviError } from "./error.ts";
import { FakeBackend, type FakeReply, fakeVm } from "./fake.fixture.ts";
import { openVm } from "./index.ts";
import { hasDevice } from "./native.ts";
import { GuestRam, RAM_CHUNK } from "./ram.ts";
import type { Vcpu } from "./vcpu.ts";
import { Vm } from "./vm.ts";

describe("Vm", () => {
  test("says what the backend is", () => {
    const { vm } = fakeVm();
    expect(vm.info).toMatchObject({
      backend: "fake",
      abiVersion: abi.HVI_ABI_VERSION,
      tscKhz: 1e6,
    });
    expect(vm.info.maxGfn).toBe(0xfffffffff);
    expect(vm.has(abi.HVI_CAP_MTF)).toBe(true);
    expect(vm.has(abi.HVI_CAP_SPP)).toBe(false);
  });

  test("refuses another ABI version and names both", () => {
    const backend = new FakeBackend({ abiVersion: 99 });
    expect(() => new Vm(backend)).toThrow(/version 99.*version 2/);
    expect(backend.closed).toBe(true);
    try {
      new Vm(new FakeBackend({ abiVersion: 99 }));
    } catch (e) {
      expect(e).toBeInstanceOf(BackendError);
      expect((e as BackendError).hint).not.toBe("");
    }
  });

  test("RAM slots keep their order in the mapping", () => {
    const vm = new Vm(new FakeBackend());
    vm.create({ vcpus: 2 });
    vm.addMemory({ gpa: 0, size: 0x2000 });
    vm.addMemory({ gpa: 0x100000000, size: 0x1000 });
    expect(() => vm.ram).toThrow("not mapped");
    vm.mapMemory();
    expect(vm.ram.slots.map((s) => s.offset)).toEqual([0, 0x2000]);
    expect(vm.ram.offsetOf(0x100000010)).toBe(0x2010);
    expect(vm.ram.offsetOf(0x2000)).toBe(-1);
    expect(vm.ram.gpaOf(0x2010)).toBe(0x100000010);
    expect(vm.vcpus.length).toBe(2);
    expect(() => vm.addMemory({ gpa: 0x200000, size: 0x1000 })).toThrow();
  });

  test("run gives the vCPU that exited, and passes the deadline", () => {
    const { vm, backend } = fakeVm({ vcpus: 2 });
    backend.exits.push((page) => {
      const p = page(1);
      p[abi.EXIT_REASON >>> 2] = abi.HVI_EXIT_EPT;
      p[abi.EXIT_GPA >>> 2] = 0x1234;
      p[(abi.EXIT_GPA >>> 2) + 1] = 1;
      p[abi.EXIT_GVA >>> 2] = 0x81000000;
      p[(abi.EXIT_GVA >>> 2) + 1] = 0xffffffff;
      return 1;
    });
    const v = vm.run(2 ** 40 + 5);
    expect(v.index).toBe(1);
    expect(v.exitName).toBe("EPT");
    expect(v.exitGpa).toBe(0x100001234);
    expect(v.exitGva).toBe(-0x7f000000);
    expect(backend.calls.at(-1)).toEqual({ name: "HVI_RUN", args: { deadline: 2 ** 40 + 5 } });
    expect(() => vm.run()).toThrow(HviError);
    expect(backend.replies).toEqual([]);
    vm.vcpus[1].scratch();
    backend.exits.push(() => 0);
    vm.run();
    expect(backend.replies.map((r) => [r.action, r.flags])).toEqual([[abi.HVI_REPLY_SCRATCH, 0]]);
    expect([vm.vcpus[1].replyAction, vm.vcpus[1].replyFlags]).toEqual([abi.HVI_REPLY_RESUME, 0]);
  });

  test("masks of intercepts are remembered, those that were refused are not", () => {
    const { vm, backend } = fakeVm();
    expect(vm.interceptMask(abi.HVI_INTERCEPT_CR4_WRITE, 0)).toBe(0);
    vm.intercept(abi.HVI_INTERCEPT_CR4_WRITE, 0, 2 ** 40 + 0x80);
    vm.intercept(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082, 1);
    backend.failNth(1, 22, "HVI_INTERCEPT");
    expect(() => vm.intercept(abi.HVI_INTERCEPT_CR4_WRITE, 0, 1)).toThrow(HviError);
    expect(vm.interceptMask(abi.HVI_INTERCEPT_CR4_WRITE, 0)).toBe(2 ** 40 + 0x80);
    expect(vm.interceptMask(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082)).toBe(1);
    expect(vm.interceptMask(abi.HVI_INTERCEPT_MSR_READ, 0xc0000082)).toBe(0);
    vm.intercept(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082, 0);
    expect(vm.interceptMask(abi.HVI_INTERCEPT_MSR_WRITE, 0xc0000082)).toBe(0);
    vm.intercept(abi.HVI_INTERCEPT_IO, 0x80, 1);
    expect(vm.interceptMask(abi.HVI_INTERCEPT_IO, 0x80)).toBe(0);
  });

  test("rights, batches and views", () => {
    const { vm, backend } = fakeVm();
    vm.setRights(0, 5, 2, abi.HVI_R);
    expect([4, 5, 6, 7].map((g) => vm.rights(0, g))).toEqual([7, 1, 1, 7]);
    expect(vm.rights(0, 0x100000)).toBe(0);
    const view = vm.createView(0);
    const batch = new EptRanges(1);
    for (let g = 10; g < 20; g++) batch.add(g, 1, abi.HVI_X);
    batch.add(20, 1, abi.HVI_R);
    batch.add(40, 3, abi.HVI_R);
    expect(batch.length).toBe(3);
    vm.setRightsBatch(view, batch);
    expect(vm.rights(view, 19)).toBe(abi.HVI_X);
    expect(vm.rights(view, 42)).toBe(abi.HVI_R);
    expect(vm.rights(view, 5)).toBe(abi.HVI_R);
    expect(vm.rights(0, 42)).toBe(7);
    expect(() => vm.setRights(0, 5, 1, abi.HVI_W)).toThrow("HVI_EPT_SET failed: EINVAL");
    backend.failNth(1, 12, "HVI_EPT_SET");
    expect(() => vm.setRights(0, 9, 1, 0)).toThrow("ENOMEM");
    expect(vm.rights(0, 9)).toBe(7);
    vm.destroyView(view);
    expect(() => vm.rights(view, 1)).toThrow("ENOENT");
  });

  test("spare pages and remapping", () => {
    const { vm, backend } = fakeVm();
    expect(vm.addSpare(2)).toBe(0);
    expect(vm.addSpare(1)).toBe(2);
    vm.spare(2)[7] = 9;
    expect(vm.spare(2).length).toBe(4096);
    expect(() => vm.spare(3)).toThrow(RangeError);
    vm.remap(0, 3, 2);
    expect(backend.remapOf(0, 3)).toBe(2);
    vm.remap(0, 3, -1);
    expect(backend.remapOf(0, 3)).toBeUndefined();
  });

  test("CPUID, XSAVE and MSRs go through", () => {
    const { vm } = fakeVm();
    const entry = { leaf: 0x80000001, index: 2, flags: 1, eax: 0xffffffff, ebx: 2, ecx: 3, edx: 4 };
    vm.setCpuid([entry]);
    expect(vm.physicalBits).toBe(52);
    const sizes = { ...entry, leaf: 0x80000008, eax: 0x3028 };
    vm.setCpuid([entry, sizes]);
    expect(vm.physicalBits).toBe(40);
    vm.setCpuid([entry]);
    expect(vm.supportedCpuid()).toEqual([entry]);
    vm.setXsave(0, new Uint8Array(832).fill(7));
    expect(vm.getXsave(0)[831]).toBe(7);
    vm.setMsrs(0, [{ index: 0x277, value: 0xfedc_ba98_7654_3210n }]);
    expect(vm.getMsrs(0, [0x277, 0x10])).toEqual([0xfedc_ba98_7654_3210n, 0n]);
    expect(vm.listMsrs()).toEqual([0x277]);
    expect(vm.mtrrType(0)).toBe(6);
  });

  test("after close nothing can be reached", () => {
    const { vm, backend } = fakeVm();
    const ram = vm.ram;
    const kept = ram.view(0, 16)!;
    const page = vm.vcpus[0].page;
    vm.close();
    vm.close();
    expect(backend.closed).toBe(true);
    expect(kept.length).toBe(0);
    expect(page.length).toBe(0);
    expect(ram.offsetOf(0)).toBe(-1);
    expect(() => vm.ram).toThrow("closed");
    expect(() => vm.run()).toThrow("closed");
    expect(() => vm.setRights(0, 0, 1, 0)).toThrow("closed");
  });
});

test.skipIf(hasDevice())("no device: the error names it and the next step", () => {
  try {
    openVm({ backend: "vmx" });
    throw new Error("it opened");
  } catch (e) {
    expect(e).toBeInstanceOf(BackendError);
    expect((e as BackendError).message).toBe("/dev/hvi does not exist");
    expect((e as BackendError).hint).toContain("--backend soft");
  }
});

describe("Vcpu", () => {
  test("64-bit registers", () => {
    const { vm } = fakeVm();
    const v = vm.vcpus[0];
    v.setGpr(abi.HVI_RAX, 0x81000000, 0xffffffff);
    expect(v.gpr(abi.HVI_RAX)).toBe(-0x7f000000);
    expect(v.gprExact(abi.HVI_RAX)).toBe(true);
    v.setGpr(abi.HVI_R15, 1, 0x12345678);
    expect(v.gprExact(abi.HVI_R15)).toBe(false);
    expect([v.gprLo(abi.HVI_R15), v.gprHi(abi.HVI_R15)]).toEqual([1, 0x12345678]);
    expect(v.dirty).toBe(abi.HVI_STATE_GPR);
    v.rip = -0x7f000000;
    expect([v.u32[abi.VCPU_RIP >>> 2], v.u32[(abi.VCPU_RIP >>> 2) + 1]]).toEqual([
      0x81000000, 0xffffffff,
    ]);
    expect(v.rip).toBe(-0x7f000000);
    v.cr3 = 0x12_3456_7000;
    expect(v.cr3).toBe(0x12_3456_7000);
    v.efer = 0xd01;
    expect(v.dirty).toBe(abi.HVI_STATE_GPR | abi.HVI_STATE_CR | abi.HVI_STATE_MSR);
  });

  test("segments and ring", () => {
    const { vm } = fakeVm();
    const v = vm.vcpus[0];
    v.setSeg(abi.HVI_GS, 0x2b, -0x776000000000, 0xffffffff, 0xc0f3);
    v.setSeg(abi.HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
    expect(v.segBase(abi.HVI_GS)).toBe(-0x776000000000);
    expect(v.segSelector(abi.HVI_GS)).toBe(0x2b);
    expect(v.segLimit(abi.HVI_GS)).toBe(0xffffffff);
    expect(v.segAccess(abi.HVI_GS)).toBe(0xc0f3);
    expect(v.cpl).toBe(3);
    v.setIdt(-0x1000, 0xfff);
    expect([v.idtBase, v.idtLimit]).toEqual([-0x1000, 0xfff]);
  });

  test("groups that the exit left out are fetched once", () => {
    const { vm, backend } = fakeVm();
    const v = vm.vcpus[0];
    v.u32[abi.VCPU_VALID >>> 2] = abi.HVI_STATE_GPR;
    expect(v.rip).toBe(0);
    expect(v.cr3).toBe(0);
    expect(v.cr4).toBe(0);
    expect(backend.calls).toEqual([
      { name: "HVI_FETCH", args: { vcpu: 0, groups: abi.HVI_STATE_CR } },
    ]);
  });

  test("replies and events", () => {
    const { vm } = fakeVm();
    const v = vm.vcpus[0];
    v.step(3, true);
    expect(v.replyAction).toBe(abi.HVI_REPLY_STEP);
    expect(v.u32[abi.REPLY_STEP_VIEW >>> 2]).toBe(3);
    v.emulate(0x5ffc, Uint8Array.of(1, 2, 3, 4, 5, 6), 0x9000);
    const range = (i: number): number[] => [
      ...v.u32.subarray((abi.REPLY_RANGE >>> 2) + 4 * i, (abi.REPLY_RANGE >>> 2) + 4 * i + 4),
    ];
    expect(range(0)).toEqual([0x5ffc, 0, 4, 0]);
    expect(range(1)).toEqual([0x9000, 0, 2, 4]);
    expect([...v.page.subarray(abi.REPLY_BYTES, abi.REPLY_BYTES + 6)]).toEqual([1, 2, 3, 4, 5, 6]);
    expect(() => v.emulate(0x5ffc, new Uint8Array(5))).toThrow(RangeError);
    expect(() => v.emulate(0, new Uint8Array(257))).toThrow(RangeError);
    v.emulate(0x6000, Uint8Array.of(9));
    expect(range(0)).toEqual([0x6000, 0, 1, 0]);
    expect(range(1)[2]).toBe(0);
    expect(v.replyFlags).toBe(0);
    v.inject(abi.HVI_EVENT_EXCEPTION, 14, 2, -0x7f000000, true);
    v.injectReply();
    expect(v.eventPending).toBe(true);
    expect(v.u32[abi.EVENT_FLAGS >>> 2]).toBe(
      abi.HVI_EVENT_VALID | abi.HVI_EVENT_ERROR_CODE | abi.HVI_EVENT_CR2 | abi.HVI_EVENT_NOTIFY,
    );
    expect(v.eventVector).toBe(14);
  });
});

describe("replies", () => {
  /** What the backend takes for what `answer` sets. */
  function taken(answer: (v: Vcpu, vm: Vm) => void): FakeReply {
    const { vm, backend } = fakeVm();
    vm.addSpare(3);
    backend.exits.push(
      () => 0,
      () => 0,
    );
    answer(vm.run(), vm);
    vm.run();
    return backend.replies[0]!;
  }

  test("the flag of each setter", () => {
    const flags = (answer: (v: Vcpu) => void) => taken(answer).flags;
    expect(flags((v) => v.resume())).toBe(0);
    expect(flags((v) => v.resume(true))).toBe(abi.HVI_REPLY_NOTIFY);
    expect(flags((v) => v.scratch(true))).toBe(abi.HVI_REPLY_NOTIFY);
    expect(taken((v) => v.step(2, true))).toMatchObject({
      action: abi.HVI_REPLY_STEP,
      flags: abi.HVI_REPLY_NOTIFY,
      stepView: 2,
    });
    // A setter forgets what one before it had set.
    for (const next of ["resume", "skip", "retry", "scratch", "injectReply"] as const) {
      const answer = (v: Vcpu) => {
        v.beginEmulate();
        v.endEmulate(true, true);
        v[next]();
      };
      expect(flags(answer)).toBe(0);
    }
  });

  test("EMULATE from spare pages", () => {
    const reply = taken((v) => {
      v.beginEmulate();
      expect(v.emulateSpare(0x5_0000_0010, 0xff0, 2)).toBe(true);
      expect(v.emulateSpare(0x6000, 4096, 0)).toBe(true);
      expect(v.emulateBytes(0x7000, Uint8Array.of(1))).toBe(false);
      expect(v.emulateSpare(0x7ffc, 5, 0)).toBe(false);
      v.endEmulate(true, false);
    });
    expect(reply.flags).toBe(abi.HVI_REPLY_SPARE | abi.HVI_REPLY_WRITE);
    expect(reply.ranges).toEqual([
      { gpa: 0x5_0000_0010, length: 0xff0, offset: 2 },
      { gpa: 0x6000, length: 4096, offset: 0 },
    ]);
  });

  test("EMULATE of several ranges, and of fewer after it", () => {
    const reply = taken((v) => {
      v.beginEmulate();
      for (let i = 0; i < abi.HVI_EMULATE_RANGES; i++)
        expect(v.emulateSpare(0x1000, 8, 0)).toBe(true);
      expect(v.emulateSpare(0x1000, 8, 0)).toBe(false);
      v.endEmulate(false, true);
      v.beginEmulate();
      expect(v.emulateBytes(0x2000, Uint8Array.of(1, 2, 3, 4), 1, 2)).toBe(true);
      expect(v.emulateBytes(0x3fff, Uint8Array.of(1, 2))).toBe(false);
      expect(v.emulateBytes(0x3000, new Uint8Array(254).fill(7))).toBe(true);
      expect(v.emulateBytes(0x4000, Uint8Array.of(1))).toBe(false);
      expect(v.emulateSpare(0x4000, 1, 0)).toBe(false);
      v.endEmulate(false, true);
    });
    expect(reply.flags).toBe(abi.HVI_REPLY_NOTIFY);
    expect(reply.ranges).toEqual([
      { gpa: 0x2000, length: 2, offset: 0 },
      { gpa: 0x3000, length: 254, offset: 2 },
    ]);
    expect([...reply.bytes.subarray(0, 3)]).toEqual([2, 3, 7]);
  });

  test("what a backend refuses is refused", () => {
    const refused = (answer: (v: Vcpu) => void) => expect(() => taken(answer)).toThrow("EINVAL");
    refused((v) => {
      v.beginEmulate();
      v.emulateSpare(0x1000, 8, 3);
      v.endEmulate(false, false);
    });
    refused((v) => {
      v.emulate(0x1ff8, new Uint8Array(8));
      v.u32[abi.REPLY_RANGE >>> 2] = 0x1ffc;
    });
    refused((v) => {
      v.skip();
      v.u32[abi.REPLY_FLAGS >>> 2] = abi.HVI_REPLY_NOTIFY;
    });
    refused((v) => {
      v.scratch();
      v.u32[abi.REPLY_FLAGS >>> 2] = abi.HVI_REPLY_WRITE;
    });
  });
});

describe("GuestRam", () => {
  test("finds bytes across slots", () => {
    const buffer = new ArrayBuffer(0x3000);
    const ram = new GuestRam(
      [
        { gpa: 0x1000, size: 0x1000, offset: 0 },
        { gpa: 0x2000, size: 0x1000, offset: 0x1000 },
        { gpa: 0x8000, size: 0x1000, offset: 0x2000 },
      ],
      [buffer],
    );
    expect(ram.contains(0x1ff0, 0x20)).toBe(true);
    expect(ram.contains(0x2ff0, 0x20)).toBe(false);
    expect(ram.contains(0, 1)).toBe(false);
    expect(ram.view(0x8ff0, 16)!.length).toBe(16);
    expect(ram.view(0x8ff0, 17)).toBeUndefined();
    expect(ram.u8(0x8004)!.offset).toBe(0x2004);
    expect(ram.offsetOf(Number.NaN)).toBe(-1);
    expect(ram.offsetOf(-1)).toBe(-1);
    expect(RAM_CHUNK % 4096).toBe(0);
  });
});
