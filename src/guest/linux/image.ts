// SPDX-License-Identifier: MIT
/**
 * A copy of the kernel's image mapping, taken once from physical memory through
 * the page tables of a given root. Everything that identification looks for is
 * searched in the copy, so that a guest changing its memory meanwhile cannot
 * make two looks at a table disagree.
 *
 * Linux maps its image in 0xffffffff80000000..0xffffffffbfffffff
 * (Documentation/arch/x86/x86_64/mm.rst): one page of page-directory entries.
 */
import { gpaFromHalves } from "../../memory/address.ts";
import type { PhysicalReader } from "../reader.ts";

/** __START_KERNEL_map: where the image mapping begins. */
export const KERNEL_MAP_START = -0x8000_0000;
/** End of the image mapping (1 GiB, KERNEL_IMAGE_SIZE with KASLR). */
export const KERNEL_MAP_END = -0x4000_0000;

const PAGE = 4096;
const LARGE = 0x20_0000;
const PRESENT = 1;
const PAGE_SIZE_BIT = 0x80;
/** Two mapped stretches further apart than this do not belong to the same image. */
const MAX_HOLE = 64 * 1024 * 1024;
/** No kernel image is larger; bounds the copy. */
const MAX_IMAGE = 192 * 1024 * 1024;

/** The bytes of a mapped kernel image; pages that were absent read as zero. */
export interface KernelImage {
  /** GVA of bytes[0], signed. */
  readonly base: number;
  readonly bytes: Uint8Array;
  /** Number of 4 KiB pages that were present. */
  readonly pages: number;
}

/** Physical frame (as a byte address) of a page-table entry given in halves: bits 51..12. */
function frameOf(lo: number, hi: number): number {
  return gpaFromHalves(lo & 0xffff_f000, hi & 0xf_ffff);
}

/**
 * The GPA of the page directory of the kernel's image mapping under `root`, or
 * undefined when the walk meets an absent entry or memory that is not RAM.
 */
function imageDirectory(memory: PhysicalReader, root: number, levels: 4 | 5): number | undefined {
  let table = root;
  const indexes = levels === 5 ? [511, 511, 510] : [511, 510];
  for (const index of indexes) {
    const lo = memory.read32(table + index * 8);
    const hi = memory.read32(table + index * 8 + 4);
    if (lo < 0 || hi < 0 || (lo & PRESENT) === 0 || (lo & PAGE_SIZE_BIT) !== 0) return undefined;
    table = frameOf(lo, hi);
  }
  return table;
}

/** A mapped piece: GVA offset from KERNEL_MAP_START, GPA, bytes. */
interface Piece {
  offset: number;
  gpa: number;
  size: number;
}

function mappedPieces(memory: PhysicalReader, directory: number): Piece[] {
  const pieces: Piece[] = [];
  const add = (offset: number, gpa: number, size: number) => {
    const last = pieces[pieces.length - 1];
    if (last !== undefined && last.offset + last.size === offset && last.gpa + last.size === gpa)
      last.size += size;
    else pieces.push({ offset, gpa, size });
  };
  const pd = new Uint8Array(PAGE);
  const pt = new Uint8Array(PAGE);
  if (!memory.readInto(directory, pd)) return pieces;
  const pdWords = new Uint32Array(pd.buffer);
  const ptWords = new Uint32Array(pt.buffer);
  for (let i = 0; i < 512; i++) {
    const lo = pdWords[i * 2];
    const hi = pdWords[i * 2 + 1];
    if ((lo & PRESENT) === 0) continue;
    const gpa = frameOf(lo, hi);
    if ((lo & PAGE_SIZE_BIT) !== 0) {
      add(i * LARGE, gpa - (gpa % LARGE), LARGE);
      continue;
    }
    if (!memory.readInto(gpa, pt)) continue;
    for (let j = 0; j < 512; j++) {
      if ((ptWords[j * 2] & PRESENT) === 0) continue;
      add(i * LARGE + j * PAGE, frameOf(ptWords[j * 2], ptWords[j * 2 + 1]), PAGE);
    }
  }
  return pieces;
}

/**
 * Copies the kernel image mapped under `root` (a GPA, page aligned).
 *
 * `hint` is an address known to be kernel code (LSTAR or an interrupt handler):
 * when several stretches are mapped far apart, the one with the hint is taken,
 * otherwise the first. Returns undefined when nothing is mapped there.
 * Work is bounded: at most 513 tables are read and 192 MiB copied.
 */
export function copyKernelImage(
  memory: PhysicalReader,
  root: number,
  levels: 4 | 5,
  hint: number | undefined,
): KernelImage | undefined {
  const directory = imageDirectory(memory, root, levels);
  if (directory === undefined) return undefined;
  const pieces = mappedPieces(memory, directory);
  if (pieces.length === 0) return undefined;

  // Stretches: neighbours with small holes (freed init memory) are one image.
  let first = 0;
  let chosen: [number, number] | undefined;
  for (let i = 1; i <= pieces.length; i++) {
    const previous = pieces[i - 1];
    const end = previous.offset + previous.size;
    if (i < pieces.length && pieces[i].offset - end <= MAX_HOLE) continue;
    const start = pieces[first].offset;
    const at = hint === undefined ? -1 : hint - KERNEL_MAP_START;
    if (chosen === undefined || (at >= start && at < end)) chosen = [first, i];
    first = i;
  }
  const [from, to] = chosen as [number, number];
  const start = pieces[from].offset;
  const size = Math.min(pieces[to - 1].offset + pieces[to - 1].size - start, MAX_IMAGE);
  const bytes = new Uint8Array(size);
  let pages = 0;
  for (let i = from; i < to; i++) {
    const piece = pieces[i];
    const at = piece.offset - start;
    const length = Math.min(piece.size, size - at);
    if (length <= 0) break;
    if (memory.readInto(piece.gpa, bytes.subarray(at, at + length))) {
      pages += length / PAGE;
      continue;
    }
    // Part of the piece is not RAM: keep what is.
    for (let o = 0; o < length; o += PAGE) {
      if (memory.readInto(piece.gpa + o, bytes.subarray(at + o, at + o + PAGE))) pages++;
    }
  }
  return { base: KERNEL_MAP_START + start, bytes, pages };
}
