// SPDX-License-Identifier: MIT
/**
 * Stack traces of kernel code by its ORC tables (arch/x86/kernel/unwind_orc.c,
 * Documentation/arch/x86/orc-unwinder.rst), read from guest memory. The layout
 * of an entry comes from BTF. What the tables do not cover (BPF, trampolines)
 * is tried with the frame pointer, as the kernel does.
 */
import { HVI_R10, HVI_R13, HVI_RDI, HVI_RDX } from "../../bridge/abi.ts";
import { isKernelPointer, type VirtualReader } from "../reader.ts";
import type { Btf, BtfMember } from "./btf.ts";
import type { SymbolTable } from "./kallsyms.ts";
import type { GvaRange, LinuxModule, ModuleReader } from "./modules.ts";

const MAX_ORC_ENTRIES = 8_000_000;
/** Stack that one trace may cover: thread, interrupt and exception stacks together. */
const MAX_STACK = 256 * 1024;
/** Frames of one trace, whatever the caller asks. */
const MAX_FRAMES = 65_536;

/** Where the previous SP or BP comes from (ORC_REG_* of asm/orc_types.h). */
type Register =
  | "undefined"
  | "prev-sp"
  | "dx"
  | "di"
  | "bp"
  | "sp"
  | "r10"
  | "r13"
  | "bp-indirect"
  | "sp-indirect";

/** Numbers of the registers since 4.14. */
const CLASSIC: readonly Register[] = [
  "undefined",
  "prev-sp",
  "dx",
  "di",
  "bp",
  "sp",
  "r10",
  "r13",
  "bp-indirect",
  "sp-indirect",
];
/** Numbers of the registers in 7.x, where bit 3 says "indirect"; 1 and 5 are not seen in use. */
const INDIRECT_BIT: readonly Register[] = [
  "undefined",
  "undefined",
  "dx",
  "sp",
  "bp",
  "undefined",
  "r10",
  "r13",
  "prev-sp",
  "sp-indirect",
  "bp-indirect",
];
/** Looked-up entries of the kernel's own table that are kept. */
const MAX_KNOWN = 8192;
/** Entries looked at to tell the numbering. */
const SAMPLE = 4096;

type FrameKind = "undefined" | "end" | "call" | "regs" | "regs-partial";

interface OrcEntry {
  spOffset: number;
  bpOffset: number;
  spReg: Register;
  bpReg: Register;
  kind: FrameKind;
  /** The frame below was interrupted, not called from here. */
  signal: boolean;
}

/** A function with a frame pointer (orc_fp_entry of unwind_orc.c). */
const FRAME_POINTER: OrcEntry = {
  spOffset: 16,
  bpOffset: -16,
  spReg: "bp",
  bpReg: "prev-sp",
  kind: "call",
  signal: false,
};

interface OrcTable {
  ip: number;
  entries: number;
  count: number;
}

/**
 * Where the function graph tracer keeps the return addresses that it replaced by that of
 * return_to_handler (ftrace_graph_ret_addr of kernel/trace/fgraph.c).
 */
interface GraphTracer {
  handler: number;
  /** Offset of the pointer to them in a task. */
  stack: number;
  /** Offsets in struct ftrace_ret_stack: the address replaced, and where on the stack it stood. */
  ret: number;
  retp: number;
}

/** Bytes of a task's replaced addresses (SHADOW_STACK_SIZE of fgraph.c; before 6.11 50 entries). */
const GRAPH_STACK = 4096;

function graphTracer(symbols: SymbolTable, btf: Btf): GraphTracer | undefined {
  const handler = symbols.lookup("return_to_handler");
  const stack = btf.offsetof("task_struct", "ret_stack");
  const ret = btf.offsetof("ftrace_ret_stack", "ret");
  const retp = btf.offsetof("ftrace_ret_stack", "retp");
  if (handler === undefined || stack === undefined || ret === undefined || retp === undefined) {
    return undefined;
  }
  return { handler, stack, ret, retp };
}

/** What a trace begins with. */
export interface UnwindState {
  ip: number;
  sp: number;
  bp: number;
  /** Address of the task whose stack it is; undefined when that cannot be told. */
  task(): number | undefined;
  /** The other registers, by encoding; only good for the innermost frame. */
  gpr(index: number): number;
}

export class OrcUnwinder {
  #registers: readonly Register[] = CLASSIC;

  private constructor(
    private readonly vm: VirtualReader,
    private readonly kernel: OrcTable,
    private readonly image: GvaRange,
    private readonly modules: ModuleReader | undefined,
    private readonly size: number,
    private readonly fields: Record<
      "spOffset" | "bpOffset" | "spReg" | "bpReg" | "type",
      BtfMember
    >,
    /** Older entries mark the last frame and the signal frames with bits of their own. */
    private readonly end: BtfMember | undefined,
    private readonly signal: BtfMember | undefined,
    private readonly regs: Record<"ip" | "sp" | "bp" | "cs" | "r10" | "r13" | "di" | "dx", number>,
    private readonly graph: GraphTracer | undefined,
  ) {}

  /** The unwinder, or the name of what this kernel lacks for it. */
  static create(
    vm: VirtualReader,
    symbols: SymbolTable,
    btf: Btf,
    modules: ModuleReader | undefined,
    image: GvaRange,
  ): OrcUnwinder | { missing: string } {
    const ip = symbols.lookup("__start_orc_unwind_ip");
    const ipEnd = symbols.lookup("__stop_orc_unwind_ip");
    const entries = symbols.lookup("__start_orc_unwind");
    if (ip === undefined || ipEnd === undefined || entries === undefined) {
      return { missing: "symbols of the ORC tables (CONFIG_UNWINDER_ORC=n?)" };
    }
    const count = (ipEnd - ip) / 4;
    if (!(count > 0 && count <= MAX_ORC_ENTRIES))
      return { missing: "ORC tables of a believable size" };
    const size = btf.sizeof("orc_entry");
    const member = (name: string) => btf.member("orc_entry", name);
    const [spOffset, bpOffset, spReg, bpReg, type] = [
      member("sp_offset"),
      member("bp_offset"),
      member("sp_reg"),
      member("bp_reg"),
      member("type"),
    ];
    if (!size || size > 32 || !spOffset || !bpOffset || !spReg || !bpReg || !type) {
      return { missing: "BTF struct orc_entry" };
    }
    const reg = (name: string) => btf.offsetof("pt_regs", name);
    const regs = {
      ip: reg("ip"),
      sp: reg("sp"),
      bp: reg("bp"),
      cs: reg("cs"),
      r10: reg("r10"),
      r13: reg("r13"),
      di: reg("di"),
      dx: reg("dx"),
    };
    if (Object.values(regs).some((offset) => offset === undefined))
      return { missing: "BTF struct pt_regs" };
    const unwinder = new OrcUnwinder(
      vm,
      { ip, entries, count },
      image,
      modules,
      size,
      { spOffset, bpOffset, spReg, bpReg, type },
      member("end"),
      member("signal"),
      regs as OrcUnwinder["regs"],
      graphTracer(symbols, btf),
    );
    const numbering = unwinder.#numbering();
    if (numbering === undefined) return { missing: "a known numbering of the ORC registers" };
    unwinder.#registers = numbering;
    return unwinder;
  }

  /**
   * Which numbering the tables use. Every function begins with the return
   * address on top of the stack (SP + 8, BP unsaved): the number found most
   * often in such entries is that of SP.
   */
  #numbering(): readonly Register[] | undefined {
    const counts = new Uint32Array(16);
    const total = Math.min(this.kernel.count, SAMPLE);
    const step = this.kernel.count / total;
    for (let i = 0; i < total; i++) {
      const at = this.kernel.entries + Math.floor(i * step) * this.size;
      if (this.#field(at, this.fields.spOffset) !== 8 || this.#field(at, this.fields.bpReg) !== 0)
        continue;
      const register = this.#field(at, this.fields.spReg);
      if (register >= 0) counts[register & 15]++;
    }
    const most = counts.indexOf(Math.max(...counts));
    return [CLASSIC, INDIRECT_BIT].find((numbers) => numbers[most] === "sp");
  }

  /** Unsigned value of a field of an entry at `at`; -1 when absent. */
  #field(at: number, field: BtfMember): number {
    if (field.bitSize === 0) return this.vm.read16(at + field.offset);
    // The bit-fields of an entry lie within one 16-bit word from its first byte on.
    const low = this.vm.read8(at + field.offset);
    if (low < 0) return -1;
    const high = field.bitOffset + field.bitSize > 8 ? this.vm.read8(at + field.offset + 1) : 0;
    if (high < 0) return -1;
    return ((low | (high << 8)) >>> field.bitOffset) & ((1 << field.bitSize) - 1);
  }

  #kind(at: number, type: number): FrameKind | undefined {
    if (this.end !== undefined) {
      // Up to 6.3: CALL, REGS, REGS_PARTIAL and a bit for the end.
      if (this.#field(at, this.end) !== 0) return "end";
      return (["call", "regs", "regs-partial"] as const)[type];
    }
    return (["undefined", "end", "call", "regs", "regs-partial"] as const)[type];
  }

  /** Entries of the kernel's own table by address: it never changes, and the same callers come again. */
  readonly #known = new Map<number, OrcEntry>();

  #entryAt(ip: number): OrcEntry | undefined {
    const table = this.#table(ip);
    if (table === undefined) return undefined;
    if (table !== this.kernel) return this.#entry(table, ip);
    let entry = this.#known.get(ip);
    if (entry === undefined) {
      entry = this.#entry(table, ip);
      if (this.#known.size >= MAX_KNOWN) this.#known.clear();
      if (entry !== undefined) this.#known.set(ip, entry);
    }
    return entry;
  }

  #entry(table: OrcTable, ip: number): OrcEntry | undefined {
    // Each ip is stored as the distance from its own place; ascending.
    let low = 0;
    let high = table.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const at = table.ip + middle * 4;
      const raw = this.vm.read32(at);
      if (raw < 0) return undefined;
      if (at + (raw | 0) <= ip) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    const at = table.entries + (low - 1) * this.size;
    const f = this.fields;
    const spOffset = this.#field(at, f.spOffset);
    const bpOffset = this.#field(at, f.bpOffset);
    const spReg = this.#registers[this.#field(at, f.spReg)];
    const bpReg = this.#registers[this.#field(at, f.bpReg)];
    const kind = this.#kind(at, this.#field(at, f.type));
    if (
      spOffset < 0 ||
      bpOffset < 0 ||
      kind === undefined ||
      spReg === undefined ||
      bpReg === undefined
    ) {
      return undefined;
    }
    const regs = kind === "regs" || kind === "regs-partial";
    return {
      spOffset: (spOffset << 16) >> 16,
      bpOffset: (bpOffset << 16) >> 16,
      spReg,
      bpReg,
      kind,
      signal: this.signal === undefined ? regs : this.#field(at, this.signal) === 1,
    };
  }

  /** Modules, read once a trace and only when an address outside of the kernel's image comes up. */
  #loaded: LinuxModule[] | undefined;

  /** The ORC table for an address: the kernel's, or a module's own. */
  #table(ip: number): OrcTable | undefined {
    if (ip >= this.image.start && ip < this.image.end) return this.kernel;
    this.#loaded ??= this.modules?.list().modules ?? [];
    const module = this.#loaded.find((m) => m.ranges.some((r) => ip >= r.start && ip < r.end));
    if (module === undefined) return undefined;
    const offsets = this.modules?.orc;
    if (offsets === undefined) return undefined;
    const count = this.vm.read32(module.address + offsets.count);
    const table = this.vm.readPtr(module.address + offsets.ip);
    const entries = this.vm.readPtr(module.address + offsets.entries);
    if (
      count <= 0 ||
      count > MAX_ORC_ENTRIES ||
      !isKernelPointer(table) ||
      !isKernelPointer(entries)
    )
      return undefined;
    return { ip: table, entries, count };
  }

  /**
   * Return addresses from `state` outwards, at most `max`; ends at the last
   * frame, at user mode, and wherever the stack does not make sense.
   */
  unwind(state: UnwindState, max: number): number[] {
    const trace: number[] = [];
    if (max <= 0) return trace;
    this.walk(state, (address) => trace.push(address) < max);
    return trace;
  }

  /** The same one by one, as long as `visit` says so. */
  walk(state: UnwindState, visit: (address: number) => boolean): void {
    let frames = 0;
    this.#loaded = undefined;
    let { ip, sp, bp } = state;
    // Saved registers: those of the CPU, then of the last pt_regs, then none.
    let registers: ((index: number, offset: number) => number) | undefined = (index) =>
      state.gpr(index);
    let interrupted = true;
    let stackLow = sp;
    if (!isKernelPointer(ip)) return;
    for (;;) {
      const at = interrupted ? ip : ip - 1;
      const entry = this.#entryAt(at) ?? FRAME_POINTER;
      if (entry.kind === "end") break;
      // Code the tables say nothing of: the kernel goes on by frame pointer.
      const orc: OrcEntry = entry.kind === "undefined" ? FRAME_POINTER : entry;

      const base = this.#stackPointer(orc, sp, bp, registers);
      if (base === undefined || !isKernelPointer(base)) break;
      let nextIp: number;
      let nextSp: number;
      let savedBp: number | undefined;
      if (orc.kind === "call") {
        nextIp = this.vm.readPtr(base - 8);
        if (nextIp === this.graph?.handler) nextIp = this.#traced(base - 8, state.task());
        nextSp = base;
        registers = undefined;
      } else {
        // pt_regs, whole or only from ip on.
        const frame = orc.kind === "regs" ? base : base - this.regs.ip;
        const cs = this.vm.read16(frame + this.regs.cs);
        nextIp = this.vm.readPtr(frame + this.regs.ip);
        nextSp = this.vm.readPtr(frame + this.regs.sp);
        if (cs < 0 || (cs & 3) !== 0) break;
        if (orc.kind === "regs") {
          savedBp = this.vm.readPtr(frame + this.regs.bp);
          registers = (_index, offset) => this.vm.readPtr(frame + offset);
        } else {
          registers = undefined;
        }
      }
      if (Number.isNaN(nextIp) || Number.isNaN(nextSp) || !isKernelPointer(nextSp)) break;

      let nextBp = bp;
      if (orc.bpReg === "prev-sp") nextBp = this.vm.readPtr(base + orc.bpOffset);
      else if (orc.bpReg === "bp") nextBp = this.vm.readPtr(bp + orc.bpOffset);
      else if (savedBp !== undefined) nextBp = savedBp;
      if (Number.isNaN(nextBp)) nextBp = 0;

      // On one stack it only goes up; a switch of stacks starts anew, but not back and forth for ever.
      if (nextSp === sp && nextIp === ip) break;
      if (nextSp >= stackLow && nextSp - stackLow > MAX_STACK && frames > 64) break;
      if (nextSp < sp) stackLow = nextSp;
      frames++;
      if (!isKernelPointer(nextIp) || frames > MAX_FRAMES || !visit(nextIp)) break;
      interrupted = orc.kind !== "call";
      ip = nextIp;
      sp = nextSp;
      bp = nextBp;
    }
  }

  readonly #graphStack = new Uint8Array(GRAPH_STACK);
  readonly #graphView = new DataView(this.#graphStack.buffer);

  /** The return address that the function graph tracer took from `slot`; NaN when it is not found. */
  #traced(slot: number, task: number | undefined): number {
    const graph = this.graph;
    if (graph === undefined || task === undefined) return Number.NaN;
    const stack = this.vm.readPtr(task + graph.stack);
    if (!isKernelPointer(stack) || !this.vm.readInto(stack, this.#graphStack)) return Number.NaN;
    const view = this.#graphView;
    const pointer = (at: number) =>
      view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
    // From the oldest on: of entries for one slot the first is in use, and later ones, of functions
    // entered by a jump, have the handler itself as the address replaced.
    const from = Math.max(0, graph.retp - graph.ret);
    const to = GRAPH_STACK - 8 - Math.max(0, graph.ret - graph.retp);
    for (let at = from; at <= to; at += 8) {
      if (pointer(at) !== slot) continue;
      const found = pointer(at - graph.retp + graph.ret);
      if (found !== graph.handler) return found;
    }
    return Number.NaN;
  }

  /** The previous frame's stack pointer; undefined when a register or the stack is not there. */
  #stackPointer(
    orc: OrcEntry,
    sp: number,
    bp: number,
    registers: ((index: number, offset: number) => number) | undefined,
  ): number | undefined {
    switch (orc.spReg) {
      case "sp":
        return sp + orc.spOffset;
      case "bp":
        return bp + orc.spOffset;
      case "sp-indirect":
        // A stack that was switched: the old pointer is on top, then the offset. Older
        // entries (pt_regs found through a pointer) have the offset inside.
        return orc.kind === "call"
          ? this.vm.readPtr(sp) + orc.spOffset
          : this.vm.readPtr(sp + orc.spOffset);
      case "bp-indirect":
        return this.vm.readPtr(bp + orc.spOffset);
      case "r10":
        return registers?.(HVI_R10, this.regs.r10);
      case "r13":
        return registers?.(HVI_R13, this.regs.r13);
      case "di":
        return registers?.(HVI_RDI, this.regs.di);
      case "dx":
        return registers?.(HVI_RDX, this.regs.dx);
      default:
        return undefined;
    }
  }
}
