// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { encodeKallsyms, LAYOUTS, syntheticSymbols } from "../synthetic.fixture.ts";
import { findKallsyms, SymbolTable } from "./kallsyms.ts";

const BASE = -0x7000_0000;
const AT = 0x4_0000;

function imageWith(layout: keyof typeof LAYOUTS): {
  image: Uint8Array;
  symbols: ReturnType<typeof syntheticSymbols>;
} {
  const image = new Uint8Array(0x40_0000);
  const symbols = syntheticSymbols(BASE, true).map(([a, t, n]) =>
    // Without -percpu, per-CPU symbols have no place in a table of offsets.
    a >= 0 &&
    LAYOUTS[layout].addressing !== "absolute" &&
    LAYOUTS[layout].addressing !== "relative-percpu"
      ? ([BASE, t, n] as const)
      : ([a, t, n] as const),
  );
  image.set(encodeKallsyms(symbols, BASE, BASE + AT, LAYOUTS[layout]), AT);
  return { image, symbols };
}

function table(layout: string): SymbolTable {
  const found = findKallsyms(imageWith(layout).image, BASE);
  if (typeof found === "string") throw new Error(found);
  return found;
}

describe("kallsyms found by structure", () => {
  for (const layout of Object.keys(LAYOUTS)) {
    test(`layout of ${layout}: every symbol back`, () => {
      const { image, symbols } = imageWith(layout);
      const found = findKallsyms(image, BASE);
      expect(found).toBeInstanceOf(SymbolTable);
      const s = found as SymbolTable;
      expect(s.count).toBe(symbols.length);
      expect(s.layout.addressing).toBe(LAYOUTS[layout].addressing);
      expect(s.layout.offsets).toBe(LAYOUTS[layout].offsets);
      const got = symbols.map((_, i) => [s.addressAt(i), s.typeAt(i), s.nameAt(i)]);
      expect(got).toEqual(symbols.map((x) => [...x]));
    });
  }

  test("an image without tables", () => {
    expect(findKallsyms(new Uint8Array(1 << 20), BASE)).toBe("no-kallsyms");
    expect(findKallsyms(new Uint8Array(0), BASE)).toBe("no-kallsyms");
  });

  test("a broken token index, marker, name length or address table is refused", () => {
    const good = imageWith("6.12").image;
    const layout = table("6.12").layout;
    const tokens = layout.tokenTable - BASE;
    const damage = (at: number, value: number) => {
      const image = good.slice();
      image[at] = value;
      return findKallsyms(image, BASE);
    };
    // The first marker's last byte stands before the token table's padding.
    let marker = tokens - 4;
    while (good[marker] === 0) marker--;
    expect(damage(marker, good[marker] ^ 0x55)).toBe("kallsyms-damaged");
    expect(damage(AT + 8, 0)).toBe("kallsyms-damaged");
    const image = good.slice();
    for (let i = 0; i < 2000; i++) image[tokens + 1500 + i] = (i * 197) & 0xff;
    expect(typeof findKallsyms(image, BASE)).toBe("string");
  });

  test("hostile bytes do not hang it", () => {
    const image = imageWith("6.12").image;
    // Plausible counts everywhere before the tables: each starts a walk.
    const words = new Uint32Array(image.buffer, 0, AT / 4);
    for (let i = 0; i < words.length; i++) words[i] = 0x101 + (i % 0x8000);
    image[AT + 9] = 0;
    // The real tables behind them are found all the same.
    expect(typeof findKallsyms(image, BASE)).toBe("object");
  }, 60_000);
});

describe("symbol lookup", () => {
  test("by name, with aliases and names that several symbols share", () => {
    const s = table("6.12");
    expect(s.lookup("_text")).toBe(BASE);
    expect(s.lookup("current_task")).toBe(0x20);
    expect(s.lookup("text")).toBeUndefined();
    expect(s.lookup("")).toBeUndefined();
    expect(s.lookup("x".repeat(10_000))).toBeUndefined();
    expect(s.findAll("fn_7").map((x) => x.address)).toEqual([
      BASE + 0x1700,
      BASE + 0x1000 + 507 * 0x100,
    ]);
    expect(s.find("sys_call_table")).toEqual({
      name: "sys_call_table",
      address: BASE + 0x10_8000,
      size: 0xe00,
      type: "R",
    });
  });

  test("a name of more than 127 compressed bytes", () => {
    const s = table("7.2");
    const long = `a_${"_long_".repeat(40)}name`;
    expect(s.lookup(long)).toBe(BASE + 0x10_8e00);
  });

  test("by address: the nearest below, the first of aliases", () => {
    const s = table("6.12");
    expect(s.at(BASE)?.name).toBe("_text");
    expect(s.at(BASE + 0x10ff)).toEqual({
      name: "fn_0",
      address: BASE + 0x1000,
      size: 0x100,
      type: "t",
    });
    expect(s.at(BASE - 1)).toBeUndefined();
    expect(s.at(0x21)?.name).toBe("current_task");
    expect(s.at(Number.NaN)).toBeUndefined();
  });

  test("by prefix", () => {
    expect(
      table("5.10")
        .withPrefix("__start_")
        .map((s) => s.name),
    ).toEqual(["__start_rodata", "__start_BTF"]);
  });
});
