// SPDX-License-Identifier: MIT
/* Small images for tests, made here byte by byte. */

/** A 64-bit ELF executable with one segment at `physical`. */
export function elf64(physical: number, code: Uint8Array, memorySize = code.length): Uint8Array {
  const bytes = new Uint8Array(64 + 56 + code.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(24, physical, true);
  view.setUint32(32, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  const p = 64;
  view.setUint32(p, 1, true);
  view.setUint32(p + 8, 120, true);
  view.setUint32(p + 16, physical, true);
  view.setUint32(p + 24, physical, true);
  view.setUint32(p + 32, code.length, true);
  view.setUint32(p + 40, memorySize, true);
  bytes.set(code, 120);
  return bytes;
}

/** A bzImage with this payload; header fields by their boot protocol names. */
export function bzImage(
  payload: Uint8Array,
  o: { version?: number; xloadflags?: number; initSize?: number } = {},
): Uint8Array {
  const setup = 1024;
  const system = Math.ceil((0x400 + payload.length) / 16) * 16;
  const bytes = new Uint8Array(setup + system);
  const view = new DataView(bytes.buffer);
  bytes[0x1f1] = 1;
  view.setUint32(0x1f4, system / 16, true);
  view.setUint16(0x1fe, 0xaa55, true);
  bytes[0x201] = 0x6a;
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, o.version ?? 0x20f, true);
  view.setUint32(0x22c, 0x7fffffff, true);
  view.setUint32(0x230, 0x200000, true);
  view.setUint16(0x236, o.xloadflags ?? 1, true);
  view.setUint32(0x238, 2047, true);
  view.setUint32(0x248, 0x400, true);
  view.setUint32(0x24c, payload.length, true);
  view.setUint32(0x258, 0x1000000, true);
  view.setUint32(0x260, o.initSize ?? 0x100000, true);
  bytes.set(payload, setup + 0x400);
  return bytes;
}

/** A 32-bit ELF with a Multiboot header; loads and starts at 1 MiB. */
export function multiboot(code: Uint8Array, physical = 0x100000): Uint8Array {
  const header = 12;
  const bytes = new Uint8Array(52 + 32 + header + code.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 3, true);
  view.setUint32(24, physical + header, true);
  view.setUint32(28, 52, true);
  view.setUint16(42, 32, true);
  view.setUint16(44, 1, true);
  view.setUint32(52, 1, true);
  view.setUint32(56, 84, true);
  view.setUint32(60, physical, true);
  view.setUint32(64, physical, true);
  view.setUint32(68, header + code.length, true);
  view.setUint32(72, header + code.length + 4096, true);
  view.setUint32(84, 0x1badb002, true);
  view.setUint32(88, 0, true);
  view.setUint32(92, -0x1badb002 >>> 0, true);
  bytes.set(code, 84 + header);
  return bytes;
}
