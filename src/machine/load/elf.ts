// SPDX-License-Identifier: MIT
import { InputError } from "../../errors.ts";

/** What a loader needs of an ELF executable for x86. */
export interface ElfImage {
  bits: 32 | 64;
  entry: number;
  segments: ElfSegment[];
  /** Bytes of the ELF file proper; what follows in the same buffer is not of it. */
  fileEnd: number;
}

export interface ElfSegment {
  physical: number;
  virtual: number;
  offset: number;
  fileSize: number;
  memorySize: number;
}

const PT_LOAD = 1;
const EM_386 = 3;
const EM_X86_64 = 62;
const MAX_HEADERS = 4096;

export function isElf(bytes: Uint8Array): boolean {
  return (
    bytes.length >= 20 &&
    bytes[0] === 0x7f &&
    bytes[1] === 0x45 &&
    bytes[2] === 0x4c &&
    bytes[3] === 0x46
  );
}

/** Reads the ELF headers; throws InputError when they do not describe an x86 executable that is all there. */
export function parseElf(bytes: Uint8Array, name: string): ElfImage {
  const bad = (why: string) =>
    new InputError(`${name}: ${why}`, "give an uncompressed x86 ELF executable (vmlinux)");
  if (!isElf(bytes) || bytes.length < 64) throw bad("not an ELF file, or its header is cut off");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[4] === 2;
  if (bytes[5] !== 1) throw bad("a big-endian ELF file");
  const machine = view.getUint16(18, true);
  if (machine !== (wide ? EM_X86_64 : EM_386))
    throw bad(`an ELF file for another machine (e_machine ${machine})`);
  const u64 = (at: number) => view.getUint32(at, true) + view.getUint32(at + 4, true) * 4294967296;
  const entry = wide ? u64(24) : view.getUint32(24, true);
  const phoff = wide ? u64(32) : view.getUint32(28, true);
  const shoff = wide ? u64(40) : view.getUint32(32, true);
  const at = wide ? 54 : 42;
  const phentsize = view.getUint16(at, true);
  const phnum = view.getUint16(at + 2, true);
  const shentsize = view.getUint16(at + 4, true);
  const shnum = view.getUint16(at + 6, true);
  if (phentsize < (wide ? 56 : 32) || phnum === 0 || phnum > MAX_HEADERS)
    throw bad("no usable program headers");
  if (phoff + phnum * phentsize > bytes.length)
    throw bad("truncated: the program headers are cut off");
  let fileEnd = Math.max(phoff + phnum * phentsize, shoff + shnum * shentsize);
  const segments: ElfSegment[] = [];
  for (let i = 0; i < phnum; i++) {
    const p = phoff + i * phentsize;
    if (view.getUint32(p, true) !== PT_LOAD) continue;
    const segment = wide
      ? {
          offset: u64(p + 8),
          virtual: u64(p + 16),
          physical: u64(p + 24),
          fileSize: u64(p + 32),
          memorySize: u64(p + 40),
        }
      : {
          offset: view.getUint32(p + 4, true),
          virtual: view.getUint32(p + 8, true),
          physical: view.getUint32(p + 12, true),
          fileSize: view.getUint32(p + 16, true),
          memorySize: view.getUint32(p + 20, true),
        };
    if (segment.offset + segment.fileSize > bytes.length)
      throw bad(
        `truncated: a segment ends at byte ${segment.offset + segment.fileSize} of ${bytes.length}`,
      );
    if (segment.fileSize > segment.memorySize)
      throw bad("a segment with more bytes in the file than in memory");
    fileEnd = Math.max(fileEnd, segment.offset + segment.fileSize);
    if (segment.memorySize > 0) segments.push(segment);
  }
  if (segments.length === 0) throw bad("nothing to load in it");
  return { bits: wide ? 64 : 32, entry, segments, fileEnd };
}

/** Lowest and highest (exclusive) physical address that the image fills. */
export function elfExtent(elf: ElfImage): { start: number; end: number } {
  let start = Infinity;
  let end = 0;
  for (const s of elf.segments) {
    start = Math.min(start, s.physical);
    end = Math.max(end, s.physical + s.memorySize);
  }
  return { start, end };
}
