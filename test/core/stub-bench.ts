// SPDX-License-Identifier: MIT
/** Two pages to read and two to write, at which stubs run under chosen hooks. */
import { HVI_ACCESS_WRITE, HVI_R, HVI_W } from "../../src/bridge/index.ts";
import type { GpaHook, HookAction, PageAccess } from "../../src/ept/gpa-hooks.ts";
import type { HookObject } from "../../src/ept/hook-objects.ts";
import type { Outcome, Registers } from "./guest.ts";
import { PAGE, SOURCE, TARGET, WORD } from "./layout.ts";
import { hex, type Trial } from "./scenario.ts";
import type { Space } from "./space.ts";
import { type Access, accesses, REGISTERS, type Stub } from "./stubs.ts";

/** Where SI and DI point: in the middle of a page, or so that accesses go over its end. */
export type Place = "inside" | "edge";

/** What a hook was told of an access. */
export interface Report {
  readonly page: number;
  readonly offset: number;
  readonly size: number;
  readonly kind: number;
}

export interface Ran {
  readonly outcome: Outcome;
  /** The four pages after: two of SI, two of DI. */
  readonly memory: readonly Uint8Array[];
}

/** Middle of a page, a multiple of 64. */
const MIDDLE = 0x840;
/** Of vector registers; the second one serves as a mask too. */
const VALUES = [0x3f, 0x91, 0x27].map((first, n) =>
  Uint8Array.from(
    { length: 32 },
    (_, i) => (first + i * (7 + n) + (n === 1 ? 0x40 * (i & 3) : 0)) & 0xff,
  ),
);

/** What the four pages hold before, in ASCII: no address, no large number. */
const CONTENT = [0, 1, 2, 3].map((n) =>
  Uint8Array.from({ length: PAGE }, (_, i) => (i * 13 + n * 57 + 1) & 0x7f),
);

export class StubBench {
  readonly space: Space;
  /** Physical addresses of the four pages, which are not neighbours. */
  readonly frames: readonly number[];
  readonly reports: Report[] = [];
  /** What `written` said of each byte that was reported as written; by physical address. */
  readonly predicted = new Map<number, number>();
  /** Writes of which it could not say the bytes. */
  unknown = 0;
  readonly #hooks: GpaHook[] = [];
  #object: HookObject | undefined;
  readonly #bytes = new Uint8Array(PAGE);

  /** @param kind hooks on the frames, or on the linear addresses by an object */
  constructor(
    readonly t: Trial,
    readonly kind: "frames" | "addresses" = "frames",
  ) {
    this.space = t.guest.space();
    this.frames = [
      ...this.space.mapNew(SOURCE[t.mode], 2),
      ...this.space.mapNew(TARGET[t.mode], 2),
    ];
    this.space.enter();
  }

  /** Accesses in bytes: where each byte lies, as page (0..3) * 4096 + offset. */
  bytesOf(stub: Stub, place: Place, kind: "r" | "w"): Set<number> {
    const out = new Set<number>();
    for (const a of accesses(stub, WORD[this.t.mode])) {
      if (!a.kind.includes(kind)) continue;
      const base = this.#offset(stub, place, a.at) + (a.at === "si" ? 0 : 2 * PAGE);
      for (let n = 0; n < Math.abs(a.count); n++) {
        const at = base + a.offset + n * Math.sign(a.count) * a.size;
        for (let i = 0; i < a.size; i++) out.add(at + i);
      }
    }
    return out;
  }

  /**
   * The byte of an event's frame with RFLAGS.RF, as bytesOf(); -1 for other stubs. On VT-x it may be set
   * where the frame is hooked. Presumably the EPT violation leaves 1 there (SDM vol. 3, 27.3.3) and INT n
   * pushes it; it was not traced.
   */
  resumeFlag(stub: Stub, place: Place): number {
    if (!stub.event) return -1;
    return Math.min(...this.bytesOf(stub, place, "w")) + 2 * WORD[this.t.mode] + 2;
  }

  /** Offset of SI or DI in its two pages. */
  #offset(stub: Stub, place: Place, at: "si" | "di"): number {
    const first = accesses(stub, WORD[this.t.mode]).find((a) => a.at === at);
    if (place === "inside" || first === undefined) return MIDDLE;
    const middle = PAGE - first.offset - extent(first) / 2;
    const align = stub.align ?? 1;
    return Math.floor(middle / align) * align;
  }

  /** Whether anything goes over the end of a page then. */
  crosses(stub: Stub): boolean {
    for (const kind of ["r", "w"] as const) {
      const pages = new Set([...this.bytesOf(stub, "edge", kind)].map((b) => Math.floor(b / PAGE)));
      if ((pages.has(0) && pages.has(1)) || (pages.has(2) && pages.has(3))) return true;
    }
    return false;
  }

  /** Fills the four pages anew, those of SI with zeros if asked; what they hold. */
  fill(stub: Stub, place: Place, ring: 0 | 3, emptySource = false): Uint8Array[] {
    const { guest } = this.t;
    for (const [n, pa] of this.frames.entries()) {
      if (n > 1 ? stub.zeroed : emptySource) guest.ram.fill(0, pa, pa + PAGE);
      else guest.ram.set(CONTENT[n] as Uint8Array, pa);
    }
    if (stub.source !== undefined && !emptySource) {
      this.#putWord(this.#offset(stub, place, "si"), this.#sourceWord(stub, ring));
    }
    return this.memory();
  }
  /** What the four pages hold. */
  memory(): Uint8Array[] {
    return this.frames.map((pa) => this.t.guest.bytes(pa, PAGE));
  }

  /** Runs a stub on the pages as they are. */
  run(stub: Stub, place: Place, ring: 0 | 3): Ran {
    const { t } = this;
    const si = this.#offset(stub, place, "si");
    const di = this.#offset(stub, place, "di");
    this.reports.length = 0;
    this.predicted.clear();
    this.unknown = 0;
    const registers: Registers = {
      ...REGISTERS,
      ...stub.registers,
      si: SOURCE[t.mode] + si,
      di: TARGET[t.mode] + di,
    };
    // 32-bit registers keep the rest as the guest's kernel leaves it.
    if (WORD[t.mode] === 4) {
      for (const name of ["ax", "bx", "dx"] as const)
        registers[name] = BigInt.asUintN(32, BigInt(registers[name] ?? 0));
    }
    const outcome = t.guest.run(stub.name, { ring, space: this.space, registers, vectors: VALUES });
    return { outcome, memory: this.memory() };
  }

  #sourceWord(stub: Stub, ring: 0 | 3): number {
    if (stub.source !== "landing") return stub.source ?? 0;
    const { guest } = this.t;
    return ring === 0 ? guest.symbol("landing") : guest.userAddress("landing");
  }
  /** A word at an offset of the source pages, over the page boundary too. */
  #putWord(offset: number, value: number): void {
    const word = BigInt.asUintN(64, BigInt(value));
    for (let i = 0; i < WORD[this.t.mode]; i++) {
      const at = offset + i;
      const pa = (this.frames[at < PAGE ? 0 : 1] as number) + (at % PAGE);
      this.t.guest.ram[pa] = Number((word >> BigInt(8 * i)) & 0xffn);
    }
  }

  /** Hooks a right of some of the pages; `wish` answers for a page. */
  hook(
    right: typeof HVI_R | typeof HVI_W,
    pages: readonly number[],
    wish: (page: number) => HookAction,
  ): void {
    const { core, mode } = this.t;
    const told = (page: number, access: PageAccess): HookAction => {
      this.#note(page, access);
      return wish(page);
    };
    for (const page of pages) {
      if (this.kind === "frames") {
        const gfn = (this.frames[page] as number) / PAGE;
        this.#hooks.push(core.hooks.add(gfn, right, (access) => told(page, access)));
        continue;
      }
      this.#object ??= core.objects.create(this.space.memory, "stubs");
      const base = page < 2 ? SOURCE[mode] : TARGET[mode] - 2 * PAGE;
      const hook = this.#object.hook(base + page * PAGE, PAGE, right, (access, _region, gva) =>
        told((gva - (gva % PAGE) - base) / PAGE, access),
      );
      if (hook === undefined) throw new Error("no hook on a linear address");
    }
    core.hooks.commit();
  }
  unhook(): void {
    for (const hook of this.#hooks) this.t.core.hooks.remove(hook);
    this.#hooks.length = 0;
    this.#object?.destroy();
    this.#object = undefined;
    this.t.core.hooks.commit();
  }

  #note(page: number, access: PageAccess): void {
    this.reports.push({ page, offset: access.gpa % PAGE, size: access.size, kind: access.access });
    if ((access.access & HVI_ACCESS_WRITE) === 0) return;
    const n = this.t.core.written(access, this.#bytes);
    if (n < 0) this.unknown++;
    for (let i = 0; i < n; i++) this.predicted.set(access.gpa + i, this.#bytes[i] as number);
  }

  /** Bytes that reports of a kind cover, as bytesOf(). */
  reported(kind: number): Set<number> {
    const out = new Set<number>();
    for (const r of this.reports) {
      if ((r.kind & kind) === 0) continue;
      for (let i = 0; i < r.size; i++) out.add(r.page * PAGE + r.offset + i);
    }
    return out;
  }
  /**
   * The reports as text for a transcript. In which order the operands of one instruction are read, and
   * the parts of an event's frame written, is each CPU's own.
   */
  reportText(stub: Stub, sorted: boolean): string {
    const all = this.reports.map((r) => {
      const kind = `${r.kind & HVI_R ? "r" : ""}${r.kind & HVI_W ? "w" : ""}${r.page}`;
      return stub.event ? kind : `${kind}:${hex(r.offset)}+${r.size}`;
    });
    return (sorted || stub.event ? all.sort() : all).join(" ");
  }
}

function extent(a: Access): number {
  const bytes = a.size * Math.abs(a.count);
  // Downwards the first element lies highest.
  return a.count < 0 ? -bytes + 2 * a.size : bytes;
}

/** Addresses of bytes that differ, as bytesOf(). */
export function changed(before: readonly Uint8Array[], after: readonly Uint8Array[]): number[] {
  const out: number[] = [];
  for (const [n, page] of after.entries()) {
    const old = before[n] as Uint8Array;
    if (Buffer.compare(page, old) === 0) continue;
    for (let i = 0; i < PAGE; i++) if (page[i] !== old[i]) out.push(n * PAGE + i);
  }
  return out;
}
