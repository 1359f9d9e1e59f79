// SPDX-License-Identifier: MIT
/** A Linux guest that was identified: its symbols, types, image, tasks and modules. */
import { HVI_RBP, HVI_RSP } from "../../bridge/abi.ts";
import type { PhysicalMemory, VirtualMemory } from "../../memory/index.ts";
import { type GuestCpu, kernelGs } from "../cpu.ts";
import type { Btf, BtfFailure } from "./btf.ts";
import type { KernelSymbol, SymbolTable } from "./kallsyms.ts";
import { type GvaRange, type LinuxModule, type ModuleList, ModuleReader } from "./modules.ts";
import { type Task, type TaskList, TaskReader } from "./tasks.ts";
import { OrcUnwinder, type UnwindState } from "./unwind.ts";
import { workFunction } from "./workqueue.ts";

/** Start of the kernel's text as linked (CONFIG_PHYSICAL_START 16 MiB, the default). */
const LINKED_TEXT = -0x7f00_0000;
/** __START_KERNEL_map */
const START_KERNEL_MAP = -0x8000_0000;

/** Parts of the kernel's image and the symbols that bound them (include/asm-generic/sections.h). */
const RANGES = {
  text: [["_text", "_stext"], ["_etext"]],
  rodata: [["__start_rodata"], ["__end_rodata"]],
  data: [["_sdata"], ["_edata"]],
  bss: [["__bss_start"], ["__bss_stop"]],
  init: [["__init_begin"], ["__init_end"]],
  "init-text": [["_sinittext"], ["_einittext"]],
  "exception-table": [["__start___ex_table"], ["__stop___ex_table"]],
  image: [["_text", "_stext"], ["_end"]],
} as const;

/** A named part of the kernel's image; tables are bounded by the next symbol. */
export type KernelRangeKind = keyof typeof RANGES | "syscall-table" | "idt";

export interface LinuxGuestParts {
  readonly memory: PhysicalMemory;
  /** The kernel's address space. */
  readonly vm: VirtualMemory;
  readonly version: string;
  readonly banner: string;
  readonly text: GvaRange;
  readonly symbols: SymbolTable;
  readonly btf: Btf | BtfFailure;
}

export class LinuxGuest {
  readonly memory: PhysicalMemory;
  /** The kernel's address space, under its own page tables. */
  readonly vm: VirtualMemory;
  /** Release, as uname -r says it. */
  readonly version: string;
  /** The whole line of /proc/version. */
  readonly banner: string;
  readonly symbols: SymbolTable;
  /** Undefined when the kernel has none that can be read; see `missing`. */
  readonly btf: Btf | undefined;
  /** Where text stands relative to where it was linked, in bytes. */
  readonly slide: number;
  /** GPA of the first byte of text; -1 when not mapped. */
  readonly physicalText: number;
  /** What this kernel lacks, by feature; those features are off. */
  readonly missing: ReadonlyMap<"btf" | "tasks" | "modules" | "unwind", string>;

  readonly #text: GvaRange;
  readonly #image: GvaRange;
  readonly #initText: GvaRange | undefined;
  readonly #tasks: TaskReader | undefined;
  readonly #modules: ModuleReader | undefined;
  readonly #unwinder: OrcUnwinder | undefined;

  constructor(parts: LinuxGuestParts) {
    this.memory = parts.memory;
    this.vm = parts.vm;
    this.version = parts.version;
    this.banner = parts.banner;
    this.symbols = parts.symbols;
    this.#text = parts.text;
    this.#image = this.kernelRange("image") ?? parts.text;
    this.#initText = this.kernelRange("init-text");
    this.slide = parts.text.start - LINKED_TEXT;
    this.physicalText = parts.vm.gpaOf(parts.text.start);

    const missing = new Map<"btf" | "tasks" | "modules" | "unwind", string>();
    this.missing = missing;
    if (typeof parts.btf === "string") {
      const why = parts.btf === "no-btf" ? "the kernel has no BTF" : "the kernel's BTF is damaged";
      for (const feature of ["btf", "tasks", "modules", "unwind"] as const)
        missing.set(feature, why);
      return;
    }
    this.btf = parts.btf;
    const tasks = TaskReader.create(this.vm, this.symbols, this.btf);
    if (tasks instanceof TaskReader) this.#tasks = tasks;
    else missing.set("tasks", tasks.missing);
    const modules = ModuleReader.create(this.vm, this.symbols, this.btf);
    if (modules instanceof ModuleReader) this.#modules = modules;
    else missing.set("modules", modules.missing);
    const unwinder = OrcUnwinder.create(
      this.vm,
      this.symbols,
      this.btf,
      this.#modules,
      this.#image,
    );
    if (unwinder instanceof OrcUnwinder) this.#unwinder = unwinder;
    else missing.set("unwind", unwinder.missing);
  }

  /** Root of the kernel's page tables (a GPA). */
  get root(): number {
    return this.vm.root;
  }

  /** The kernel's phys_base: what turns an address of the image mapping into a GPA, less __START_KERNEL_map. */
  get physBase(): number {
    return this.physicalText - (this.#text.start - START_KERNEL_MAP);
  }

  /** A part of the image, `end` excluded; undefined when this kernel has no such symbols. */
  kernelRange(kind: KernelRangeKind): GvaRange | undefined {
    if (kind === "syscall-table") return this.symbolRange("sys_call_table");
    if (kind === "idt") return this.symbolRange("idt_table");
    const [starts, ends] = RANGES[kind];
    const start = this.#first(starts);
    const end = this.#first(ends);
    return start === undefined || end === undefined || end <= start ? undefined : { start, end };
  }

  #first(names: readonly string[]): number | undefined {
    for (const name of names) {
      const found = this.symbols.lookup(name);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /** From a symbol to the next one: a function or table. */
  symbolRange(name: string): GvaRange | undefined {
    const symbol = this.symbols.find(name);
    return symbol === undefined || symbol.size === 0
      ? undefined
      : { start: symbol.address, end: symbol.address + symbol.size };
  }

  /** True in the kernel's own code, init code included while it is there. */
  inKernelText(gva: number): boolean {
    if (gva >= this.#text.start && gva < this.#text.end) return true;
    const init = this.#initText;
    return init !== undefined && gva >= init.start && gva < init.end && !this.initFreed;
  }

  /** True once the kernel has given its init sections back (system_state is SYSTEM_RUNNING or later). */
  get initFreed(): boolean {
    const at = this.symbols.lookup("system_state");
    const running = this.btf?.enumerator("SYSTEM_RUNNING");
    if (at === undefined || running === undefined) return false;
    const state = this.vm.read32(at);
    return state >= running;
  }

  #kernelSymbol(gva: number): KernelSymbol | undefined {
    return gva >= this.#image.start && gva < this.#image.end ? this.symbols.at(gva) : undefined;
  }

  /** Name of the kernel's or a module's symbol at an address, without offset. */
  symbolName(gva: number): string | undefined {
    const symbol = this.#kernelSymbol(gva);
    if (symbol !== undefined) return symbol.name;
    const module = this.#modules?.at(gva);
    return module === undefined ? undefined : this.#modules?.symbolAt(module, gva)?.name;
  }

  /** "name+0x12" for the kernel, "name+0x12 [module]" for a module; undefined for anything else. */
  symbolize(gva: number): string | undefined {
    const symbol = this.#kernelSymbol(gva);
    if (symbol !== undefined) return `${symbol.name}+0x${(gva - symbol.address).toString(16)}`;
    const module = this.#modules?.at(gva);
    if (module === undefined) return undefined;
    const own = this.#modules?.symbolAt(module, gva);
    if (own === undefined) return `0x${(gva - module.base).toString(16)} [${module.name}]`;
    return `${own.name}+0x${(gva - own.address).toString(16)} [${module.name}]`;
  }

  /**
   * Address of a name: of the kernel, or with "module:name" of a module.
   * Undefined when there is none.
   */
  resolve(name: string): number | undefined {
    const colon = name.indexOf(":");
    if (colon < 0) return this.symbols.lookup(name);
    const module = this.modules().modules.find((m) => m.name === name.slice(0, colon));
    if (module === undefined || this.#modules === undefined) return undefined;
    return this.#modules.symbols(module).find((s) => s.name === name.slice(colon + 1))?.address;
  }

  /** Name of the module whose memory an address lies in. */
  moduleAt(gva: number): string | undefined {
    // The common case, without walking the list.
    if (gva >= this.#image.start && gva < this.#image.end) return undefined;
    return this.#modules?.at(gva)?.name;
  }

  /** Loaded modules, the last loaded first; a problem names why the list is not complete. */
  modules(): ModuleList {
    return this.#modules?.list() ?? { modules: [], problem: this.missing.get("modules") };
  }

  /** Symbols of a module's own table. */
  moduleSymbols(module: LinuxModule): ReturnType<ModuleReader["symbols"]> {
    return this.#modules?.symbols(module) ?? [];
  }

  /** Processes; a problem names why the list is not complete. */
  tasks(): TaskList {
    return this.#tasks?.list() ?? { tasks: [], problem: this.missing.get("tasks") };
  }

  /** The task that runs on a CPU; undefined when that cannot be told. */
  currentTask(cpu: GuestCpu): Task | undefined {
    const gs = kernelGs(cpu);
    return gs === undefined ? undefined : this.#tasks?.current(gs);
  }

  /** The function of the work item that the task of a CPU runs; undefined when it runs none. */
  currentWork(cpu: GuestCpu): number | undefined {
    const task = this.currentTask(cpu);
    if (task === undefined || this.btf === undefined) return undefined;
    return workFunction(this.vm, this.btf, task.address);
  }

  /**
   * Return addresses of a task that does not run, from where it was switched
   * away; empty for one that runs (its registers are in a CPU) or when the
   * kernel has no ORC tables.
   */
  sleepingStack(task: Task, max: number): number[] {
    const frame = (field: string) => this.btf?.offsetof("inactive_task_frame", field);
    const [saved, ret, bp] = [
      this.btf?.offsetof("task_struct", "thread.sp"),
      frame("ret_addr"),
      frame("bp"),
    ];
    if (saved === undefined || ret === undefined || bp === undefined) return [];
    const sp = this.vm.readPtr(task.address + saved);
    const ip = this.vm.readPtr(sp + ret);
    // What a fork leaves is no return address yet, but where the child begins.
    if (this.#unwinder === undefined || !this.inKernelText(ip)) return [];
    const state: UnwindState = {
      ip,
      sp: sp + ret + 8,
      bp: this.vm.readPtr(sp + bp),
      task: () => task.address,
      gpr: () => Number.NaN,
    };
    return [ip, ...this.#unwinder.unwind(state, max - 1)];
  }

  /**
   * Return addresses of the kernel code that a CPU runs, innermost first, RIP
   * not among them; empty in user mode, or when the kernel has no ORC tables.
   */
  unwind(cpu: GuestCpu, max: number): number[] {
    if (cpu.cpl === 3 || this.#unwinder === undefined) return [];
    return this.#unwinder.unwind(this.#unwindState(cpu), max);
  }

  /** The same one by one, as long as `visit` says so. */
  walkStack(cpu: GuestCpu, visit: (address: number) => boolean): void {
    if (cpu.cpl !== 3) this.#unwinder?.walk(this.#unwindState(cpu), visit);
  }

  #unwindState(cpu: GuestCpu): UnwindState {
    return {
      ip: cpu.rip,
      sp: cpu.gpr(HVI_RSP),
      bp: cpu.gpr(HVI_RBP),
      task: () => {
        const gs = kernelGs(cpu);
        return gs === undefined ? undefined : this.#tasks?.currentAddress(gs);
      },
      gpr: (i) => cpu.gpr(i),
    };
  }
}
