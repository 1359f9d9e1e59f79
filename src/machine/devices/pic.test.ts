// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { PicPair } from "./pic.ts";

function ready(): PicPair {
  const pic = new PicPair();
  for (const [port, base, wiring] of [
    [0x20, 0x30, 4],
    [0xa0, 0x38, 2],
  ]) {
    pic.portOut(port, 1, 0x11);
    pic.portOut(port + 1, 1, base);
    pic.portOut(port + 1, 1, wiring);
    pic.portOut(port + 1, 1, 1);
    pic.portOut(port + 1, 1, 0);
  }
  return pic;
}

test("an edge gives the vector of its line, once", () => {
  const pic = ready();
  pic.set(4, true);
  expect(pic.intr).toBe(true);
  expect(pic.acknowledge()).toBe(0x34);
  expect(pic.intr).toBe(false);
  pic.portOut(0x20, 1, 0x20);
  expect(pic.intr).toBe(false);
  pic.set(4, false);
  pic.set(4, true);
  expect(pic.intr).toBe(true);
});

test("the slave's lines come through line 2", () => {
  const pic = ready();
  pic.set(8, true);
  expect(pic.acknowledge()).toBe(0x38);
  pic.portOut(0x20, 1, 0x0b);
  expect(pic.portIn(0x20)).toBe(4);
});

test("a lower priority waits for the end of the higher one", () => {
  const pic = ready();
  pic.set(1, true);
  expect(pic.acknowledge()).toBe(0x31);
  pic.set(5, true);
  expect(pic.intr).toBe(false);
  pic.set(0, true);
  expect(pic.acknowledge()).toBe(0x30);
  pic.portOut(0x20, 1, 0x20);
  expect(pic.intr).toBe(false);
  pic.portOut(0x20, 1, 0x61);
  expect(pic.acknowledge()).toBe(0x35);
});

test("masked lines wait", () => {
  const pic = ready();
  pic.portOut(0x21, 1, 0xff);
  pic.set(0, true);
  expect(pic.intr).toBe(false);
  pic.portOut(0x21, 1, 0xfe);
  expect(pic.acknowledge()).toBe(0x30);
});

test("an acknowledge without a request is the spurious IRQ 7", () => {
  const pic = ready();
  expect(pic.acknowledge()).toBe(0x37);
});

test("the slave's request is gone from the master when the slave masks it", () => {
  const pic = ready();
  pic.set(8, true);
  expect(pic.intr).toBe(true);
  pic.portOut(0xa1, 1, 0xff);
  expect(pic.intr).toBe(false);
});
