// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { Clock } from "../clock.ts";
import { Rtc } from "./rtc.ts";

function make(epoch: number) {
  const clock = new Clock(1_000_000);
  let level = false;
  const rtc = new Rtc(
    clock,
    (l) => {
      level = l;
    },
    epoch,
  );
  const read = (index: number) => {
    rtc.portOut(0x70, 1, index);
    return rtc.portIn(0x71);
  };
  const write = (index: number, value: number) => {
    rtc.portOut(0x70, 1, index);
    rtc.portOut(0x71, 1, value);
  };
  const to = (seconds: number) => {
    const target = seconds * 1e9;
    while (clock.next <= target) clock.advance(clock.next);
    clock.advance(target);
  };
  return { rtc, clock, read, write, to, level: () => level };
}

test("shows the time in BCD and moves with guest time", () => {
  const { read, to } = make(Date.UTC(2026, 10, 22, 21, 59, 58) / 1000);
  expect([9, 8, 7, 4, 2, 0].map(read)).toEqual([0x26, 0x11, 0x22, 0x21, 0x59, 0x58]);
  expect(read(0x32)).toBe(0x20);
  to(3);
  expect([4, 2, 0].map(read)).toEqual([0x22, 0x00, 0x01]);
});

test("UIP is set for the last 244 microseconds of a second", () => {
  const { read, to } = make(1_000_000);
  to(0.5);
  expect(read(0x0a) & 0x80).toBe(0);
  to(0.9999);
  expect(read(0x0a) & 0x80).toBe(0x80);
});

test("the update interrupt comes each second and reading C clears it", () => {
  const { read, write, to, level } = make(1_000_000);
  write(0x0b, 0x12);
  to(1.001);
  expect(level()).toBe(true);
  expect(read(0x0c) & 0x90).toBe(0x90);
  expect(level()).toBe(false);
  to(2.001);
  expect(level()).toBe(true);
});

test("the time can be set", () => {
  const { read, write, to } = make(0);
  write(0x0b, 0x82);
  for (const [index, value] of [
    [9, 0x30],
    [0x32, 0x20],
    [8, 0x01],
    [7, 0x02],
    [4, 0x03],
    [2, 0x04],
    [0, 0x05],
  ])
    write(index, value);
  write(0x0b, 0x02);
  to(10);
  expect([9, 8, 7, 4, 2, 0].map(read)).toEqual([0x30, 0x01, 0x02, 0x03, 0x04, 0x15]);
});
