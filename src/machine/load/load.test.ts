// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { GuestRam, HVI_RAX, HVI_RBX, HVI_RSI, Vcpu } from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import { BOOT_CMDLINE, BOOT_PARAMS, e820, ramRanges } from "../layout.ts";
import { acpiTables } from "./acpi.ts";
import { bzImage, elf64, multiboot } from "./images.fixture.ts";
import { type LoadRequest, loadImage } from "./index.ts";
import { chooseSlide, parseRelocations, relocate } from "./kaslr.ts";
import { lz4Legacy } from "./lz4.ts";

const MB = 1 << 20;
const CODE = Uint8Array.of(0xf4, 0xeb, 0xfd);

function request(kernel: Uint8Array, o: Partial<LoadRequest> = {}): LoadRequest {
  return {
    kernel,
    kernelName: "kernel",
    initrd: undefined,
    initrdName: "initrd",
    append: "",
    memory: 64 * MB,
    cpus: 1,
    random: () => 0.5,
    ...o,
  };
}

function machine(memory = 64 * MB) {
  const ram = GuestRam.allocate(memory);
  const vcpu = new Vcpu(0, new Uint8Array(4096), () => {});
  return { ram, vcpu };
}

async function refusal(r: LoadRequest): Promise<string> {
  try {
    await loadImage(r);
  } catch (error) {
    if (error instanceof InputError) return `${error.message} -> ${error.hint}`;
    throw error;
  }
  return "accepted";
}

describe("bzImage", () => {
  const elf = elf64(0x1000000, CODE);

  test("an uncompressed payload is entered at its own entry point", async () => {
    const { ram, vcpu } = machine();
    const initrd = Uint8Array.of(1, 2, 3);
    const image = await loadImage(request(bzImage(elf), { append: "nokaslr quiet", initrd }));
    image.place(ram, vcpu);
    expect(vcpu.rip).toBe(0x1000000);
    expect(ram.view(0x1000000, 3)).toEqual(CODE);
    expect(vcpu.gpr(HVI_RSI)).toBe(BOOT_PARAMS);
    const page = ram.view(BOOT_PARAMS, 4096) as Uint8Array;
    const view = new DataView(page.buffer, page.byteOffset, 4096);
    expect(view.getUint32(0x202, true)).toBe(0x53726448);
    expect(view.getUint32(0x228, true)).toBe(BOOT_CMDLINE);
    expect(new TextDecoder().decode(ram.view(BOOT_CMDLINE, 14))).toBe("nokaslr quiet\0");
    expect(view.getUint32(0x21c, true)).toBe(3);
    expect(ram.view(view.getUint32(0x218, true), 3)).toEqual(initrd);
    expect(view.getUint8(0x1e8)).toBe(3);
    expect(view.getUint8(0x211) & 2).toBe(0);
  });

  test("gzip, zstd and lz4 payloads give the same kernel", async () => {
    const size = new Uint8Array(new Uint32Array([elf.length]).buffer);
    const literals = Uint8Array.of((elf.length - 15) % 255);
    const block = Uint8Array.of(0xf0, ...literals, ...elf);
    const lz4 = Uint8Array.of(
      2,
      0x21,
      0x4c,
      0x18,
      ...new Uint8Array(new Uint32Array([block.length]).buffer),
      ...block,
    );
    for (const payload of [
      Bun.gzipSync(elf as Uint8Array<ArrayBuffer>),
      Uint8Array.of(...Bun.zstdCompressSync(elf), ...size),
      Uint8Array.of(...lz4, ...size),
    ]) {
      const { ram, vcpu } = machine();
      const image = await loadImage(request(bzImage(payload), { append: "nokaslr" }));
      image.place(ram, vcpu);
      expect(ram.view(0x1000000, 3)).toEqual(CODE);
    }
  });

  test("a payload that is not understood is left to the kernel's own decompressor", async () => {
    const { ram, vcpu } = machine();
    const image = await loadImage(request(bzImage(new Uint8Array(64).fill(0x77))));
    image.place(ram, vcpu);
    expect(vcpu.rip).toBe(0x1000200);
    expect(image.notes.join("\n")).toContain("own decompressor");
  });

  test("what cannot run is refused with the reason and a next step", async () => {
    const good = bzImage(elf);
    expect(await refusal(request(good.subarray(0, 1200)))).toContain("truncated bzImage");
    expect(await refusal(request(good.subarray(0, 0x230)))).toContain("truncated bzImage");
    expect(await refusal(request(bzImage(elf, { xloadflags: 0 })))).toContain("32-bit kernel");
    expect(await refusal(request(bzImage(elf, { version: 0x204 })))).toContain(
      "protocol 2.04 is older than 2.06",
    );
    expect(await refusal(request(bzImage(elf, { initSize: 100 * MB })))).toMatch(
      /needs 116M of memory.*--memory/,
    );
    expect(await refusal(request(good, { initrd: new Uint8Array(60 * MB) }))).toContain(
      "do not fit",
    );
    expect(await refusal(request(good, { append: "x".repeat(3000) }))).toContain(
      "shorten --append",
    );
    expect(await refusal(request(new Uint8Array(10)))).toContain("no kernel");
    expect(await refusal(request(new Uint8Array(5000)))).toContain("neither");
    expect(await refusal(request(Uint8Array.of(0x1f, 0x8b, 8, 0, 1)))).toContain("damaged gzip");
  });
});

describe("Multiboot", () => {
  test("an ELF image is entered with the magic and the information", async () => {
    const { ram, vcpu } = machine();
    const image = await loadImage(
      request(multiboot(CODE), { append: "one two", initrd: Uint8Array.of(9) }),
    );
    image.place(ram, vcpu);
    expect(vcpu.rip).toBe(0x10000c);
    expect(vcpu.gprLo(HVI_RAX)).toBe(0x2badb002);
    const info = vcpu.gprLo(HVI_RBX);
    const bytes = ram.view(info, 4096) as Uint8Array;
    const view = new DataView(bytes.buffer, bytes.byteOffset, 4096);
    expect(view.getUint32(0, true) & 0x4d).toBe(0x4d);
    const at = view.getUint32(16, true) - info;
    expect(new TextDecoder().decode(bytes.subarray(at, at + 15))).toBe("kernel one two\0");
    const module = view.getUint32(view.getUint32(24, true) - info, true);
    expect(ram.view(module, 1)).toEqual(Uint8Array.of(9));
  });

  test("one that does not fit is refused", async () => {
    expect(await refusal(request(multiboot(CODE, 128 * MB)))).toContain("needs memory up to");
  });
});

describe("KASLR", () => {
  const words = (...w: number[]) => new Uint8Array(Int32Array.from(w).buffer);
  const at = (offset: number) => (0x81000000 + offset) | 0;

  test("the three lists move what they name, each in its way", () => {
    const relocations = parseRelocations(words(0, at(0), 0, at(8), 0, at(16)));
    if (relocations === undefined) throw new Error("not parsed");
    const image = new Uint8Array(32);
    const view = new DataView(image.buffer);
    view.setBigUint64(0, 0xffffffff81000000n, true);
    view.setUint32(8, 1000, true);
    view.setUint32(16, 0x81000010, true);
    expect(relocate(image, 0x1000000, relocations, 0x200000)).toBe(true);
    expect(view.getBigUint64(0, true)).toBe(0xffffffff81200000n);
    expect(view.getInt32(8, true)).toBe(1000 - 0x200000);
    expect(view.getUint32(16, true)).toBe(0x81200010);
  });

  test("kernels without the inverse list, and damage", () => {
    expect(parseRelocations(words(0, at(0), 0, at(8)))?.narrow.length).toBe(1);
    expect(parseRelocations(words(1, 2, 3))).toBeUndefined();
    expect(parseRelocations(words(0, 5, 0, at(0)))).toBeUndefined();
    const outside = parseRelocations(words(0, at(0x1000), 0, at(0)));
    expect(
      outside !== undefined && relocate(new Uint8Array(64), 0x1000000, outside, 0x200000),
    ).toBe(false);
  });

  test("slides stay inside the kernel's mapping", () => {
    for (const random of [0, 0.3, 0.999999]) {
      const slide = chooseSlide(0x1000000, 0x3000000, 0x200000, () => random);
      expect(slide % 0x200000).toBe(0);
      expect(0x1000000 + 0x3000000 + slide).toBeLessThanOrEqual(0x40000000);
    }
  });
});

test("damaged LZ4 is refused, not followed", () => {
  const head = [2, 0x21, 0x4c, 0x18];
  expect(
    lz4Legacy(Uint8Array.of(...head, 4, 0, 0, 0, 0x0f, 0xff, 0xff, 0xff), 100),
  ).toBeUndefined();
  expect(lz4Legacy(Uint8Array.of(...head, 0xff, 0xff, 0, 0, 1), 10)).toBeUndefined();
  expect(lz4Legacy(Uint8Array.of(...head, 3, 0, 0, 0, 0x10, 65, 9), 10)).toBeUndefined();
});

test("ACPI tables sum to zero and the memory map leaves the hole below 4 GiB", () => {
  const tables = acpiTables(0xe0000, 2);
  const sum = (from: number, to: number) =>
    tables.subarray(from, to).reduce((a, b) => (a + b) & 0xff, 0);
  expect(sum(0, 20)).toBe(0);
  expect(sum(0, 36)).toBe(0);
  const view = new DataView(tables.buffer);
  for (const at of [0x40, 0x100, 0x240, 0x280])
    expect(sum(at, at + view.getUint32(at + 4, true))).toBe(0);
  expect(ramRanges(4 * 1024 * MB)).toEqual([
    { gpa: 0, size: 0xc0000000 },
    { gpa: 0x100000000, size: 0x40000000 },
  ]);
  expect(e820(4 * 1024 * MB).length).toBe(4);
});
