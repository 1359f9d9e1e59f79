// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { Clock } from "../clock.ts";
import { PIT_HZ, Pit } from "./pit.ts";

function make() {
  const clock = new Clock(1_000_000);
  let edges = 0;
  let last = false;
  const pit = new Pit(clock, (level) => {
    if (level && !last) edges++;
    last = level;
  });
  const to = (seconds: number) => {
    const target = seconds * 1e9;
    while (clock.next <= target) clock.advance(clock.next);
    clock.advance(target);
  };
  return { clock, pit, to, edges: () => edges };
}

test("channel 0 in mode 2 interrupts at its rate", () => {
  const { pit, to, edges } = make();
  pit.portOut(0x43, 1, 0x34);
  const before = edges();
  const reload = Math.round(PIT_HZ / 100);
  pit.portOut(0x40, 1, reload & 0xff);
  pit.portOut(0x40, 1, reload >> 8);
  to(1.0005);
  expect(edges() - before).toBe(100);
});

test("channel 0 in mode 0 interrupts once", () => {
  const { pit, to, edges } = make();
  pit.portOut(0x43, 1, 0x30);
  const before = edges();
  pit.portOut(0x40, 1, 0xe8);
  pit.portOut(0x40, 1, 0x03);
  to(0.01);
  expect(edges() - before).toBe(1);
});

test("channel 2 raises its output in port 0x61 when the count is over", () => {
  const { pit, to } = make();
  pit.portOut(0x61, 1, 1);
  pit.portOut(0x43, 1, 0xb0);
  const count = 11932;
  pit.portOut(0x42, 1, count & 0xff);
  pit.portOut(0x42, 1, count >> 8);
  expect(pit.portIn(0x61) & 0x20).toBe(0);
  to(0.0099);
  expect(pit.portIn(0x61) & 0x20).toBe(0);
  to(0.0101);
  expect(pit.portIn(0x61) & 0x20).toBe(0x20);
});

test("a latched count stays while the counter goes on", () => {
  const { pit, to } = make();
  pit.portOut(0x43, 1, 0x34);
  pit.portOut(0x40, 1, 0);
  pit.portOut(0x40, 1, 0);
  to(0.001);
  pit.portOut(0x43, 1, 0x00);
  to(0.002);
  const low = pit.portIn(0x40);
  const latched = low | (pit.portIn(0x40) << 8);
  expect(65536 - latched).toBe(Math.floor(PIT_HZ / 1000));
  const later = pit.portIn(0x40) | (pit.portIn(0x40) << 8);
  expect(later).toBeLessThan(latched);
});

test("its state survives save and restore", () => {
  const { pit, clock } = make();
  pit.portOut(0x43, 1, 0x34);
  pit.portOut(0x40, 1, 0x10);
  pit.portOut(0x40, 1, 0x27);
  const copy = new Pit(clock, () => {});
  copy.restore(JSON.parse(JSON.stringify(pit.save())));
  expect(copy.save()).toEqual(pit.save());
});
