// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  EXIT_FLAGS,
  EXIT_GVA,
  EXIT_INSN_LEN,
  EXIT_NUMBER,
  EXIT_SIZE,
  HVI_CS,
  HVI_IO_IN,
  HVI_IO_REP,
  HVI_IO_STRING,
  HVI_RCX,
  HVI_RDI,
  HVI_REPLY_INJECT,
  HVI_REPLY_RETRY,
  HVI_REPLY_SKIP,
  HVI_RSI,
  HVI_STATE_ALL,
  VCPU_VALID,
} from "../bridge/index.ts";
import { PhysicalMemory } from "../memory/index.ts";
import { PortMap } from "./ports.ts";
import { type DeviceGuard, StringIo } from "./string-io.ts";

const PORT = 0x511;
const VALUE = 0x44332211;
const PG = 0x80000000;
const WP = 0x10000;
const PD = 0x1000;
const PT = 0x2000;

type Asked = [gva: number, gpa: number, size: number];

/** A vCPU in 32-bit code at an INS to `gva`; pages 0 and 1 of the guest are at 0x8000 and 0x5000. */
function make(o: {
  gva: number;
  size: number;
  rep?: number;
  readOnly?: boolean;
  wp?: boolean;
  deny?: number;
  /** OUTS. */
  out?: boolean;
}) {
  const { vm } = fakeVm();
  const memory = new PhysicalMemory(vm.ram);
  memory.write32(PD, PT | 7);
  memory.write32(PT, 0x8000 | (o.readOnly === true ? 5 : 7));
  memory.write32(PT + 4, 0x5000 | 7);
  const vcpu = vm.vcpus[0];
  vcpu.u32[VCPU_VALID >>> 2] = HVI_STATE_ALL;
  vcpu.setSeg(HVI_CS, 8, 0, 0xffffffff, 0xc09b);
  vcpu.cr0 = (PG | 1 | (o.wp === false ? 0 : WP)) >>> 0;
  vcpu.cr3 = PD;
  vcpu.setGpr(o.out === true ? HVI_RSI : HVI_RDI, o.gva, 0);
  vcpu.setGpr(HVI_RCX, o.rep ?? 0, 0);
  vcpu.u32[EXIT_FLAGS >>> 2] =
    HVI_IO_STRING | (o.out === true ? 0 : HVI_IO_IN) | (o.rep === undefined ? 0 : HVI_IO_REP);
  vcpu.u32[EXIT_GVA >>> 2] = o.gva;
  vcpu.u32[EXIT_SIZE >>> 2] = o.size;
  vcpu.u32[EXIT_NUMBER >>> 2] = PORT;
  vcpu.u32[EXIT_INSN_LEN >>> 2] = 1;
  const ports = new PortMap();
  let reads = 0;
  const portIn = () => {
    reads++;
    return VALUE;
  };
  const sent: number[] = [];
  const portOut = (_port: number, _size: number, value: number) => {
    sent.push(value);
  };
  ports.add({ portIn, portOut }, PORT, PORT, "wide");
  const asked: Asked[] = [];
  const wrote: number[] = [];
  const guard: DeviceGuard = {
    mayWrite(_vcpu, gva, gpa, size) {
      asked.push([gva, gpa, size]);
      return o.deny === undefined || Math.floor(gpa / 4096) !== o.deny;
    },
    wrote: (gpa) => {
      wrote.push(gpa);
    },
    overlay(gpa, bytes) {
      for (let i = 0; i < bytes.length; i++) if (gpa + i === 0x8fff) bytes[i] = 0x99;
    },
  };
  if (o.out === true) {
    memory.write(0x8ffe, Uint8Array.of(1, 2));
    memory.write(0x5000, Uint8Array.of(3, 4));
  }
  new StringIo(vm, ports, () => guard).handle(vcpu);
  return { vcpu, memory, asked, wrote, sent, reads: () => reads };
}

describe("INS", () => {
  test("stores what the port gives and moves on", () => {
    const { vcpu, memory, asked } = make({ gva: 0x10, size: 4 });
    expect(memory.read32(0x8010)).toBe(VALUE);
    expect(vcpu.gpr(HVI_RDI)).toBe(0x14);
    expect(vcpu.replyAction).toBe(HVI_REPLY_SKIP);
    expect(asked).toEqual([[0x10, 0x8010, 4]]);
  });

  test("asks for each page it touches and leaves out the one that is denied", () => {
    const { memory, asked, wrote } = make({ gva: 0xffe, size: 4, deny: 8 });
    expect(wrote).toEqual([0x5000]);
    expect(asked).toEqual([
      [0xffe, 0x8ffe, 2],
      [0x1000, 0x5000, 2],
    ]);
    expect(memory.read16(0x8ffe)).toBe(0);
    expect(memory.read16(0x5000)).toBe(0x4433);
  });

  test("denied, completes like any denied write", () => {
    const { vcpu, memory } = make({ gva: 0x20, size: 1, rep: 3, deny: 8 });
    expect(memory.read8(0x8020)).toBe(0);
    expect(vcpu.gpr(HVI_RCX)).toBe(2);
    expect(vcpu.replyAction).toBe(HVI_REPLY_RETRY);
  });

  test("to a page that the guest's tables forbid faults before the device is touched", () => {
    const { vcpu, memory, reads } = make({ gva: 0x20, size: 1, readOnly: true });
    expect(vcpu.replyAction).toBe(HVI_REPLY_INJECT);
    expect(memory.read8(0x8020)).toBe(0);
    expect(reads()).toBe(0);
  });

  test("with CR0.WP clear the kernel writes read-only pages", () => {
    const { memory } = make({ gva: 0x20, size: 1, readOnly: true, wp: false });
    expect(memory.read8(0x8020)).toBe(0x11);
  });
});

test("OUTS sends what the guest would have read, over a page boundary too", () => {
  const { vcpu, sent } = make({ gva: 0xffe, size: 4, out: true });
  expect(sent).toEqual([0x04039901]);
  expect(vcpu.gpr(HVI_RSI)).toBe(0x1002);
});
