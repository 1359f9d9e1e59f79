// SPDX-License-Identifier: MIT
/**
 * Who the guest is, from raw memory and the registers of one CPU; no file is
 * asked and nothing in the guest is touched. While a guest boots this is tried
 * again and again: it is cheap until a kernel is mapped, and says what is
 * missing yet.
 */
import {
  gvaFromHalves,
  type PhysicalMemory,
  pagingModeOf,
  VirtualMemory,
} from "../memory/index.ts";
import type { GuestCpu } from "./cpu.ts";
import { Btf, type BtfFailure, findBtf } from "./linux/btf.ts";
import {
  copyKernelImage,
  KERNEL_MAP_END,
  KERNEL_MAP_START,
  type KernelImage,
} from "./linux/image.ts";
import { findKallsyms, type KallsymsFailure } from "./linux/kallsyms.ts";
import { LinuxGuest } from "./linux/kernel.ts";
import { cString } from "./reader.ts";

/** Why a guest is not identified, in the order in which a booting Linux overcomes them. */
export type IdentifyFailure =
  | "no-paging"
  | "not-long-mode"
  | "no-kernel-mapping"
  | "no-banner"
  | KallsymsFailure
  | "symbols-missing";

const REASONS: Record<IdentifyFailure, string> = {
  "no-paging": "the guest has not switched paging on yet",
  "not-long-mode": "the guest is not in long mode (32-bit systems are not supported)",
  "no-kernel-mapping": "nothing is mapped where Linux maps its kernel",
  "no-banner": "no Linux version banner in the kernel's mapping",
  "no-kallsyms": "no kallsyms token table in the kernel's mapping (CONFIG_KALLSYMS=n?)",
  "kallsyms-damaged": "the kallsyms tables contradict each other",
  "symbols-missing": "the kernel's symbols lack _stext or _etext",
};

/** The order of failures: the one that came furthest is told. */
const PROGRESS = Object.keys(REASONS) as IdentifyFailure[];

export type IdentifyAttempt =
  | { readonly ok: true; readonly guest: LinuxGuest }
  | {
      readonly ok: false;
      /** What is missing yet. */
      readonly code: IdentifyFailure;
      /** The same for people. */
      readonly reason: string;
    };

const BANNER = Buffer.from("Linux version ", "latin1");
const MAX_BANNER = 512;
const MAX_BANNER_HITS = 256;

/** Offsets in the image at which a banner with a version number stands. */
function bannerOffset(image: Uint8Array): number | undefined {
  const buffer = Buffer.from(image.buffer, image.byteOffset, image.length);
  let at = -1;
  for (let i = 0; i < MAX_BANNER_HITS; i++) {
    at = buffer.indexOf(BANNER, at + 1);
    if (at < 0) return undefined;
    if (/^\d+\.\d+\S* /.test(cString(image, at + BANNER.length, MAX_BANNER))) return at;
  }
  return undefined;
}

/**
 * An address in the kernel's code: the system call entry, or else the handler
 * of the page fault. Undefined when neither lies in the kernel's mapping.
 */
function codeHint(memory: VirtualMemory, cpu: GuestCpu): number | undefined {
  const inside = (a: number) => a >= KERNEL_MAP_START && a < KERNEL_MAP_END;
  if (inside(cpu.lstar)) return cpu.lstar;
  // 64-bit gate (SDM 6.14.1): offset bits 15..0, 31..16, 63..32 in bytes 0-1, 6-7, 8-11.
  const gate = cpu.idtBase + 14 * 16;
  const low = memory.read16(gate);
  const middle = memory.read16(gate + 6);
  const high = memory.read32(gate + 8);
  if (low < 0 || middle < 0 || high < 0) return undefined;
  const handler = gvaFromHalves(((middle << 16) | low) >>> 0, high);
  return inside(handler) ? handler : undefined;
}

function fail(code: IdentifyFailure): IdentifyAttempt {
  return { ok: false, code, reason: REASONS[code] };
}

function identifyUnder(
  memory: PhysicalMemory,
  root: number,
  levels: 4 | 5,
  cpu: GuestCpu,
): IdentifyAttempt {
  const vm = new VirtualMemory(memory, root, levels === 5 ? "5level" : "4level");
  const image = copyKernelImage(memory, root, levels, codeHint(vm, cpu));
  if (image === undefined) return fail("no-kernel-mapping");
  const banner = bannerOffset(image.bytes);
  if (banner === undefined) return fail("no-banner");
  const symbols = findKallsyms(image.bytes, image.base);
  if (typeof symbols === "string") return fail(symbols);

  // The symbol must lead to the banner: the last proof that the tables are understood.
  const named = symbols.lookup("linux_banner");
  const at = named === undefined ? banner : named - image.base;
  const text = at >= 0 && at < image.bytes.length ? cString(image.bytes, at, MAX_BANNER) : "";
  const version = /^Linux version (\S+) /.exec(text)?.[1];
  if (version === undefined) return fail("kallsyms-damaged");

  const start = symbols.lookup("_text") ?? symbols.lookup("_stext");
  const end = symbols.lookup("_etext");
  if (start === undefined || end === undefined || end <= start) return fail("symbols-missing");
  return {
    ok: true,
    guest: new LinuxGuest({
      memory,
      vm: kernelSpace(
        vm,
        symbols.lookup("init_top_pgt") ?? symbols.lookup("swapper_pg_dir"),
        start,
      ),
      version,
      banner: text.trimEnd(),
      text: { start, end },
      symbols,
      btf: loadBtf(image, symbols.lookup("__start_BTF")),
    }),
  };
}

/**
 * The kernel's own page tables, which outlive the process whose CR3 was found:
 * taken when they translate the kernel's text as the current ones do.
 */
function kernelSpace(vm: VirtualMemory, table: number | undefined, text: number): VirtualMemory {
  const root = table === undefined ? -1 : vm.gpaOf(table);
  if (root < 0) return vm;
  const own = vm.withRoot(root);
  return own.gpaOf(text) === vm.gpaOf(text) ? own : vm;
}

function loadBtf(image: KernelImage, start: number | undefined): Btf | BtfFailure {
  const bytes = findBtf(image.bytes, start === undefined ? undefined : start - image.base);
  return typeof bytes === "string" ? bytes : Btf.parse(bytes);
}

/**
 * One attempt to identify the guest. Bounded whatever memory holds: two roots
 * at most, 192 MiB of image each.
 */
export function identify(memory: PhysicalMemory, cpu: GuestCpu): IdentifyAttempt {
  const mode = pagingModeOf(cpu.cr0, cpu.cr4, cpu.efer);
  if (mode === "none") return fail("no-paging");
  if (mode !== "4level" && mode !== "5level") return fail("not-long-mode");
  const levels = mode === "5level" ? 5 : 4;

  const root = cpu.cr3 - (cpu.cr3 % 4096);
  const first = identifyUnder(memory, root, levels, cpu);
  // With page-table isolation the user's root is the page after the kernel's,
  // in a pair aligned to 8 KiB (arch/x86/include/asm/pgtable.h).
  if (first.ok || root % 8192 === 0) return first;
  const second = identifyUnder(memory, root - 4096, levels, cpu);
  if (second.ok || PROGRESS.indexOf(second.code) > PROGRESS.indexOf(first.code)) return second;
  return first;
}
