// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { IoApic } from "./ioapic.ts";

function make() {
  const ioapic = new IoApic();
  const sent: { vector: number; level: boolean; dest: number }[] = [];
  ioapic.send = (_mode, vector, dest, _logical, level) => sent.push({ vector, level, dest });
  const write = (register: number, value: number) => {
    ioapic.mmioWrite(0, 4, register);
    ioapic.mmioWrite(0x10, 4, value);
  };
  const read = (register: number) => {
    ioapic.mmioWrite(0, 4, register);
    return ioapic.mmioRead(0x10);
  };
  return { ioapic, sent, write, read };
}

test("an edge is sent once, and ignored while masked", () => {
  const { ioapic, sent, write } = make();
  ioapic.set(4, true);
  ioapic.set(4, false);
  write(0x19, 0x03000000);
  write(0x18, 0x34);
  expect(sent).toEqual([]);
  ioapic.set(4, true);
  expect(sent).toEqual([{ vector: 0x34, level: false, dest: 3 }]);
  ioapic.set(4, false);
  ioapic.set(4, true);
  expect(sent.length).toBe(2);
});

test("a level is sent again after the EOI while the line is high", () => {
  const { ioapic, sent, write, read } = make();
  write(0x22, 0x8041);
  ioapic.set(9, true);
  expect(sent.length).toBe(1);
  expect(read(0x22) & 0x4000).toBe(0x4000);
  ioapic.endOfInterrupt(0x41);
  expect(sent.length).toBe(2);
  ioapic.set(9, false);
  ioapic.endOfInterrupt(0x41);
  expect(sent.length).toBe(2);
  expect(read(0x22) & 0x4000).toBe(0);
});

test("version and identification", () => {
  const { write, read } = make();
  expect(read(1)).toBe(0x170020);
  write(0, 0x05000000);
  expect(read(0)).toBe(0x05000000);
});
