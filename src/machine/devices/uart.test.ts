// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { Uart } from "./uart.ts";

function make() {
  let level = false;
  const uart = new Uart((l) => {
    level = l;
  });
  const sent: number[] = [];
  uart.onByte = (b) => sent.push(b);
  return { uart, sent, level: () => level };
}

test("Linux's 8250 autoconfiguration finds a 16550A", () => {
  const { uart } = make();
  uart.portOut(7, 1, 0x5a);
  expect(uart.portIn(7)).toBe(0x5a);
  uart.portOut(1, 1, 0x0f);
  expect(uart.portIn(1)).toBe(0x0f);
  uart.portOut(1, 1, 0);
  // Loopback: RTS and OUT2 come back as CTS and DCD.
  uart.portOut(4, 1, 0x1a);
  expect(uart.portIn(6) & 0xf0).toBe(0x90);
  uart.portOut(4, 1, 0);
  uart.portOut(2, 1, 1);
  expect(uart.portIn(2) >> 6).toBe(3);
});

test("the THRE interrupt comes when enabled and again after a byte, and reading IIR clears it", () => {
  const { uart, sent, level } = make();
  uart.portOut(4, 1, 8);
  uart.portOut(1, 1, 2);
  expect(level()).toBe(true);
  expect(uart.portIn(2) & 15).toBe(2);
  expect(level()).toBe(false);
  uart.portOut(0, 1, 65);
  expect(sent).toEqual([65]);
  expect(level()).toBe(true);
});

test("fed bytes come in order however many they are", () => {
  const { uart, level } = make();
  uart.portOut(2, 1, 1);
  uart.portOut(4, 1, 8);
  uart.portOut(1, 1, 1);
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
  uart.feed(bytes);
  expect(level()).toBe(true);
  const got: number[] = [];
  while ((uart.portIn(5) & 1) !== 0) got.push(uart.portIn(0));
  expect(got).toEqual([...bytes]);
  expect(level()).toBe(false);
});

test("bytes written in loopback come back and do not go out", () => {
  const { uart, sent } = make();
  uart.portOut(4, 1, 0x10);
  uart.portOut(0, 1, 0x41);
  expect(uart.portIn(5) & 1).toBe(1);
  expect(uart.portIn(0)).toBe(0x41);
  expect(sent).toEqual([]);
});

test("input waits for a driver that is ready, or a guest that polls", () => {
  const { uart } = make();
  uart.feed(Uint8Array.of(1, 2));
  expect(uart.portIn(5) & 1).toBe(0);
  uart.portOut(2, 1, 7); // the driver empties the FIFO
  uart.portOut(4, 1, 8);
  uart.portOut(1, 1, 1);
  expect(uart.portIn(5) & 1).toBe(1);
  const polled = make().uart;
  polled.feed(Uint8Array.of(3));
  let reads = 0;
  while ((polled.portIn(5) & 1) === 0) reads++;
  expect(reads).toBeLessThan(100);
  expect(polled.portIn(0)).toBe(3);
});
