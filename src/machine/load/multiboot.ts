// SPDX-License-Identifier: MIT
import type { GuestRam, Vcpu } from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import {
  ACPI_TABLES,
  CONVENTIONAL_END,
  e820,
  LOW_MEMORY_LIMIT,
  MULTIBOOT_INFO,
} from "../layout.ts";
import { acpiTables } from "./acpi.ts";
import { writeBiosVectors } from "./bios.ts";
import { elfExtent, isElf, parseElf } from "./elf.ts";
import { enterMultiboot } from "./entry.ts";
import type { LoadableImage, LoadRequest } from "./image.ts";
import { writeRam, zeroRam } from "./ram.ts";

/* Images with a Multiboot (version 1, 0.6.96) header: ELF or with the address fields. */
const MAGIC = 0x1badb002;
/** Loaders search this much of the file for the header. */
const SEARCH = 8192;
const HEADER_ADDRESSES = 1 << 16;
/** Requirements: page-aligned modules, memory information. Others of bits 0..15 must be understood. */
const UNDERSTOOD = 0x3;

const INFO_MEMORY = 1 << 0;
const INFO_CMDLINE = 1 << 2;
const INFO_MODULES = 1 << 3;
const INFO_MMAP = 1 << 6;
const INFO_LOADER_NAME = 1 << 9;

/** Offset of the Multiboot header in the file, or -1. */
export function findMultibootHeader(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = Math.min(bytes.length, SEARCH) - 12;
  for (let at = 0; at <= end; at += 4) {
    if (view.getUint32(at, true) !== MAGIC) continue;
    const sum = MAGIC + view.getUint32(at + 4, true) + view.getUint32(at + 8, true);
    if (sum % 4294967296 === 0) return at;
  }
  return -1;
}

interface Part {
  at: number;
  bytes: Uint8Array;
  /** Bytes in memory; zeros behind what the file has. */
  size: number;
}

/** Checks a Multiboot image against the machine. Throws InputError. */
export function loadMultiboot(request: LoadRequest): LoadableImage {
  const { kernel: bytes, kernelName: name } = request;
  const header = findMultibootHeader(bytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const flags = view.getUint32(header + 4, true);
  const bad = (why: string, hint: string) => new InputError(`${name}: ${why}`, hint);
  if ((flags & 0xffff & ~UNDERSTOOD) !== 0)
    throw bad(
      `its Multiboot header asks for something this loader does not have (flags 0x${flags.toString(16)})`,
      "build it without a video mode request (Multiboot flag bit 2)",
    );
  const parts: Part[] = [];
  let entry: number;
  if ((flags & HEADER_ADDRESSES) !== 0) {
    if (header + 32 > bytes.length)
      throw bad("its Multiboot header is cut off", "build or copy the image again");
    const headerAt = view.getUint32(header + 12, true);
    const loadAt = view.getUint32(header + 16, true);
    const loadEnd = view.getUint32(header + 20, true);
    const bssEnd = view.getUint32(header + 24, true);
    entry = view.getUint32(header + 28, true);
    const start = header - (headerAt - loadAt);
    const length = loadEnd === 0 ? bytes.length - start : loadEnd - loadAt;
    if (start < 0 || length <= 0 || start + length > bytes.length)
      throw bad(
        "truncated: its Multiboot header asks for more than the file has",
        "build or copy the image again",
      );
    parts.push({
      at: loadAt,
      bytes: bytes.subarray(start, start + length),
      size: Math.max(length, bssEnd === 0 ? 0 : bssEnd - loadAt),
    });
  } else {
    if (!isElf(bytes))
      throw bad(
        "a Multiboot header without addresses in a file that is not ELF",
        "build it as ELF",
      );
    const elf = parseElf(bytes, name);
    entry = elf.entry;
    for (const s of elf.segments)
      parts.push({
        at: s.physical,
        bytes: bytes.subarray(s.offset, s.offset + s.fileSize),
        size: s.memorySize,
      });
    const { start, end } = elfExtent(elf);
    if (entry < start || entry >= end)
      throw bad("its entry point is not in the image", "build the image again");
  }
  const lowEnd = Math.min(request.memory, LOW_MEMORY_LIMIT);
  let imageEnd = 0x100000;
  for (const part of parts) {
    imageEnd = Math.max(imageEnd, part.at + part.size);
    if (part.at + part.size > lowEnd)
      throw bad(
        `needs memory up to ${Math.ceil((part.at + part.size) / 1048576)}M, the guest has ${Math.ceil(lowEnd / 1048576)}M`,
        `give it more: --memory ${Math.ceil((part.at + part.size) / 1048576) + 16}M`,
      );
    if (part.at < CONVENTIONAL_END && part.at + part.size > MULTIBOOT_INFO)
      throw bad("loads over the Multiboot information at 0x90000", "link it at 1M or above");
  }
  const moduleAt = Math.ceil(imageEnd / 0x1000) * 0x1000;
  if (request.initrd !== undefined && moduleAt + request.initrd.length > lowEnd)
    throw new InputError(
      `${request.initrdName}: does not fit behind the image in ${Math.ceil(lowEnd / 1048576)}M`,
      `give it more: --memory ${Math.ceil((moduleAt + request.initrd.length) / 1048576) + 16}M`,
    );
  return {
    kind: "multiboot",
    notes: [`multiboot: 32-bit entry at 0x${entry.toString(16)}`],
    firmware: true,
    place(ram: GuestRam, vcpu: Vcpu): void {
      writeBiosVectors(ram);
      for (const part of parts) {
        writeRam(ram, part.at, part.bytes);
        zeroRam(ram, part.at + part.bytes.length, part.size - part.bytes.length);
      }
      if (request.initrd !== undefined) writeRam(ram, moduleAt, request.initrd);
      writeRam(ram, ACPI_TABLES, acpiTables(ACPI_TABLES, request.cpus));
      writeRam(ram, MULTIBOOT_INFO, information(request, moduleAt));
      enterMultiboot(ram, vcpu, entry, MULTIBOOT_INFO);
    },
  };
}

/** The information structure (3.3 of the specification), with all that it points to behind it. */
function information(request: LoadRequest, moduleAt: number): Uint8Array {
  const encode = (s: string) => new TextEncoder().encode(`${s}\0`);
  const cmdline = encode(
    request.append === "" ? request.kernelName : `${request.kernelName} ${request.append}`,
  );
  const moduleName = encode(request.initrdName);
  const loader = encode("hvi");
  const map = e820(request.memory);
  const modulesAt = 0x80;
  const mapAt = 0x90;
  const loaderAt = mapAt + 24 * map.length;
  const moduleNameAt = loaderAt + loader.length;
  const cmdlineAt = moduleNameAt + moduleName.length;
  const page = new Uint8Array(cmdlineAt + cmdline.length);
  const view = new DataView(page.buffer);
  const low = Math.min(request.memory, LOW_MEMORY_LIMIT);
  const hasModule = request.initrd !== undefined;
  view.setUint32(
    0,
    INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER_NAME | (hasModule ? INFO_MODULES : 0),
    true,
  );
  view.setUint32(4, CONVENTIONAL_END >> 10, true);
  view.setUint32(8, (low - 0x100000) / 1024, true);
  view.setUint32(16, MULTIBOOT_INFO + cmdlineAt, true);
  if (hasModule) {
    view.setUint32(20, 1, true);
    view.setUint32(24, MULTIBOOT_INFO + modulesAt, true);
    view.setUint32(modulesAt, moduleAt, true);
    view.setUint32(modulesAt + 4, moduleAt + (request.initrd?.length ?? 0), true);
    view.setUint32(modulesAt + 8, MULTIBOOT_INFO + moduleNameAt, true);
  }
  view.setUint32(44, 24 * map.length, true);
  view.setUint32(48, MULTIBOOT_INFO + mapAt, true);
  map.forEach((entry, i) => {
    const at = mapAt + 24 * i;
    view.setUint32(at, 20, true);
    view.setBigUint64(at + 4, BigInt(entry.base), true);
    view.setBigUint64(at + 12, BigInt(entry.size), true);
    view.setUint32(at + 20, entry.type, true);
  });
  view.setUint32(64, MULTIBOOT_INFO + loaderAt, true);
  page.set(loader, loaderAt);
  page.set(moduleName, moduleNameAt);
  page.set(cmdline, cmdlineAt);
  return page;
}
