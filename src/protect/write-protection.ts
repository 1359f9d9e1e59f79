// SPDX-License-Identifier: MIT
import type { Access, VictimKind, Violation } from "../alerts/alert.ts";
import { HVI_W, type Vcpu } from "../bridge/index.ts";
import { ALLOW, DENY, type GpaHook, type HookAction, type PageAccess } from "../ept/gpa-hooks.ts";
import type { TranslationChange, TranslationWatch } from "../ept/page-tables.ts";
import { entryAddress } from "../ept/paging-entry.ts";
import { asGva, formatGpa, formatGva } from "../memory/address.ts";
import { PTE_P, PTE_PS } from "../memory/translate.ts";
import type { ActiveProtection, ProtectionContext } from "./protection.ts";

/** Linear range whose pages are write-protected; page aligned. */
export interface Region {
  kind: VictimKind;
  start: number;
  end: number;
  /** What stands at an address, where symbols do not tell. */
  describe?: (gva: number) => string;
}

export interface WriteProtectionOptions {
  /** Of the protection, for alerts. */
  name: string;
  technique: string;
  regions: Region[];
  /** Ranges inside the regions that have a name of their own as victims. */
  parts?: Region[];
  /** Whether the access being handled may happen. */
  allow: (vcpu: Vcpu) => boolean;
}

const PAGE = 4096;

/**
 * Takes W away from every frame behind the regions, so that any linear alias of them is covered, and
 * keeps their linear addresses translating to the same frames. What most write protections are made of.
 */
export class WriteProtection implements ActiveProtection {
  readonly #context: ProtectionContext;
  readonly #options: WriteProtectionOptions;
  readonly #hooks: GpaHook[] = [];
  readonly #watches: TranslationWatch[] = [];
  /** Linear page of the image by guest frame number. */
  readonly #linear = new Map<number, number>();
  /** Guest frame by linear page: what the translation must stay. */
  readonly #frames = new Map<number, number>();
  readonly #written = new Uint8Array(256);
  readonly summary: string;

  constructor(context: ProtectionContext, options: WriteProtectionOptions) {
    this.#context = context;
    this.#options = options;
    try {
      for (const region of options.regions) this.#protect(region);
    } catch (error) {
      this.deactivate();
      throw error;
    }
    const [first] = options.regions;
    const from = first === undefined ? "" : ` from ${formatGva(asGva(first.start))}`;
    this.summary = `${this.#frames.size} pages${from}`;
  }

  deactivate(): void {
    for (const hook of this.#hooks) this.#context.hooks.remove(hook);
    for (const watch of this.#watches) this.#context.tables.unwatch(watch);
    this.#hooks.length = 0;
    this.#watches.length = 0;
  }

  #protect(region: Region): void {
    const { guest, hooks, tables } = this.#context;
    // The tables first: from then on no translation can change unseen.
    const watch = tables.watch(guest.vm, region.start, region.end, {
      before: (change) => this.#onTranslation(change, region),
      owner: this.#options.name,
    });
    if (watch === undefined) {
      throw new Error(`${formatGva(asGva(region.start))} is no range of whole pages`);
    }
    this.#watches.push(watch);
    if (!watch.complete) throw new Error("the guest's page tables are too many to be watched");
    const onWrite = (access: PageAccess): HookAction => this.#onWrite(access, region);
    for (let gva = region.start; gva < region.end; gva += PAGE) {
      const gpa = guest.vm.gpaOf(asGva(gva));
      // A hole (freed with the init sections) has nothing to protect.
      if (gpa < 0) continue;
      const gfn = Math.floor(gpa / PAGE);
      this.#linear.set(gfn, gva);
      this.#frames.set(gva, gfn);
      this.#hooks.push(hooks.add(gfn, HVI_W, onWrite, { owner: this.#options.name }));
    }
  }

  #onWrite(access: PageAccess, region: Region): HookAction {
    if (this.#options.allow(access.vcpu)) return ALLOW;
    const { written, guest } = this.#context;
    const page = this.#linear.get(Math.floor(access.gpa / PAGE)) as number;
    const gva = page + (access.gpa % PAGE);
    const length = written(access, this.#written);
    const size = length > 0 ? Math.min(length, access.size) : access.size;
    const old = new Uint8Array(Math.min(size, this.#written.length));
    const haveOld = guest.memory.readInto(access.gpa, old);
    const part = this.#options.parts?.find((t) => gva < t.end && gva + size > t.start);
    this.#report("ept-violation", access.vcpu, part ?? region, gva, access.gpa, {
      kind: "write",
      gva: Number.isNaN(access.gva) ? undefined : formatGva(asGva(access.gva)),
      size,
      old: haveOld ? hex(old, old.length) : undefined,
      new: length > 0 ? hex(this.#written, size) : undefined,
      count: 1,
    });
    return DENY;
  }

  #onTranslation(change: TranslationChange, region: Region): HookAction {
    if (change.known && this.#maps(change.level, change.gva, change.newLo, change.newHi)) {
      return ALLOW;
    }
    const gva = Math.max(change.gva, region.start);
    this.#report("translation-violation", change.vcpu, region, gva, change.entryGpa, {
      kind: "write",
      size: 8,
      old: entryHex(change.oldLo, change.oldHi),
      new: change.known ? entryHex(change.newLo, change.newHi) : undefined,
      count: 1,
    });
    return DENY;
  }

  #report(
    type: Violation["type"],
    vcpu: Vcpu,
    region: Region,
    gva: number,
    gpa: number,
    access: Access,
  ): void {
    const { attribution, alerts, guest } = this.#context;
    alerts.push({
      kind: "violation",
      type,
      tsc: vcpu.exitTsc,
      vcpu: vcpu.index,
      protection: this.#options.name,
      action: "denied",
      reason: "no-exception",
      technique: this.#options.technique,
      ...attribution.of(vcpu),
      victim: {
        kind: region.kind,
        symbol: region.describe?.(gva) ?? guest.symbolize(gva),
        gva: formatGva(asGva(gva)),
        gpa: formatGpa(gpa),
      },
      access,
    });
  }

  /**
   * Whether every protected page below an entry still has its frame under these contents of it. The
   * kernel splits large pages and changes rights of its own text; it never moves it.
   */
  #maps(level: number, gva: number, lo: number, hi: number): boolean {
    const bytes = 2 ** (12 + 9 * (level - 1));
    const first = this.#firstProtected(gva, gva + bytes);
    if (first === undefined) return true;
    if ((lo & PTE_P) === 0) return false;
    const frame = entryAddress(lo, hi);
    if (level === 1) return frame / PAGE === this.#frames.get(gva);
    if (level < 4 && (lo & PTE_PS) !== 0) {
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
    for (const region of this.#options.regions) {
      const from = Math.max(start, region.start);
      const to = Math.min(end, region.end);
      for (let page = from; page < to; page += PAGE) {
        if (this.#frames.has(page)) return page;
      }
    }
    return undefined;
  }
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
