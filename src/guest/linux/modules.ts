// SPDX-License-Identifier: MIT
/**
 * Loaded modules from the kernel's list (include/linux/module.h), with the
 * symbols that each keeps for kallsyms. Two generations of layout: core_layout
 * and init_layout, or (6.4 and later) mem[] by enum mod_mem_type.
 */
import { gvaFromHalves } from "../../memory/address.ts";
import { cString, isKernelPointer, pointerProblem, type VirtualReader } from "../reader.ts";
import type { Btf } from "./btf.ts";
import type { SymbolTable } from "./kallsyms.ts";

const MAX_MODULES = 16_384;
const MAX_MODULE_SYMBOLS = 200_000;
/** A module's memory; more is not believed. */
const MAX_MODULE_BYTES = 256 * 1024 * 1024;
const MAX_SYMBOL_NAME = 512;
/** sizeof(Elf64_Sym) */
const ELF_SYM = 24;

/** A stretch of virtual addresses, `end` excluded. */
export interface GvaRange {
  readonly start: number;
  readonly end: number;
}

export interface ModuleRange extends GvaRange {
  readonly kind: "text" | "data";
  /** Freed once the module runs. */
  readonly init: boolean;
}

export interface LinuxModule {
  /** GVA of struct module. */
  readonly address: number;
  readonly name: string;
  /** Start of its code, as in /proc/modules. */
  readonly base: number;
  /** Bytes in all its ranges. */
  readonly size: number;
  readonly state: "live" | "coming" | "going" | "unformed" | "unknown";
  readonly ranges: ModuleRange[];
}

export interface ModuleList {
  readonly modules: LinuxModule[];
  /** Why the list is not complete; undefined when it closed as it should. */
  readonly problem: string | undefined;
}

export interface ModuleSymbol {
  readonly name: string;
  readonly address: number;
  /** Bytes up to the next symbol of the module, or the end of its range. */
  readonly size: number;
  readonly type: string;
}

interface RangeOffsets {
  base: number;
  size: number;
  /** Where the size of the text part at the start is kept; undefined: all is of one kind. */
  textSize: number | undefined;
  text: boolean;
  init: boolean;
}

const STATES: Record<string, LinuxModule["state"]> = {
  MODULE_STATE_LIVE: "live",
  MODULE_STATE_COMING: "coming",
  MODULE_STATE_GOING: "going",
  MODULE_STATE_UNFORMED: "unformed",
};

/** Where a module keeps its ORC unwind tables; undefined when the kernel has none. */
export interface ModuleOrcOffsets {
  readonly count: number;
  readonly ip: number;
  readonly entries: number;
}

/** Reads the modules of one kernel; made by {@link ModuleReader.create}. */
export class ModuleReader {
  private constructor(
    private readonly vm: VirtualReader,
    private readonly head: number,
    private readonly size: number,
    private readonly offsets: { list: number; name: number; nameBytes: number; state: number },
    private readonly rangeOffsets: RangeOffsets[],
    private readonly states: Map<number, LinuxModule["state"]>,
    private readonly kallsyms:
      | {
          pointer: number;
          symtab: number;
          count: number;
          strtab: number;
          typetab: number | undefined;
        }
      | undefined,
    readonly orc: ModuleOrcOffsets | undefined,
  ) {}

  /** The reader, or the name of what this kernel lacks for it. */
  static create(
    vm: VirtualReader,
    symbols: SymbolTable,
    btf: Btf,
  ): ModuleReader | { missing: string } {
    const head = symbols.lookup("modules");
    if (head === undefined) return { missing: "symbol modules" };
    const size = btf.sizeof("module");
    const list = btf.offsetof("module", "list");
    const name = btf.member("module", "name");
    const state = btf.offsetof("module", "state");
    if (size === undefined || size > 65_536) return { missing: "BTF struct module" };
    if (list === undefined || name === undefined || state === undefined)
      return { missing: "BTF members of module" };

    const ranges: RangeOffsets[] = [];
    const memory = btf.member("module", "mem");
    if (memory !== undefined) {
      const kinds = btf.enumeration("mod_mem_type");
      const count = Math.min(btf.arrayLength(memory.type) ?? 0, 32);
      for (let i = 0; i < count; i++) {
        const base = btf.offsetof("module", `mem[${i}].base`);
        const bytes = btf.offsetof("module", `mem[${i}].size`);
        const kind = kinds.find(([, value]) => value === i)?.[0] ?? "";
        if (base === undefined || bytes === undefined)
          return { missing: "BTF members of module_memory" };
        ranges.push({
          base,
          size: bytes,
          textSize: undefined,
          text: kind.endsWith("_TEXT"),
          init: kind.startsWith("MOD_INIT"),
        });
      }
    } else {
      for (const part of ["core", "init"]) {
        const base = btf.offsetof("module", `${part}_layout.base`);
        const bytes = btf.offsetof("module", `${part}_layout.size`);
        const textSize = btf.offsetof("module", `${part}_layout.text_size`);
        if (base === undefined || bytes === undefined || textSize === undefined) {
          return { missing: "BTF member module.mem or module.core_layout" };
        }
        ranges.push({ base, size: bytes, textSize, text: true, init: part === "init" });
      }
    }

    const states = new Map<number, LinuxModule["state"]>();
    for (const [text, value] of btf.enumeration("module_state"))
      states.set(value, STATES[text] ?? "unknown");

    const pointer = btf.offsetof("module", "kallsyms");
    const symtab = btf.offsetof("mod_kallsyms", "symtab");
    const count = btf.offsetof("mod_kallsyms", "num_symtab");
    const strtab = btf.offsetof("mod_kallsyms", "strtab");
    const kallsyms =
      pointer === undefined || symtab === undefined || count === undefined || strtab === undefined
        ? undefined
        : { pointer, symtab, count, strtab, typetab: btf.offsetof("mod_kallsyms", "typetab") };

    const orcCount = btf.offsetof("module", "arch.num_orcs");
    const orcIp = btf.offsetof("module", "arch.orc_unwind_ip");
    const orcEntries = btf.offsetof("module", "arch.orc_unwind");
    const orc =
      orcCount === undefined || orcIp === undefined || orcEntries === undefined
        ? undefined
        : { count: orcCount, ip: orcIp, entries: orcEntries };
    const nameBytes = Math.min(name.size, 256);
    return new ModuleReader(
      vm,
      head,
      size,
      { list, name: name.offset, nameBytes, state },
      ranges,
      states,
      kallsyms,
      orc,
    );
  }

  #read(address: number, bytes: Uint8Array, view: DataView): LinuxModule | undefined {
    if (!this.vm.readInto(address, bytes)) return undefined;
    const pointer = (offset: number) =>
      gvaFromHalves(view.getUint32(offset, true), view.getUint32(offset + 4, true));
    const ranges: ModuleRange[] = [];
    let size = 0;
    for (const r of this.rangeOffsets) {
      const start = pointer(r.base);
      const length = view.getUint32(r.size, true);
      if (length === 0 || length > MAX_MODULE_BYTES || !isKernelPointer(start)) continue;
      size += length;
      if (r.textSize === undefined) {
        ranges.push({ start, end: start + length, kind: r.text ? "text" : "data", init: r.init });
        continue;
      }
      const text = Math.min(view.getUint32(r.textSize, true), length);
      if (text > 0) ranges.push({ start, end: start + text, kind: "text", init: r.init });
      if (text < length)
        ranges.push({ start: start + text, end: start + length, kind: "data", init: r.init });
    }
    return {
      address,
      name: cString(bytes, this.offsets.name, this.offsets.nameBytes),
      base: ranges.find((r) => r.kind === "text" && !r.init)?.start ?? ranges[0]?.start ?? 0,
      size,
      state: this.states.get(view.getUint32(this.offsets.state, true)) ?? "unknown",
      ranges,
    };
  }

  /** All modules on the kernel's list, last loaded first. */
  list(): ModuleList {
    const modules: LinuxModule[] = [];
    const seen = new Set<number>();
    // Room for a field that hostile BTF puts at the very end.
    const room = new Uint8Array(this.size + 16);
    const bytes = room.subarray(0, this.size);
    const view = new DataView(room.buffer);
    let node = this.vm.readPtr(this.head);
    // Before modules are set up the list head is still empty.
    if (node === 0) return { modules, problem: undefined };
    while (node !== this.head) {
      if (!isKernelPointer(node))
        return { modules, problem: `the module list ${pointerProblem(node)}` };
      if (seen.has(node)) return { modules, problem: "the module list is circular" };
      if (modules.length >= MAX_MODULES)
        return { modules, problem: "the module list does not end" };
      seen.add(node);
      const module = this.#read(node - this.offsets.list, bytes, view);
      if (module === undefined)
        return { modules, problem: "the module list leads to memory that is not there" };
      modules.push(module);
      node = this.vm.readPtr(node);
    }
    return { modules, problem: undefined };
  }

  /** The module whose memory has `address`. */
  at(address: number): LinuxModule | undefined {
    return this.list().modules.find((m) =>
      m.ranges.some((r) => address >= r.start && address < r.end),
    );
  }

  /** The module's symbol table as (symtab, strtab, typetab, count); undefined when it has none that can be read. */
  #table(
    module: LinuxModule,
  ):
    | { entries: DataView; count: number; strtab: number; types: Uint8Array | undefined }
    | undefined {
    const o = this.kallsyms;
    if (o === undefined) return undefined;
    const table = this.vm.readPtr(module.address + o.pointer);
    if (!isKernelPointer(table)) return undefined;
    const symtab = this.vm.readPtr(table + o.symtab);
    const strtab = this.vm.readPtr(table + o.strtab);
    const count = this.vm.read32(table + o.count);
    if (
      !isKernelPointer(symtab) ||
      !isKernelPointer(strtab) ||
      count <= 0 ||
      count > MAX_MODULE_SYMBOLS
    )
      return undefined;
    const bytes = new Uint8Array(count * ELF_SYM);
    if (!this.vm.readInto(symtab, bytes)) return undefined;
    const typetab = o.typetab === undefined ? Number.NaN : this.vm.readPtr(table + o.typetab);
    let types: Uint8Array | undefined = new Uint8Array(count);
    if (!isKernelPointer(typetab) || !this.vm.readInto(typetab, types)) types = undefined;
    return { entries: new DataView(bytes.buffer), count, strtab, types };
  }

  #string(address: number): string {
    const bytes = new Uint8Array(64);
    let text = "";
    for (let at = address; text.length < MAX_SYMBOL_NAME; ) {
      // Not beyond a page: the next one may be absent.
      const room = Math.min(64, 4096 - (at & 4095));
      const piece = bytes.subarray(0, room);
      if (!this.vm.readInto(at, piece)) return text;
      const found = cString(piece);
      text += found;
      if (found.length < room) return text;
      at += room;
    }
    return text.slice(0, MAX_SYMBOL_NAME);
  }

  /** Every named symbol of a module, unsorted. */
  symbols(module: LinuxModule): ModuleSymbol[] {
    const table = this.#table(module);
    if (table === undefined) return [];
    const all: ModuleSymbol[] = [];
    for (let i = 1; i < table.count; i++) {
      const symbol = this.#symbol(table, i);
      if (symbol !== undefined && symbol.name !== "") all.push(symbol);
    }
    return all;
  }

  #symbol(
    table: { entries: DataView; strtab: number; types: Uint8Array | undefined },
    i: number,
  ): ModuleSymbol | undefined {
    const { entries } = table;
    const at = i * ELF_SYM;
    // SHN_UNDEF: belongs to somebody else.
    if (entries.getUint16(at + 6, true) === 0) return undefined;
    return {
      name: this.#string(table.strtab + entries.getUint32(at, true)),
      address: gvaFromHalves(entries.getUint32(at + 8, true), entries.getUint32(at + 12, true)),
      size: entries.getUint32(at + 16, true),
      type: table.types === undefined ? "?" : String.fromCharCode(table.types[i]),
    };
  }

  /** The module's symbol that `address` lies in: the nearest at or below within the same range. */
  symbolAt(module: LinuxModule, address: number): ModuleSymbol | undefined {
    const range = module.ranges.find((r) => address >= r.start && address < r.end);
    const table = this.#table(module);
    if (range === undefined || table === undefined) return undefined;
    let best = -1;
    let bestAt = Number.NEGATIVE_INFINITY;
    let next = range.end;
    let bestName = "";
    for (let i = 1; i < table.count; i++) {
      const value = gvaFromHalves(
        table.entries.getUint32(i * ELF_SYM + 8, true),
        table.entries.getUint32(i * ELF_SYM + 12, true),
      );
      if (table.entries.getUint16(i * ELF_SYM + 6, true) === 0) continue;
      if (value > address) {
        if (value < next) next = value;
        continue;
      }
      if (value < range.start || value <= bestAt) continue;
      const name = this.#string(table.strtab + table.entries.getUint32(i * ELF_SYM, true));
      // Section symbols and the compiler's own labels say nothing.
      if (name === "" || name.startsWith(".L") || name.startsWith("$")) continue;
      best = i;
      bestAt = value;
      bestName = name;
    }
    if (best < 0) return undefined;
    const type = table.types === undefined ? "?" : String.fromCharCode(table.types[best]);
    return { name: bestName, address: bestAt, size: next - bestAt, type };
  }
}
