// SPDX-License-Identifier: MIT
import type { GuestRam, Vcpu } from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import {
  ACPI_TABLES,
  BIOS_AREA_END,
  BOOT_CMDLINE,
  BOOT_PARAMS,
  e820,
  LOW_MEMORY_LIMIT,
} from "../layout.ts";
import { acpiTables } from "./acpi.ts";
import { type ElfImage, elfExtent, isElf, parseElf } from "./elf.ts";
import { enterLinux64 } from "./entry.ts";
import type { LoadableImage, LoadRequest } from "./image.ts";
import { chooseSlide, parseRelocations, relocate } from "./kaslr.ts";
import { compressionOf, decompressPayload } from "./payload.ts";
import { writeRam } from "./ram.ts";

/*
 * Linux: bzImage and vmlinux, by the boot protocol (Documentation/arch/x86/
 * boot.rst, zero-page.rst).
 */
const HDR_SETUP_SECTS = 0x1f1;
const HDR_SYSSIZE = 0x1f4;
const HDR_BOOT_FLAG = 0x1fe;
const HDR_MAGIC = 0x202;
const HDR_VERSION = 0x206;
const HDR_TYPE_OF_LOADER = 0x210;
const HDR_LOADFLAGS = 0x211;
const HDR_RAMDISK_IMAGE = 0x218;
const HDR_RAMDISK_SIZE = 0x21c;
const HDR_CMD_LINE_PTR = 0x228;
const HDR_INITRD_ADDR_MAX = 0x22c;
const HDR_KERNEL_ALIGNMENT = 0x230;
const HDR_XLOADFLAGS = 0x236;
const HDR_CMDLINE_SIZE = 0x238;
const HDR_PAYLOAD_OFFSET = 0x248;
const HDR_PAYLOAD_LENGTH = 0x24c;
const HDR_PREF_ADDRESS = 0x258;
const HDR_INIT_SIZE = 0x260;
const ZERO_PAGE_ACPI_RSDP = 0x070;
const ZERO_PAGE_E820_ENTRIES = 0x1e8;
const ZERO_PAGE_E820_TABLE = 0x2d0;
const ZERO_PAGE_SIZE = 0x1000;

const MAGIC_HDRS = 0x53726448;
const XLF_KERNEL_64 = 1;
const LOADFLAG_LOADED_HIGH = 1;
/** Tells the kernel proper that its decompressor randomised (boot.rst, loadflags). */
const LOADFLAG_KASLR = 2;
/** The 64-bit entry point of a bzImage, from its protected-mode part. */
const ENTRY64_OFFSET = 0x200;
const MB = 1 << 20;

const mib = (bytes: number) => `${Math.ceil(bytes / MB)}M`;

export function isBzImage(bytes: Uint8Array): boolean {
  if (bytes.length < 0x206) return false;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return (
    view.getUint16(HDR_BOOT_FLAG, true) === 0xaa55 && view.getUint32(HDR_MAGIC, true) === MAGIC_HDRS
  );
}

interface Header {
  /** The setup header as it goes into boot_params: bytes from 0x1f1. */
  bytes: Uint8Array;
  cmdlineMax: number;
  initrdMax: number;
  alignment: number;
}

/** The kernel as it will stand in memory. */
interface Kernel {
  /** Physical address of its first byte. */
  base: number;
  /** Memory that it needs from there on, bytes. */
  need: number;
  entry: number;
  kaslr: boolean;
  header: Header;
  write(ram: GuestRam): void;
  notes: string[];
}

function truncated(name: string, have: number, want: number): InputError {
  return new InputError(
    `${name}: truncated bzImage: ${have} bytes, its header promises ${want}`,
    "copy or download the kernel again",
  );
}

async function bzImage(request: LoadRequest): Promise<Kernel> {
  const { kernel: bytes, kernelName: name } = request;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HDR_INIT_SIZE + 4) throw truncated(name, bytes.length, 1024);
  const version = view.getUint16(HDR_VERSION, true);
  if (version < 0x206)
    throw new InputError(
      `${name}: boot protocol ${version >> 8}.${String(version & 0xff).padStart(2, "0")} is older than 2.06`,
      "use a Linux kernel of version 2.6.22 or later",
    );
  if (version < 0x20c || (view.getUint16(HDR_XLOADFLAGS, true) & XLF_KERNEL_64) === 0)
    throw new InputError(
      `${name}: a 32-bit kernel (no 64-bit entry point in its header)`,
      "use an x86-64 kernel, e.g. Debian's linux-image-cloud-amd64",
    );
  const setup = ((bytes[HDR_SETUP_SECTS] || 4) + 1) * 512;
  const system = view.getUint32(HDR_SYSSIZE, true) * 16;
  if (bytes.length < setup + system) throw truncated(name, bytes.length, setup + system);
  const headerEnd = Math.min(HDR_MAGIC + bytes[0x201], 0x290);
  const header: Header = {
    bytes: bytes.slice(HDR_SETUP_SECTS, headerEnd),
    cmdlineMax: view.getUint32(HDR_CMDLINE_SIZE, true),
    initrdMax: view.getUint32(HDR_INITRD_ADDR_MAX, true),
    alignment: Math.max(0x200000, view.getUint32(HDR_KERNEL_ALIGNMENT, true)),
  };
  const preferred = view.getUint32(HDR_PREF_ADDRESS, true);
  const initSize = view.getUint32(HDR_INIT_SIZE, true);
  const offset = view.getUint32(HDR_PAYLOAD_OFFSET, true);
  const length = view.getUint32(HDR_PAYLOAD_LENGTH, true);
  if (setup + offset + length > bytes.length)
    throw truncated(name, bytes.length, setup + offset + length);
  const payload = bytes.subarray(setup + offset, setup + offset + length);

  const notes: string[] = [];
  const fast = await fastPath(payload, initSize, header, request, notes);
  if (fast !== undefined) return fast;
  notes.push(
    `kernel: entry through the bzImage's own decompressor at 0x${(preferred + ENTRY64_OFFSET).toString(16)}`,
  );
  const system64 = bytes.subarray(setup);
  return {
    base: preferred,
    need: Math.max(initSize, system64.length),
    entry: preferred + ENTRY64_OFFSET,
    kaslr: false,
    header,
    notes,
    write: (ram) => writeRam(ram, preferred, system64),
  };
}

/** Does the work of the kernel's decompressor here; undefined when something is not as expected. */
async function fastPath(
  payload: Uint8Array,
  initSize: number,
  header: Header,
  request: LoadRequest,
  notes: string[],
): Promise<Kernel | undefined> {
  const kind = compressionOf(payload) ?? "unknown";
  const started = performance.now();
  const inner = await decompressPayload(payload);
  if (inner === undefined) {
    notes.push(`kernel: ${kind} payload is not decompressed here`);
    return undefined;
  }
  notes.push(
    `kernel: ${kind} payload decompressed by the loader in ${Math.round(performance.now() - started)} ms`,
  );
  let elf: ElfImage;
  try {
    elf = parseElf(inner, "payload");
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    notes.push(`kernel: ${error.message}`);
    return undefined;
  }
  const { start, end } = elfExtent(elf);
  if (elf.bits !== 64 || start < BIOS_AREA_END || elf.entry < start || elf.entry >= end)
    return undefined;
  return elfKernel(inner, elf, Math.max(end - start, initSize), header, request, notes);
}

function wantsKaslr(append: string): boolean {
  return !append.split(/\s+/).includes("nokaslr");
}

/** A vmlinux in memory: its segments at their physical addresses, slid virtually when it can be. */
function elfKernel(
  bytes: Uint8Array,
  elf: ElfImage,
  need: number,
  header: Header,
  request: LoadRequest,
  notes: string[],
): Kernel | undefined {
  const { start, end } = elfExtent(elf);
  const image = new Uint8Array(end - start);
  for (const s of elf.segments)
    image.set(bytes.subarray(s.offset, s.offset + s.fileSize), s.physical - start);
  let slide = 0;
  let kaslr = false;
  if (!wantsKaslr(request.append)) notes.push("kaslr: off (nokaslr)");
  else {
    const relocations = parseRelocations(bytes.subarray(elf.fileEnd));
    if (relocations === undefined) notes.push("kaslr: off (the kernel has no relocations)");
    else {
      slide = chooseSlide(start, need, header.alignment, request.random);
      if (slide !== 0 && !relocate(image, start, relocations, slide)) {
        notes.push("kaslr: a relocation points outside of the kernel");
        return undefined;
      }
      kaslr = true;
      notes.push(`kaslr: slide 0x${slide.toString(16)}`);
    }
  }
  notes.push(`kernel: entry at startup_64, 0x${elf.entry.toString(16)}`);
  return {
    base: start,
    need,
    entry: elf.entry,
    kaslr,
    header,
    notes,
    write: (ram) => writeRam(ram, start, image),
  };
}

/** The setup header for a vmlinux, which has none: protocol 2.15 with its usual limits. */
function syntheticHeader(): Header {
  const page = new Uint8Array(0x268);
  const view = new DataView(page.buffer);
  view.setUint16(HDR_BOOT_FLAG, 0xaa55, true);
  view.setUint32(HDR_MAGIC, MAGIC_HDRS, true);
  view.setUint16(HDR_VERSION, 0x20f, true);
  view.setUint32(HDR_KERNEL_ALIGNMENT, 0x200000, true);
  return {
    bytes: page.slice(HDR_SETUP_SECTS),
    cmdlineMax: 2047,
    initrdMax: 0x7fffffff,
    alignment: 0x200000,
  };
}

/** Checks a Linux kernel and its initrd against the machine. Throws InputError. */
export async function loadLinux(request: LoadRequest): Promise<LoadableImage> {
  let kernel: Kernel;
  if (isElf(request.kernel)) {
    const elf = parseElf(request.kernel, request.kernelName);
    const { start, end } = elfExtent(elf);
    if (elf.bits !== 64 || start < BIOS_AREA_END)
      throw new InputError(
        `${request.kernelName}: not a 64-bit Linux kernel (ELF${elf.bits}, loads at 0x${start.toString(16)})`,
        "give a bzImage or a vmlinux of an x86-64 kernel, or an image with a Multiboot header",
      );
    const notes: string[] = [];
    kernel = elfKernel(
      request.kernel,
      elf,
      end - start,
      syntheticHeader(),
      request,
      notes,
    ) as Kernel;
  } else kernel = await bzImage(request);

  const lowEnd = Math.min(request.memory, LOW_MEMORY_LIMIT);
  if (kernel.base + kernel.need > lowEnd)
    throw new InputError(
      `${request.kernelName}: needs ${mib(kernel.base + kernel.need)} of memory, the guest has ${mib(request.memory)}`,
      `give it more: --memory ${mib(kernel.base + kernel.need + (request.initrd?.length ?? 0) + 64 * MB)}`,
    );
  const cmdline = new TextEncoder().encode(request.append);
  if (cmdline.length > kernel.header.cmdlineMax)
    throw new InputError(
      `the kernel's command line has ${cmdline.length} bytes, this kernel takes ${kernel.header.cmdlineMax}`,
      "shorten --append",
    );
  let initrdAt = 0;
  if (request.initrd !== undefined) {
    const top = Math.min(lowEnd, kernel.header.initrdMax + 1);
    initrdAt = Math.floor((top - request.initrd.length) / 0x1000) * 0x1000;
    if (initrdAt < kernel.base + kernel.need)
      throw new InputError(
        `${request.initrdName}: ${mib(request.initrd.length)} of initrd do not fit beside the kernel in ${mib(request.memory)}`,
        `give it more: --memory ${mib(kernel.base + kernel.need + request.initrd.length + 64 * MB)}`,
      );
  }
  return {
    kind: "linux",
    notes: kernel.notes,
    firmware: false,
    place(ram: GuestRam, vcpu: Vcpu): void {
      kernel.write(ram);
      if (request.initrd !== undefined) writeRam(ram, initrdAt, request.initrd);
      writeRam(ram, BOOT_CMDLINE, cmdline);
      writeRam(ram, BOOT_CMDLINE + cmdline.length, new Uint8Array(1));
      writeRam(ram, ACPI_TABLES, acpiTables(ACPI_TABLES, request.cpus));
      writeRam(ram, BOOT_PARAMS, zeroPage(kernel, request, initrdAt));
      enterLinux64(ram, vcpu, kernel.entry, BOOT_PARAMS);
    },
  };
}

function zeroPage(kernel: Kernel, request: LoadRequest, initrdAt: number): Uint8Array {
  const page = new Uint8Array(ZERO_PAGE_SIZE);
  const view = new DataView(page.buffer);
  page.set(kernel.header.bytes, HDR_SETUP_SECTS);
  page[HDR_TYPE_OF_LOADER] = 0xff;
  page[HDR_LOADFLAGS] =
    (page[HDR_LOADFLAGS] & ~LOADFLAG_KASLR) |
    LOADFLAG_LOADED_HIGH |
    (kernel.kaslr ? LOADFLAG_KASLR : 0);
  view.setUint32(HDR_CMD_LINE_PTR, BOOT_CMDLINE, true);
  view.setUint32(HDR_RAMDISK_IMAGE, initrdAt, true);
  view.setUint32(HDR_RAMDISK_SIZE, request.initrd?.length ?? 0, true);
  view.setUint32(ZERO_PAGE_ACPI_RSDP, ACPI_TABLES, true);
  const map = e820(request.memory);
  page[ZERO_PAGE_E820_ENTRIES] = map.length;
  map.forEach((entry, i) => {
    const at = ZERO_PAGE_E820_TABLE + 20 * i;
    view.setBigUint64(at, BigInt(entry.base), true);
    view.setBigUint64(at + 8, BigInt(entry.size), true);
    view.setUint32(at + 16, entry.type, true);
  });
  return page;
}
