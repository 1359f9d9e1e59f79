// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import type { Alert } from "./alerts/alert.ts";
import { AlertQueue } from "./alerts/queue.ts";
import { fakeVm } from "./bridge/fake.fixture.ts";
import {
  EXIT_TSC,
  HVI_ACCESS_WRITE,
  HVI_CS,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_R,
  HVI_REPLY_SCRATCH,
  HVI_RSP,
  HVI_X,
  VCPU_LSTAR,
  type Vcpu,
} from "./bridge/index.ts";
import { Engine } from "./engine.ts";
import { violate } from "./ept/violation.fixture.ts";
import { AT, type SyntheticOptions, syntheticGuest } from "./guest/synthetic.fixture.ts";
import { PhysicalMemory } from "./memory/physical.ts";
import { kernelImage } from "./protect/kernel-image/index.ts";

const BOOTING = 1;
const RUNNING = 3;
const DATA_PAGE_OF_STATE = 0x1c1;

/** A made-up kernel in the RAM of a fake backend, with the engine on it. */
function setup(state: number, options: SyntheticOptions = {}) {
  const made = syntheticGuest(options);
  made.write32(made.base + AT.state, state);
  const { vm, backend } = fakeVm({ size: made.ram.size });
  const image = made.ram.bytes[0] as Uint8Array;
  (vm.ram.bytes[0] as Uint8Array).set(image);
  const vcpu = vm.vcpus[0];
  if (vcpu === undefined) throw new Error("no vCPU");
  vcpu.cr0 = made.cpu.cr0;
  vcpu.cr3 = made.cpu.cr3;
  vcpu.cr4 = made.cpu.cr4;
  vcpu.efer = made.cpu.efer;
  vcpu.rip = made.cpu.rip;
  vcpu.setGprNumber(HVI_RSP, made.base + 0x1f_0000);
  const words = vcpu.u32;
  words[VCPU_LSTAR >>> 2] = made.cpu.lstar >>> 0;
  words[(VCPU_LSTAR >>> 2) + 1] = Math.floor(made.cpu.lstar / 2 ** 32) >>> 0;
  const seen: Alert[] = [];
  const alerts = new AlertQueue([{ write: (a) => seen.push(a), close: () => {} }]);
  const memory = new PhysicalMemory(vm.ram);
  const engine = new Engine({ vm, memory, alerts, protections: [kernelImage] });
  const imageGfn = made.gpa(made.base) / 4096;
  const types = () => {
    alerts.drain();
    return seen.map((a) => a.type);
  };
  return { made, vm, backend, vcpu, engine, memory, seen, alerts, types, imageGfn };
}

/** Lets guest time pass until the engine is due. */
function pollDue(engine: Engine, vcpu: Vcpu): void {
  vcpu.u32[EXIT_TSC >>> 2] = engine.deadline >>> 0;
  vcpu.u32[(EXIT_TSC >>> 2) + 1] = Math.floor(engine.deadline / 2 ** 32);
  engine.poll(vcpu);
}

describe("identification", () => {
  test("waits for the guest's write to LSTAR when it has not come yet", () => {
    const { engine, vcpu, backend } = setup(BOOTING);
    vcpu.u32[VCPU_LSTAR >>> 2] = 0;
    vcpu.u32[(VCPU_LSTAR >>> 2) + 1] = 0;
    engine.attach(vcpu);
    expect(engine.stage).toBe("waiting");
    expect(backend.intercepts.get(`${HVI_INTERCEPT_MSR_WRITE}:${0xc0000082}`)).toBe(1);
  });

  test("on a guest that is no Linux gives up with the reason and touches nothing", () => {
    const { engine, vcpu, backend, vm, seen, alerts } = setup(RUNNING, { kallsyms: false });
    const before = Bun.hash(vm.ram.bytes[0] as Uint8Array);
    engine.attach(vcpu);
    while (engine.stage === "identifying") pollDue(engine, vcpu);
    alerts.drain();
    expect(engine.stage).toBe("unknown");
    expect(seen.map((a) => a.type)).toEqual(["guest-unknown"]);
    expect(engine.reason).toContain("kallsyms");
    expect(backend.restricted(0).size).toBe(0);
    expect(Bun.hash(vm.ram.bytes[0] as Uint8Array)).toBe(before);
  });

  test("on a kernel without BTF names what is missing", () => {
    const { engine, vcpu } = setup(RUNNING, { btf: null });
    engine.attach(vcpu);
    expect(engine.stage).toBe("unknown");
    expect(engine.reason).toContain("SYSTEM_RUNNING");
  });
});

describe("activation", () => {
  test("is immediate on a running kernel: text and constants lose W and nothing else changes", () => {
    const { engine, vcpu, backend, types, imageGfn } = setup(RUNNING);
    engine.attach(vcpu);
    // The made-up kernel has no ORC tables.
    expect(types()).toEqual(["guest-identified", "protection-limited", "protection-active"]);
    const restricted = backend.restricted(0);
    for (let page = 0; page < 0x90; page++)
      expect(restricted.get(imageGfn + page)).toBe(HVI_R | HVI_X);
    for (let page = 0x100; page < 0x1b0; page++) {
      expect(restricted.get(imageGfn + page)).toBe(HVI_R | HVI_X);
    }
    const tables = 3;
    expect(restricted.size).toBe(0x90 + 0xb0 + tables);
  });

  test("of a booting kernel follows its write of SYSTEM_RUNNING", () => {
    const { engine, vcpu, backend, vm, made, memory, imageGfn, types } = setup(BOOTING);
    engine.attach(vcpu);
    expect(engine.stage).toBe("booting");
    expect([...backend.restricted(0).keys()]).toEqual([imageGfn + DATA_PAGE_OF_STATE]);

    const gpa = made.gpa(made.base + AT.state);
    const exit = violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size: 4 });
    expect(engine.handle(exit)).toBe(true);
    expect(engine.deadline).toBeLessThan(Number.POSITIVE_INFINITY);
    memory.write32(gpa, RUNNING);
    pollDue(engine, vcpu);
    expect(engine.stage).toBe("active");
    // The made-up kernel has no ORC tables.
    expect(types()).toEqual(["guest-identified", "protection-limited", "protection-active"]);
    expect(backend.restricted(0).has(imageGfn + DATA_PAGE_OF_STATE)).toBe(false);
  });

  test("waits on when the state written is an earlier one", () => {
    const { engine, vcpu, backend, vm, made, memory } = setup(BOOTING);
    engine.attach(vcpu);
    const gpa = made.gpa(made.base + AT.state);
    engine.handle(violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size: 4 }));
    memory.write32(gpa, 2);
    pollDue(engine, vcpu);
    expect(engine.stage).toBe("booting");
  });

  test("ends with every right given back", () => {
    const { engine, vcpu, backend } = setup(RUNNING);
    engine.attach(vcpu);
    engine.stop();
    expect(backend.restricted(0).size).toBe(0);
  });
});

describe("kernel-image", () => {
  test("denies a write by code outside the kernel and tells who, what and where", () => {
    const { engine, vcpu, vm, backend, made, memory, alerts, seen } = setup(RUNNING);
    engine.attach(vcpu);
    // mov [rdi], eax in memory that is neither kernel text nor a module
    const code = made.base + 0x1f_8000;
    memory.write(made.gpa(code), Uint8Array.of(0x89, 0x07));
    const victim = made.base + 0x1010;
    memory.write32(made.gpa(victim), 0x11223344);
    vcpu.rip = code;
    vcpu.setGpr(7, victim >>> 0, Math.floor(victim / 2 ** 32) >>> 0);
    vcpu.setGpr(0, 0xdeadbeef, 0);
    // CS: 64-bit code, DPL 0
    vcpu.setSeg(HVI_CS, 0x10, 0, 0xffffffff, 0xa09b);
    const exit = violate(vm, backend, {
      gpa: made.gpa(victim),
      access: HVI_ACCESS_WRITE,
      size: 4,
      gva: victim,
    });
    expect(engine.handle(exit)).toBe(true);
    expect(exit.replyAction).toBe(HVI_REPLY_SCRATCH);
    alerts.drain();
    expect(seen.at(-1)).toMatchObject({
      kind: "violation",
      type: "ept-violation",
      action: "denied",
      technique: "T1014",
      originator: { kind: "unknown", instruction: "mov [rdi], eax", bytes: "8907" },
      victim: { kind: "kernel-text", symbol: "fn_0+0x10" },
      access: { size: 4, old: "44332211", new: "efbeadde", count: 1 },
    });
  });

  test("names the system call table as the victim", () => {
    const { engine, vcpu, vm, backend, made, alerts, seen } = setup(RUNNING);
    engine.attach(vcpu);
    const gpa = made.gpa(made.base + 0x10_8008);
    engine.handle(violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size: 8 }));
    alerts.drain();
    expect(seen.at(-1)).toMatchObject({
      victim: { kind: "syscall-table", symbol: "sys_call_table+0x8" },
    });
  });
});
