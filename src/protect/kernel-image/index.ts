import type { VictimKind } from "../../alerts/alert.ts";
import { HVI_W } from "../../bridge/index.ts";
import { ALLOW, DENY, type HookAction, type PageAccess } from "../../ept/gpa-hooks.ts";
import {
  entryAddress,
  PTE_LARGE,
  PTE_PRESENT,
  type TranslationChange,
  TranslationWatch,
} from "../../ept/page-tables.ts";
import { asGva, formatGpa, formatGva } from "../../memory/address.ts";
import type { ActiveProtection, Protection, ProtectionContext } from "../protection.ts";

/** Linear range of the image whose pages are write-protected. */
interface Region {
  kind: VictimKind;
  start: number;
  end: number;
}

const PAGE = 4096;
const NAME = "kernel-image";
const TECHNIQUE = "T1014";

/**
 * Write-protects the kernel's .text and .rodata (the system call tables lie in the latter), and keeps
 * their linear addresses translating to the same frames. See DESIGN.md in this folder.
 */
export const kernelImage: Protection = {
  name: NAME,
  title: "Kernel text, read-only data and system call tables against writes and remapping",
  technique: TECHNIQUE,
  activate: (context) => new KernelImage(context),
};

class KernelImage implements ActiveProtection {
  readonly #context: ProtectionContext;
  readonly #regions: Region[];
  /** The system call tables, for naming the victim; they lie inside .rodata. */
  readonly #tables: Region[];
  readonly #hooks: ReturnType<ProtectionContext["hooks"]["add"]>[] = [];
  readonly #watches: TranslationWatch[] = [];
  /** Linear page of the image by guest frame number. */
  readonly #linear = new Map<number, number>();
  /** Guest frame by linear page: what the translation must stay. */
  readonly #frames = new Map<number, number>();
  readonly #written = new Uint8Array(256);
  readonly summary: string;

  constructor(context: ProtectionContext) {
    this.#context = context;
    const { guest } = context;
    const text = guest.kernelRange("text");
    const rodata = guest.kernelRange("rodata");
    if (text === undefined) throw new Error("symbols _text or _etext not found in the guest");
    if (rodata === undefined) {
      throw new Error("symbols __start_rodata or __end_rodata not found in the guest");
    }
    this.#regions = [
      { kind: "kernel-text", start: floorPage(text.start), end: ceilPage(text.end) },
      { kind: "kernel-rodata", start: floorPage(rodata.start), end: ceilPage(rodata.end) },
    ];
    this.#tables = ["sys_call_table", "ia32_sys_call_table", "x32_sys_call_table"].flatMap(
      (name) => {
        const range = guest.symbolRange(name);
        return range === undefined ? [] : [{ kind: "syscall-table" as const, ...range }];
      },
    );
    try {
      for (const region of this.#regions) this.#protect(region);
    } catch (error) {
      this.deactivate();
      throw error;
    }
    this.summary = `${this.#frames.size} pages from ${formatGva(asGva(text.start))}`;
  }

  deactivate(): void {
    for (const hook of this.#hooks) this.#context.hooks.remove(hook);
    for (const watch of this.#watches) watch.remove();
    this.#hooks.length = 0;
    this.#watches.length = 0;
  }

  #protect(region: Region): void {
    const { guest, hooks } = this.#context;
    // The tables first: from then on no translation can change unseen.
    this.#watches.push(
      new TranslationWatch(
        hooks,
        guest.memory,
        this.#context.written,
        guest.root,
        region.start,
        region.end,
        (change) => this.#onTranslation(change, region),
      ),
    );
    const onWrite = (access: PageAccess): HookAction => this.#onWrite(access, region);
    for (let gva = region.start; gva < region.end; gva += PAGE) {
      const gpa = guest.vm.gpaOf(asGva(gva));
      // A hole (freed with the init sections) has nothing to protect.
      if (gpa < 0) continue;
      const gfn = Math.floor(gpa / PAGE);
      this.#linear.set(gfn, gva);
      this.#frames.set(gva, gfn);
      this.#hooks.push(hooks.add(gfn, HVI_W, onWrite));
    }
  }

  #onWrite(access: PageAccess, region: Region): HookAction {
    const { attribution, written, alerts, guest } = this.#context;
    const who = attribution.of(access.vcpu);
    if (who.kernelPatching) return ALLOW;
    const page = this.#linear.get(Math.floor(access.gpa / PAGE)) as number;
    const gva = page + (access.gpa % PAGE);
    const length = written(access, this.#written);
    const size = length > 0 ? Math.min(length, access.size) : access.size;
    const old = new Uint8Array(Math.min(size, this.#written.length));
    const haveOld = guest.memory.readInto(access.gpa, old);
    const table = this.#tables.find((t) => gva < t.end && gva + size > t.start);
    alerts.push({
      kind: "violation",
      type: "ept-violation",
      tsc: access.vcpu.exitTsc,
      vcpu: access.vcpu.index,
      protection: NAME,
      action: "denied",
      reason: "no-exception",
      technique: TECHNIQUE,
      originator: who.originator,
      victim: {
        kind: table?.kind ?? region.kind,
        symbol: guest.symbolize(gva),
        gva: formatGva(asGva(gva)),
        gpa: formatGpa(access.gpa),
      },
      access: {
        kind: "write",
        gva: Number.isNaN(access.gva) ? undefined : formatGva(asGva(access.gva)),
        size,
        old: haveOld ? hex(old, old.length) : undefined,
        new: length > 0 ? hex(this.#written, size) : undefined,
        count: 1,
      },
      process: who.process,
    });
    return DENY;
  }

  #onTranslation(change: TranslationChange, region: Region): HookAction {
    if (change.known && this.#sameFrames(change)) return ALLOW;
    const { attribution, alerts, guest } = this.#context;
    const who = attribution.of(change.vcpu);
    const gva = Math.max(change.gva, region.start);
    alerts.push({
      kind: "violation",
      type: "translation-violation",
      tsc: change.vcpu.exitTsc,
      vcpu: change.vcpu.index,
      protection: NAME,
      action: "denied",
      reason: "no-exception",
      technique: TECHNIQUE,
      originator: who.originator,
      victim: {
        kind: region.kind,
        symbol: guest.symbolize(gva),
        gva: formatGva(asGva(gva)),
        gpa: formatGpa(change.entryGpa),
      },
      access: {
        kind: "write",
        size: 8,
        old: entryHex(change.oldLo, change.oldHi),
        new: change.known ? entryHex(change.newLo, change.newHi) : undefined,
        count: 1,
      },
      process: who.process,
    });
    return DENY;
  }

  /** Whether every protected page below the new entry still has its frame. The kernel splits large
   * pages and changes rights of its own text; it never moves it. */
  #sameFrames(change: TranslationChange): boolean {
    return this.#maps(change.level, change.gva, change.newLo, change.newHi);
  }

  #maps(level: number, gva: number, lo: number, hi: number): boolean {
    const bytes = 2 ** (12 + 9 * (level - 1));
    const first = this.#firstProtected(gva, gva + bytes);
    if (first === undefined) return true;
    if ((lo & PTE_PRESENT) === 0) return false;
    const frame = entryAddress(lo, hi);
    if (level === 1) return frame / PAGE === this.#frames.get(gva);
    if (level < 4 && (lo & PTE_LARGE) !== 0) {
      // Bit 12 of a large entry is PAT, not address.
      const base = frame - (frame % bytes);
      for (let page = first; page < gva + bytes; page += PAGE) {
        const expected = this.#frames.get(page);
        if (expected !== undefined && expected * PAGE !== base + (page - gva)) return false;
      }
      return true;
    }
    const below = bytes / 512;
    for (let i = 0; i < 512; i++) {
      const at = gva + i * below;
      if (this.#firstProtected(at, at + below) === undefined) continue;
      const entryLo = this.#context.guest.memory.read32(frame + i * 8);
      const entryHi = this.#context.guest.memory.read32(frame + i * 8 + 4);
      if (entryLo < 0 || entryHi < 0) return false;
      if (!this.#maps(level - 1, at, entryLo, entryHi)) return false;
    }
    return true;
  }

  /** First protected page of [start, end), undefined when there is none. */
  #firstProtected(start: number, end: number): number | undefined {
    for (const region of this.#regions) {
      const from = Math.max(start, region.start);
      const to = Math.min(end, region.end);
      for (let page = from; page < to; page += PAGE) {
        if (this.#frames.has(page)) return page;
      }
    }
    return undefined;
  }
}

function floorPage(gva: number): number {
  return Math.floor(gva / PAGE) * PAGE;
}

function ceilPage(gva: number): number {
  return Math.ceil(gva / PAGE) * PAGE;
}

function hex(bytes: Uint8Array, length: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, length).toString("hex");
}

/** A paging entry as its eight bytes in memory order. */
function entryHex(lo: number, hi: number): string {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, lo, true);
  view.setUint32(4, hi, true);
  return hex(bytes, 8);
}
