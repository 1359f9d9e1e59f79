// SPDX-License-Identifier: MIT
/*
 * Kernel address space randomisation as the kernel's own decompressor does it
 * (arch/x86/boot/compressed/misc.c, kaslr.c): the relocations stand behind
 * the ELF file, made by arch/x86/tools/relocs.c as
 *   0, 64-bit..., 0, [inverse 32-bit..., 0,] 32-bit...
 * each entry the low half of a kernel virtual address. The inverse list
 * (per-CPU data) exists up to Linux 6.14.
 */
const KERNEL_IMAGE_SIZE = 0x40000000;
/** __START_KERNEL_map as the low half of a virtual address. */
const START_KERNEL_MAP_LOW = 0x80000000;

export interface Relocations {
  wide: Int32Array;
  inverse: Int32Array;
  narrow: Int32Array;
}

/** Splits the relocation data; undefined when it does not look like any. */
export function parseRelocations(bytes: Uint8Array): Relocations | undefined {
  if (bytes.length < 12 || bytes.length % 4 !== 0) return undefined;
  const words = new Int32Array(bytes.slice().buffer);
  if (words[0] !== 0) return undefined;
  const zeros: number[] = [];
  for (let i = 0; i < words.length; i++) {
    // Every entry is in the top 2 GiB.
    if (words[i] > 0) return undefined;
    if (words[i] === 0 && zeros.push(i) > 3) return undefined;
  }
  const none = new Int32Array(0);
  if (zeros.length === 3)
    return {
      wide: words.subarray(1, zeros[1]),
      inverse: words.subarray(zeros[1] + 1, zeros[2]),
      narrow: words.subarray(zeros[2] + 1),
    };
  if (zeros.length === 2)
    return {
      wide: words.subarray(1, zeros[1]),
      inverse: none,
      narrow: words.subarray(zeros[1] + 1),
    };
  return undefined;
}

/**
 * A random virtual slide: 0 or a multiple of `align` such that the kernel of
 * `size` bytes from `base` (its physical address without slide) stays inside
 * its mapping. `random` gives values in [0, 1).
 */
export function chooseSlide(
  base: number,
  size: number,
  align: number,
  random: () => number,
): number {
  const slots = Math.floor((KERNEL_IMAGE_SIZE - base - size) / align) + 1;
  return slots <= 1 ? 0 : Math.floor(random() * slots) * align;
}

/**
 * Applies the relocations for a slide. `image` holds the kernel from physical
 * address `base` on. False when one of them points outside of it; the image
 * may be half relocated then and must not be used.
 */
export function relocate(
  image: Uint8Array,
  base: number,
  relocations: Relocations,
  slide: number,
): boolean {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const limit = image.length;
  const place = (entry: number) => (entry >>> 0) - START_KERNEL_MAP_LOW - base;
  for (const entry of relocations.narrow) {
    const at = place(entry);
    if (at < 0 || at + 4 > limit) return false;
    view.setUint32(at, view.getUint32(at, true) + slide, true);
  }
  for (const entry of relocations.inverse) {
    const at = place(entry);
    if (at < 0 || at + 4 > limit) return false;
    view.setUint32(at, view.getUint32(at, true) - slide, true);
  }
  for (const entry of relocations.wide) {
    const at = place(entry);
    if (at < 0 || at + 8 > limit) return false;
    const low = view.getUint32(at, true) + slide;
    view.setUint32(at, low, true);
    if (low > 0xffffffff) view.setUint32(at + 4, view.getUint32(at + 4, true) + 1, true);
  }
  return true;
}
