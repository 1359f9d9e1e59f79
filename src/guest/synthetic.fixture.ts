// SPDX-License-Identifier: MIT
/**
 * Small made-up Linux guests for tests: an encoder for kallsyms tables in each
 * layout, one for BTF, and a guest with page tables around them.
 */
import { GuestRam } from "../bridge/ram.ts";
import { PhysicalMemory } from "../memory/index.ts";
import type { GuestCpu } from "./cpu.ts";
import { BTF_KIND } from "./linux/btf.ts";

/** Bytes written one after the other, with alignment. */
class Writer {
  bytes = new Uint8Array(1 << 16);
  length = 0;
  #room(n: number): void {
    if (this.length + n <= this.bytes.length) return;
    const grown = new Uint8Array((this.length + n) * 2);
    grown.set(this.bytes.subarray(0, this.length));
    this.bytes = grown;
  }
  u8(v: number): void {
    this.#room(1);
    this.bytes[this.length++] = v;
  }
  u16(v: number): void {
    this.u8(v);
    this.u8(v >>> 8);
  }
  u32(v: number): void {
    this.u16(v & 0xffff);
    this.u16(v >>> 16);
  }
  /** A signed address. */
  u64(v: number): void {
    this.u32(v >>> 0);
    this.u32(Math.floor(v / 0x1_0000_0000) >>> 0);
  }
  text(s: string): void {
    for (const c of Buffer.from(s, "latin1")) this.u8(c);
    this.u8(0);
  }
  align(n: number): void {
    while (this.length % n !== 0) this.u8(0);
  }
  done(): Uint8Array {
    return this.bytes.slice(0, this.length);
  }
}

export type SyntheticSymbol = readonly [address: number, type: string, name: string];

export interface KallsymsOptions {
  align: 4 | 8;
  offsets: "before" | "after";
  addressing: "absolute" | "relative" | "relative-percpu" | "self-relative";
  longNames: boolean;
  markerWidth: 4 | 8;
  /** Three-byte table between markers and tokens, after the addresses, or none. */
  seqs: "none" | "middle" | "end";
}

/** The layouts of 4.19, 5.10, 6.2, 6.12 and 7.2. */
export const LAYOUTS: Record<string, KallsymsOptions> = {
  "4.19": {
    align: 8,
    offsets: "before",
    addressing: "absolute",
    longNames: false,
    markerWidth: 8,
    seqs: "none",
  },
  "5.10": {
    align: 8,
    offsets: "before",
    addressing: "relative-percpu",
    longNames: false,
    markerWidth: 4,
    seqs: "none",
  },
  "5.10-up": {
    align: 8,
    offsets: "before",
    addressing: "relative",
    longNames: false,
    markerWidth: 4,
    seqs: "none",
  },
  "6.2": {
    align: 8,
    offsets: "before",
    addressing: "relative-percpu",
    longNames: true,
    markerWidth: 4,
    seqs: "middle",
  },
  "6.12": {
    align: 8,
    offsets: "after",
    addressing: "relative-percpu",
    longNames: true,
    markerWidth: 4,
    seqs: "end",
  },
  "7.2": {
    align: 4,
    offsets: "after",
    addressing: "self-relative",
    longNames: true,
    markerWidth: 4,
    seqs: "end",
  },
};

/** Tokens of more than one letter; every other code stands for itself or is unused. */
const TOKENS: Record<number, string> = { 1: "__", 2: "init", 3: "sys_", 4: "Tfn_", 200: "_long_" };

function tokenOf(code: number): string {
  const token = TOKENS[code];
  if (token !== undefined) return token;
  return /[A-Za-z0-9_.$]/.test(String.fromCharCode(code)) && code < 128
    ? String.fromCharCode(code)
    : "";
}

function compress(text: string): number[] {
  const codes: number[] = [];
  for (let at = 0; at < text.length; ) {
    const token = Object.entries(TOKENS).find(([, t]) => text.startsWith(t, at));
    codes.push(token === undefined ? text.charCodeAt(at) : Number(token[0]));
    at += token === undefined ? 1 : token[1].length;
  }
  return codes;
}

/**
 * The kallsyms tables for `symbols` (in the order given, which the kernel keeps
 * ascending), to be put at the signed address `at`, itself 8-byte aligned.
 */
export function encodeKallsyms(
  symbols: readonly SyntheticSymbol[],
  base: number,
  at: number,
  o: KallsymsOptions,
): Uint8Array {
  const w = new Writer();
  const addresses = () => {
    w.align(o.align);
    for (const [address] of symbols) {
      if (o.addressing === "absolute") w.u64(address);
      else if (o.addressing === "relative") w.u32(address - base);
      else if (o.addressing === "self-relative") w.u32(address - (at + w.length));
      else w.u32(address >= 0 ? address : base - 1 - address);
    }
    w.align(o.align);
    if (o.addressing === "relative" || o.addressing === "relative-percpu") {
      w.align(8);
      w.u64(base);
    }
  };
  const seqs = () => {
    for (let i = 0; i < symbols.length; i++) {
      w.u8(i >>> 16);
      w.u8(i >>> 8);
      w.u8(i);
    }
  };
  if (o.offsets === "before") addresses();
  w.align(o.align);
  w.u32(symbols.length);
  w.align(o.align);
  const names = w.length;
  const markers: number[] = [];
  symbols.forEach(([, type, name], i) => {
    if (i % 256 === 0) markers.push(w.length - names);
    const codes = compress(type + name);
    if (codes.length > 127 && o.longNames) {
      w.u8((codes.length & 0x7f) | 0x80);
      w.u8(codes.length >>> 7);
    } else w.u8(codes.length);
    for (const code of codes) w.u8(code);
  });
  w.align(o.align);
  for (const marker of markers) {
    w.u32(marker);
    if (o.markerWidth === 8) w.u32(0);
  }
  if (o.seqs === "middle") seqs();
  w.align(o.align);
  const tokens = w.length;
  const index: number[] = [];
  for (let code = 0; code < 256; code++) {
    index.push(w.length - tokens);
    w.text(tokenOf(code));
  }
  w.align(o.align);
  for (const offset of index) w.u16(offset);
  if (o.offsets === "after") addresses();
  if (o.seqs === "end") seqs();
  return w.done();
}

export interface SyntheticMember {
  name: string;
  type: number;
  /** Offset in bits. */
  bits: number;
  /** Width of a bit-field. */
  width?: number;
}

/** Builds a BTF blob type by type; each method returns the new type's id. */
export class BtfEncoder {
  readonly #types = new Writer();
  readonly #strings = new Writer();
  readonly #known = new Map<string, number>();
  #next = 1;

  constructor() {
    this.#strings.u8(0);
  }

  #string(s: string): number {
    if (s === "") return 0;
    let at = this.#known.get(s);
    if (at === undefined) {
      at = this.#strings.length;
      this.#strings.text(s);
      this.#known.set(s, at);
    }
    return at;
  }

  #type(name: string, kind: number, vlen: number, sizeOrType: number, flag = 0): number {
    this.#types.u32(this.#string(name));
    this.#types.u32(((flag << 31) | (kind << 24) | vlen) >>> 0);
    this.#types.u32(sizeOrType);
    return this.#next++;
  }

  int(name: string, size: number): number {
    const id = this.#type(name, BTF_KIND.INT, 0, size);
    this.#types.u32(size * 8);
    return id;
  }
  pointer(to: number): number {
    return this.#type("", BTF_KIND.PTR, 0, to);
  }
  typedef(name: string, to: number): number {
    return this.#type(name, BTF_KIND.TYPEDEF, 0, to);
  }
  array(element: number, count: number): number {
    const id = this.#type("", BTF_KIND.ARRAY, 0, 0);
    this.#types.u32(element);
    this.#types.u32(0);
    this.#types.u32(count);
    return id;
  }
  struct(
    name: string,
    size: number,
    members: SyntheticMember[],
    kind: number = BTF_KIND.STRUCT,
  ): number {
    const flag = members.some((m) => m.width !== undefined) ? 1 : 0;
    const id = this.#type(name, kind, members.length, size, flag);
    for (const m of members) {
      this.#types.u32(this.#string(m.name));
      this.#types.u32(m.type);
      this.#types.u32(flag === 1 ? (((m.width ?? 0) << 24) | m.bits) >>> 0 : m.bits);
    }
    return id;
  }
  enumeration(name: string, values: Array<[string, number]>): number {
    const id = this.#type(name, BTF_KIND.ENUM, values.length, 4);
    for (const [text, value] of values) {
      this.#types.u32(this.#string(text));
      this.#types.u32(value >>> 0);
    }
    return id;
  }

  done(): Uint8Array {
    const types = this.#types.done();
    const strings = this.#strings.done();
    const w = new Writer();
    w.u16(0xeb9f);
    w.u8(1);
    w.u8(0);
    w.u32(24);
    w.u32(0);
    w.u32(types.length);
    w.u32(types.length);
    w.u32(strings.length);
    for (const b of types) w.u8(b);
    for (const b of strings) w.u8(b);
    return w.done();
  }
}

/** Offsets of the made-up structures, in bytes. */
export const TASK = {
  state: 0,
  flags: 4,
  tasks: 16,
  pid: 32,
  tgid: 36,
  mm: 40,
  parent: 48,
  comm: 56,
  exitState: 72,
  size: 128,
};
export const MODULE = { state: 0, list: 8, name: 24, mem: 96, kallsyms: 160, size: 192 };

/** Types of the made-up kernel; `without` names structures to leave out. */
export function syntheticBtf(without: string[] = []): Uint8Array {
  const b = new BtfEncoder();
  const u8 = b.int("char", 1);
  const u32 = b.int("unsigned int", 4);
  const u64 = b.int("unsigned long", 8);
  const pointer = b.pointer(0);
  const list = b.struct("list_head", 16, [
    { name: "next", type: pointer, bits: 0 },
    { name: "prev", type: pointer, bits: 64 },
  ]);
  const comm = b.array(u8, 16);
  const ids = b.struct("", 8, [
    { name: "pid", type: u32, bits: 0 },
    { name: "tgid", type: u32, bits: 32 },
  ]);
  if (!without.includes("task_struct")) {
    b.struct("task_struct", TASK.size, [
      { name: "__state", type: u32, bits: TASK.state * 8 },
      { name: "flags", type: u32, bits: TASK.flags * 8 },
      { name: "in_execve", type: u32, bits: 66, width: 1 },
      { name: "tasks", type: list, bits: TASK.tasks * 8 },
      { name: "", type: ids, bits: TASK.pid * 8 },
      { name: "mm", type: pointer, bits: TASK.mm * 8 },
      { name: "real_parent", type: pointer, bits: TASK.parent * 8 },
      { name: "comm", type: comm, bits: TASK.comm * 8 },
      { name: "exit_state", type: u32, bits: TASK.exitState * 8 },
    ]);
  }
  b.struct("mm_struct", 64, [{ name: "pgd", type: pointer, bits: 64 }]);
  const memory = b.struct("module_memory", 16, [
    { name: "base", type: pointer, bits: 0 },
    { name: "size", type: u32, bits: 64 },
  ]);
  const mem = b.array(memory, 3);
  const name = b.array(u8, 56);
  const state = b.enumeration("module_state", [
    ["MODULE_STATE_LIVE", 0],
    ["MODULE_STATE_COMING", 1],
  ]);
  b.enumeration("mod_mem_type", [
    ["MOD_TEXT", 0],
    ["MOD_DATA", 1],
    ["MOD_INIT_TEXT", 2],
  ]);
  b.enumeration("system_states", [
    ["SYSTEM_BOOTING", 0],
    ["SYSTEM_RUNNING", 3],
  ]);
  if (!without.includes("module")) {
    b.struct("module", MODULE.size, [
      { name: "state", type: state, bits: MODULE.state * 8 },
      { name: "list", type: list, bits: MODULE.list * 8 },
      { name: "name", type: name, bits: MODULE.name * 8 },
      { name: "mem", type: mem, bits: MODULE.mem * 8 },
      { name: "kallsyms", type: pointer, bits: MODULE.kallsyms * 8 },
    ]);
  }
  b.struct("mod_kallsyms", 32, [
    { name: "symtab", type: pointer, bits: 0 },
    { name: "num_symtab", type: u32, bits: 64 },
    { name: "strtab", type: pointer, bits: 128 },
    { name: "typetab", type: b.typedef("typetab_t", pointer), bits: 192 },
  ]);
  b.struct("page", 8, [{ name: "flags", type: u64, bits: 0 }]);
  return b.done();
}

const RAM = 16 * 1024 * 1024;
const IMAGE_GPA = 0x40_0000;
const IMAGE_SIZE = 0x40_0000;
const PML4 = 0x1000;
const PDPT_HIGH = 0x2000;
const PD_IMAGE = 0x3000;
const PDPT_DIRECT = 0x4000;
const PD_DIRECT = 0x5000;
/** Start of the direct mapping, as without KASLR. */
export const DIRECT = -0x7780_0000_0000;
/** GPA where tests put tasks and modules: 4 MiB of direct mapping. */
export const HEAP = 0xc0_0000;

export interface SyntheticGuest {
  memory: PhysicalMemory;
  ram: GuestRam;
  cpu: GuestCpu & { cr0: number; cr3: number; cr4: number; efer: number; lstar: number };
  /** Signed GVA of the image. */
  base: number;
  /** GPA of an address of the image or of the direct mapping. */
  gpa(gva: number): number;
  write32(gva: number, value: number): void;
  writePtr(gva: number, value: number): void;
  writeText(gva: number, text: string): void;
}

export interface SyntheticOptions {
  layout?: KallsymsOptions;
  slide?: number;
  banner?: string;
  kallsyms?: boolean;
  btf?: Uint8Array | null;
  /** Where the banner's symbol points, relative to the banner. */
  bannerSkew?: number;
}

/** Places in the image, as offsets. */
export const AT = {
  banner: 0x10_0000,
  kallsyms: 0x11_0000,
  btf: 0x18_0000,
  initTask: 0x1c_0000,
  modules: 0x1c_1000,
  state: 0x1c_1010,
};

/** A guest with one address space, an image, symbols, BTF, an idle task and no modules. */
export function syntheticGuest(o: SyntheticOptions = {}): SyntheticGuest {
  const ram = GuestRam.allocate(RAM);
  const memory = new PhysicalMemory(ram);
  const slide = o.slide ?? 0x240_0000;
  const base = -0x7f00_0000 + slide;
  const gpa = (gva: number) => (gva >= base ? gva - base + IMAGE_GPA : gva - DIRECT);
  const entry = (table: number, index: number, value: number) =>
    memory.writeU64(table + index * 8, value, 0);
  entry(PML4, 511, PDPT_HIGH | 0x23);
  entry(PDPT_HIGH, 510, PD_IMAGE | 0x23);
  for (let i = 0; i < IMAGE_SIZE; i += 0x20_0000) {
    entry(PD_IMAGE, (base + i + 0x8000_0000) / 0x20_0000, (IMAGE_GPA + i) | 0xe3);
  }
  entry(PML4, 273, PDPT_DIRECT | 0x23);
  entry(PDPT_DIRECT, 0, PD_DIRECT | 0x23);
  for (let i = 0; i < RAM; i += 0x20_0000) entry(PD_DIRECT, i / 0x20_0000, i | 0xe3);

  const write = (gva: number, bytes: Uint8Array) => memory.write(gpa(gva), bytes);
  const banner = o.banner ?? "Linux version 6.9.1-test (somebody@somewhere) (gcc 12) #1 SMP\n";
  write(base + AT.banner, Buffer.from(`${banner}\0`, "latin1"));
  const btf = o.btf === undefined ? syntheticBtf() : o.btf;
  if (btf !== null) write(base + AT.btf, btf);
  if (o.kallsyms !== false) {
    const at = base + AT.kallsyms;
    write(
      at,
      encodeKallsyms(
        syntheticSymbols(base, btf !== null, o.bannerSkew ?? 0),
        base,
        at,
        o.layout ?? LAYOUTS["6.12"],
      ),
    );
  }

  const guest: SyntheticGuest = {
    memory,
    ram,
    base,
    gpa,
    cpu: {
      rip: base + 0x1010,
      cpl: 0,
      cr0: 0x8005_0033,
      cr3: PML4,
      cr4: 0x20,
      efer: 0xd01,
      lstar: base + 0x1000,
      kernelGsBase: 0,
      idtBase: 0,
      gpr: () => 0,
      segBase: () => DIRECT + HEAP,
    },
    write32: (gva, value) => void memory.write32(gpa(gva), value),
    writePtr: (gva, value) =>
      void memory.writeU64(gpa(gva), value >>> 0, Math.floor(value / 0x1_0000_0000) >>> 0),
    writeText: (gva, text) => void memory.write(gpa(gva), Buffer.from(`${text}\0`, "latin1")),
  };
  const initTask = base + AT.initTask;
  guest.writePtr(initTask + TASK.tasks, initTask + TASK.tasks);
  guest.writePtr(initTask + TASK.parent, initTask);
  guest.writeText(initTask + TASK.comm, "swapper");
  guest.writePtr(base + AT.modules, base + AT.modules);
  return guest;
}

/** Some 600 symbols: the ones that introspection asks for, and functions every 256 bytes. */
export function syntheticSymbols(base: number, btf: boolean, bannerSkew = 0): SyntheticSymbol[] {
  const named: SyntheticSymbol[] = [
    [0, "A", "fixed_percpu_data"],
    [0x20, "A", "current_task"],
    [base, "T", "_text"],
    [base, "T", "startup_64"],
    [base, "T", "_stext"],
    [base + 0x9_0000, "T", "_etext"],
    [base + 0x10_0000, "R", "__start_rodata"],
    [base + AT.banner + bannerSkew, "R", "linux_banner"],
    [base + 0x10_8000, "R", "sys_call_table"],
    [base + 0x10_8e00, "R", `a_${"_long_".repeat(40)}name`],
    ...(btf ? ([[base + AT.btf, "r", "__start_BTF"]] as SyntheticSymbol[]) : []),
    [base + 0x1b_0000, "R", "__end_rodata"],
    [base + AT.initTask, "D", "init_task"],
    [base + AT.modules, "d", "modules"],
    [base + AT.state, "D", "system_state"],
    [base + 0x20_0000, "D", "idt_table"],
    [base + 0x20_1000, "B", "_end"],
  ];
  for (let i = 0; i < 600; i++)
    named.push([base + 0x1000 + i * 0x100, i % 2 ? "T" : "t", `fn_${i % 500}`]);
  const key = (a: number) => (a < 0 ? a + 2 ** 64 : a);
  // Stable: aliases keep their order.
  return named.sort((a, b) => key(a[0]) - key(b[0]) || a[0] - b[0]);
}
