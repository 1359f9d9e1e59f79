// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { Clock } from "../clock.ts";
import { LAPIC_HZ, LapicBus, MSR_APIC_BASE, MSR_TSC_DEADLINE } from "./lapic.ts";

function make(cpus = 1) {
  const clock = new Clock(1_000_000);
  const bus = new LapicBus();
  for (let i = 0; i < cpus; i++) bus.add(clock).setUpAsFirmware();
  return { clock, bus, apic: bus.apics[0] };
}

test("an interrupt is pending above the priority in service only", () => {
  const { apic } = make();
  apic.accept(0x31, false);
  expect(apic.pending()).toBe(0x31);
  apic.acknowledge(0x31);
  apic.accept(0x3f, false);
  expect(apic.pending()).toBe(-1);
  apic.accept(0x40, false);
  expect(apic.pending()).toBe(0x40);
  apic.mmioWrite(0xb0, 0);
  apic.acknowledge(0x40);
  apic.mmioWrite(0xb0, 0);
  expect(apic.pending()).toBe(0x3f);
  apic.mmioWrite(0x80, 0x30);
  expect(apic.pending()).toBe(-1);
});

test("the timer counts at the told rate, one shot and periodic", () => {
  const { clock, apic } = make();
  apic.mmioWrite(0x3e0, 0xb);
  apic.mmioWrite(0x320, 0x50);
  apic.mmioWrite(0x380, LAPIC_HZ / 1000);
  clock.advance(500_000);
  expect(apic.mmioRead(0x390)).toBe(LAPIC_HZ / 2000);
  clock.advance(1_000_000);
  expect(apic.pending()).toBe(0x50);
  expect(apic.mmioRead(0x390)).toBe(0);
  expect(clock.next).toBe(Infinity);
  apic.mmioWrite(0x320, 0x20050);
  apic.mmioWrite(0x380, LAPIC_HZ / 1000);
  expect(clock.next).toBe(2_000_000);
  clock.advance(2_000_000);
  expect(clock.next).toBe(3_000_000);
});

test("TSC deadline mode", () => {
  const { clock, apic } = make();
  expect(apic.msrWrite(MSR_TSC_DEADLINE, 5000, 0)).toBe(true);
  expect(clock.next).toBe(Infinity); // not in that mode yet
  apic.mmioWrite(0x320, 0x40051);
  apic.msrWrite(MSR_TSC_DEADLINE, 5000, 0);
  expect(apic.msrRead(MSR_TSC_DEADLINE)).toBe(5000);
  clock.advance(5000);
  expect(apic.pending()).toBe(0x51);
  expect(apic.msrRead(MSR_TSC_DEADLINE)).toBe(0);
});

test("APIC_BASE takes the legal transitions only", () => {
  const { apic } = make();
  const base = apic.msrRead(MSR_APIC_BASE);
  expect(base).toBe(0xfee00900);
  expect(apic.msrWrite(MSR_APIC_BASE, 0xfee00500, 0)).toBe(false);
  expect(apic.msrWrite(MSR_APIC_BASE, 0xfee00d00, 0)).toBe(true);
  expect(apic.x2apic).toBe(true);
  expect(apic.msrWrite(MSR_APIC_BASE, 0xfee00900, 0)).toBe(false);
  expect(apic.msrRead(0x802)).toBe(0);
  expect(apic.msrRead(0x80e)).toBe(-1);
  expect(apic.msrWrite(0x80b, 1, 0)).toBe(false);
  expect(apic.msrWrite(MSR_APIC_BASE, 0xfee00100, 0)).toBe(true);
  expect(apic.enabled).toBe(false);
});

test("IPIs: INIT and start-up to one, fixed to all others, logical destinations", () => {
  const { bus, apic } = make(3);
  apic.mmioWrite(0x310, 1 << 24);
  apic.mmioWrite(0x300, 0xc500);
  apic.mmioWrite(0x300, 0x4608);
  expect(bus.apics[1].init).toBe(true);
  expect(bus.apics[1].startup).toBe(8);
  expect(bus.apics[2].init).toBe(false);
  apic.mmioWrite(0x300, 0xc4044);
  expect(bus.apics.map((a) => a.pending())).toEqual([-1, 0x44, 0x44]);
  bus.apics[2].mmioWrite(0xd0, 4 << 24);
  bus.send(0, 0x55, 4, true, false);
  expect(bus.apics.map((a) => a.pending())).toEqual([-1, 0x44, 0x55]);
});

test("state survives save and restore", () => {
  const { clock, apic } = make();
  apic.accept(0x61, true);
  apic.mmioWrite(0x320, 0x20050);
  apic.mmioWrite(0x380, 1000);
  const other = new LapicBus().add(clock);
  other.restore(JSON.parse(JSON.stringify(apic.save())));
  expect(other.save()).toEqual(apic.save());
  expect(other.pending()).toBe(0x61);
});
