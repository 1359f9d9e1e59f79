// SPDX-License-Identifier: MIT
/** What `hvi inspect` can show. Each view gives a value for --json and lines for people. */
import { HVI_CS, HVI_DS, HVI_ES, HVI_FS, HVI_GS, HVI_SS, type Vcpu } from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import type { KernelSymbol } from "../../guest/linux/kallsyms.ts";
import { hex, hex64, levelNames } from "../../memory/index.ts";
import { disassemble, MAX_INSTRUCTION } from "../../x86/decode.ts";
import { GPR_NAMES } from "../../x86/registers.ts";
import { codeMode, cpuMode } from "../../x86/segments.ts";
import type { Subject } from "./subject.ts";

export interface View {
  readonly json: unknown;
  readonly lines: string[];
}

export interface ViewOptions {
  /** Addresses are physical. */
  readonly physical: boolean;
}

export interface Verb {
  readonly usage: string;
  readonly about: string;
  /** Number of arguments: least and most. */
  readonly args: readonly [number, number];
  show(subject: Subject, args: string[], options: ViewOptions): View;
}

const MAX_READ = 1 << 20;
const MAX_INSTRUCTIONS = 10_000;

/** Columns padded to their widest cell; numbers to the right. */
function table(head: string[], rows: string[][]): string[] {
  const all = [head, ...rows];
  const widths = head.map((_, i) => Math.max(...all.map((r) => r[i].length)));
  const right = head.map((_, i) => rows.length > 0 && rows.every((r) => /^\d+$/.test(r[i])));
  return all.map((row) =>
    row
      .map((cell, i) => (right[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join("  ")
      .trimEnd(),
  );
}

/** A count in decimal or 0x hex within bounds. @throws InputError */
function count(text: string | undefined, fallback: number, max: number): number {
  if (text === undefined) return fallback;
  const value = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : Number.NaN;
  if (!(value >= 1 && value <= max))
    throw new InputError(`${text}: not a number from 1 to ${max}`, "give a count");
  return value;
}

function processes(subject: Subject): View {
  const guest = subject.needLinux();
  const { tasks, problem } = guest.tasks();
  const running = new Set(subject.cpus.map((cpu) => guest.currentTask(cpu)?.address));
  const json = tasks
    .map((t) => ({ ...t, root: t.pgd === 0 ? -1 : guest.vm.gpaOf(t.pgd) }))
    .map((t) => ({
      pid: t.tgid,
      parent: t.parent?.pid ?? null,
      state: t.state,
      kernelThread: t.kernelThread,
      running: running.has(t.address),
      comm: t.comm,
      task: hex(t.address),
      pageTables: t.root < 0 ? null : hex(t.root),
    }));
  const rows = json.map((t) => [
    String(t.pid),
    t.parent === null ? "-" : String(t.parent),
    t.running ? `${t.state}*` : t.state,
    t.task,
    t.pageTables ?? "-",
    t.kernelThread || t.pid === 0 ? `[${t.comm}]` : t.comm,
  ]);
  const lines = table(["PID", "PPID", "STATE", "TASK", "ROOT", "NAME"], rows);
  if (problem !== undefined) lines.push(`incomplete: ${problem}`);
  return { json: { processes: json, problem: problem ?? null }, lines };
}

function modules(subject: Subject): View {
  const guest = subject.needLinux();
  const list = guest.modules();
  const json = list.modules.map((m) => ({
    name: m.name,
    base: hex(m.base),
    size: m.size,
    state: m.state,
    ranges: m.ranges.map((r) => ({
      kind: r.kind,
      init: r.init,
      start: hex(r.start),
      end: hex(r.end),
    })),
  }));
  const rows = list.modules.map((m) => [m.name, hex(m.base), String(m.size), m.state]);
  const lines = table(["NAME", "BASE", "SIZE", "STATE"], rows);
  if (list.problem !== undefined) lines.push(`incomplete: ${list.problem}`);
  return { json: { modules: json, problem: list.problem ?? null }, lines };
}

type Named = Pick<KernelSymbol, "name" | "address" | "type">;

/** A pattern with * and ? as a regular expression over the whole name. */
function glob(pattern: string): RegExp {
  const escaped = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`^${escaped.replace(/\*/g, ".*").replace(/\?/g, ".")}$`);
}

/** "module:name" in its parts; a name alone is of the kernel. */
function splitModule(text: string): [name: string, module: string | undefined] {
  const colon = text.indexOf(":");
  return colon < 0 ? [text, undefined] : [text.slice(colon + 1), text.slice(0, colon)];
}

function symbols(subject: Subject, [wanted]: string[]): View {
  const guest = subject.needLinux();
  const all = guest.symbols;
  const show = (found: Named[]): View => ({
    json: found.map((s) => ({ name: s.name, address: hex(s.address), type: s.type })),
    lines: found.map((s) => `${hex(s.address).slice(2).padStart(16, "0")} ${s.type} ${s.name}`),
  });
  if (wanted !== undefined && /^0x/i.test(wanted)) {
    const address = subject.address(wanted);
    const name = guest.symbolize(address);
    if (name === undefined)
      throw new InputError(
        `${wanted}: belongs to no symbol`,
        "give an address of kernel or module code",
      );
    return { json: { address: hex(address), symbol: name }, lines: [name] };
  }
  const [name, own] = splitModule(wanted ?? "*");
  const pattern = glob(name);
  let found: Named[] = [];
  if (own !== undefined) {
    const module = guest.modules().modules.find((m) => m.name === own);
    if (module === undefined) {
      throw new InputError(`${own}: no such module`, `see hvi inspect ${subject.name} modules`);
    }
    found = guest.moduleSymbols(module).filter((s) => pattern.test(s.name));
  } else if (/[*?]/.test(name)) {
    for (let i = 0; i < all.count; i++) {
      const candidate = all.nameAt(i);
      if (!pattern.test(candidate)) continue;
      found.push({ name: candidate, address: all.addressAt(i), type: all.typeAt(i) });
    }
  } else found = all.findAll(name);
  if (found.length === 0) {
    throw new InputError(
      `${wanted}: no such symbol in Linux ${guest.version}`,
      "search with * and ?, as 'vfs_*' or 'module:*'",
    );
  }
  return show(found);
}

function translate(subject: Subject, [where]: string[]): View {
  const gva = subject.address(where);
  const space = subject.space(gva);
  const present = space.gpaOf(gva) >= 0;
  const t = space.last;
  const names = levelNames(t.mode);
  const entries = Array.from({ length: t.depth }, (_, i) => ({
    level: names[i],
    gpa: hex(t.entryGpa[i]),
    value: hex64(t.entryLo[i], t.entryHi[i]),
  }));
  const lines = entries.map((e) => `${e.level.padEnd(6)} at ${e.gpa.padEnd(14)} = ${e.value}`);
  if (!present)
    throw new InputError(
      subject.absent(space, gva),
      "choose --pid, --root or --cpu for another address space",
    );
  const rights = `${t.user ? "user" : "kernel"} r${t.writable ? "w" : "-"}${t.nx ? "-" : "x"}`;
  lines.push(`${hex(gva)} -> ${hex(t.gpa)}  ${t.pageSize / 1024} KiB page, ${rights}`);
  return {
    json: {
      gva: hex(gva),
      gpa: hex(t.gpa),
      root: hex(space.root),
      mode: t.mode,
      pageSize: t.pageSize,
      writable: t.writable,
      user: t.user,
      executable: !t.nx,
      global: t.global,
      dirty: t.dirty,
      entries,
    },
    lines,
  };
}

function read(subject: Subject, [where, length]: string[], o: ViewOptions): View {
  const address = o.physical ? subject.physicalAddress(where) : subject.address(where);
  const bytes = subject.read(address, count(length, 64, MAX_READ), o.physical);
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = bytes.subarray(at, at + 16);
    const cells = Array.from(row, (b) => b.toString(16).padStart(2, "0"));
    const text = Array.from(row, (b) =>
      b >= 0x20 && b < 0x7f ? String.fromCharCode(b) : ".",
    ).join("");
    const columns = `${cells.slice(0, 8).join(" ")}  ${cells.slice(8).join(" ")}`;
    lines.push(
      `${hex(address + at)
        .slice(2)
        .padStart(16, "0")}  ${columns.padEnd(48)}  ${text}`,
    );
  }
  const json = {
    address: hex(address),
    physical: o.physical,
    bytes: Buffer.from(bytes).toString("hex"),
  };
  return { json, lines };
}

function disasm(subject: Subject, [where, number]: string[], o: ViewOptions): View {
  const wanted = count(number, 16, MAX_INSTRUCTIONS);
  let address: number;
  if (where === undefined) address = subject.cpu.rip;
  else address = o.physical ? subject.physicalAddress(where) : subject.address(where);
  // As many bytes as the instructions can have, but not beyond what is present.
  const bytes = new Uint8Array(wanted * MAX_INSTRUCTION);
  let have = 0;
  if (o.physical) {
    while (have < bytes.length) {
      const byte = subject.memory.read8(address + have);
      if (byte < 0) break;
      bytes[have++] = byte;
    }
  } else have = subject.space(address).readPartial(address, bytes);
  if (have === 0) subject.read(address, 1, o.physical);
  const guest = o.physical || address >= 0 ? undefined : subject.linux();
  const code = disassemble(bytes.subarray(0, have), codeMode(subject.cpu), address, wanted);
  const json = code.map((line) => {
    const at = line.address - address;
    return {
      address: hex(line.address),
      symbol: guest?.symbolize(line.address) ?? null,
      bytes: Buffer.from(bytes.subarray(at, at + line.length)).toString("hex"),
      text: line.text,
    };
  });
  const lines: string[] = [];
  let last = "";
  for (const line of json) {
    const function_ = line.symbol?.replace(/\+0x[0-9a-f]+/, "") ?? "";
    if (function_ !== last) lines.push(`${line.symbol}:`);
    last = function_;
    lines.push(
      `  ${line.address.slice(2).padStart(16, "0")}  ${line.bytes.padEnd(22)}  ${line.text}`,
    );
  }
  return { json, lines };
}

const SEGMENTS: Array<[string, number]> = [
  ["es", HVI_ES],
  ["cs", HVI_CS],
  ["ss", HVI_SS],
  ["ds", HVI_DS],
  ["fs", HVI_FS],
  ["gs", HVI_GS],
];

/** All registers of one CPU, as hex text. */
function registersOf(cpu: Vcpu): Record<string, string> {
  const out: Record<string, string> = {};
  for (let i = 0; i < 16; i++) out[GPR_NAMES[i]] = hex64(cpu.gprLo(i), cpu.gprHi(i));
  Object.assign(out, {
    rip: hex(cpu.rip),
    rflags: hex(cpu.rflags),
    cr0: hex(cpu.cr0),
    cr2: hex(cpu.cr2),
    cr3: hex(cpu.cr3),
    cr4: hex(cpu.cr4),
    cr8: hex(cpu.cr8),
    efer: hex(cpu.efer),
    xcr0: hex(cpu.xcr0),
    star: hex(cpu.star),
    lstar: hex(cpu.lstar),
    cstar: hex(cpu.cstar),
    fmask: hex(cpu.fmask),
    "kernel-gs": hex(cpu.kernelGsBase),
    gdtr: `${hex(cpu.gdtBase)}+${hex(cpu.gdtLimit)}`,
    idtr: `${hex(cpu.idtBase)}+${hex(cpu.idtLimit)}`,
    tr: `${hex(cpu.trSelector)} ${hex(cpu.trBase)}+${hex(cpu.trLimit)}`,
    ldtr: `${hex(cpu.ldtrSelector)} ${hex(cpu.ldtrBase)}+${hex(cpu.ldtrLimit)}`,
  });
  for (const [name, i] of SEGMENTS) {
    out[name] =
      `${hex(cpu.segSelector(i))} ${hex(cpu.segBase(i))}+${hex(cpu.segLimit(i))} ${hex(cpu.segAccess(i))}`;
  }
  return out;
}

function regs(subject: Subject): View {
  const json = subject.cpus.map((cpu) => ({
    cpu: cpu.index,
    mode: cpuMode(cpu),
    cpl: cpu.cpl,
    symbol: cpu.rip < 0 ? (subject.linux()?.symbolize(cpu.rip) ?? null) : null,
    stack: (cpu.rip < 0 ? (subject.linux()?.unwind(cpu, 32) ?? []) : []).map(
      (a) => subject.linux()?.symbolize(a) ?? hex(a),
    ),
    registers: registersOf(cpu),
  }));
  const lines = [`memory ${hex(subject.memory.ram.size)} bytes`];
  for (const c of json) {
    lines.push(
      `cpu ${c.cpu}: ${c.mode} mode, ring ${c.cpl}${c.symbol === null ? "" : `, ${c.symbol}`}`,
    );
    const cells = Object.entries(c.registers).map(([name, value]) => [name, value] as const);
    const short = cells.filter(([, value]) => !value.includes("+"));
    for (let i = 0; i < short.length; i += 4) {
      lines.push(
        `  ${short
          .slice(i, i + 4)
          .map(([n, v]) => `${n.padEnd(9)} ${v.padEnd(18)}`)
          .join("  ")
          .trimEnd()}`,
      );
    }
    for (const [name, value] of cells)
      if (value.includes("+")) lines.push(`  ${name.padEnd(9)} ${value}`);
    for (const frame of c.stack) lines.push(`  from ${frame}`);
  }
  return { json, lines };
}

function stats(subject: Subject): View {
  const { statistics } = subject;
  if (statistics === undefined) {
    throw new InputError(
      `${subject.name}: a snapshot has no statistics`,
      "run it with hvi run --restore, then hvi inspect --live stats",
    );
  }
  const json = statistics.read();
  const exits = Object.entries(json.exits).map(([name, n]) => [name, String(n)]);
  const lines = table(["EXIT", "COUNT"], exits);
  for (const part of json.parts) {
    const rows = Object.entries(part.values).map(([name, value]) => [name, String(value)]);
    lines.push("", ...table([part.name.toUpperCase(), ""], rows));
  }
  return { json, lines };
}

/** The verbs of `hvi inspect`, in the order of the help. */
export const VERBS: Readonly<Record<string, Verb>> = {
  ps: { usage: "ps", about: "processes", args: [0, 0], show: processes },
  modules: { usage: "modules", about: "loaded kernel modules", args: [0, 0], show: modules },
  symbols: {
    usage: "symbols [[MODULE:]PATTERN|0xADDRESS]",
    about: "symbols by name with * and ?, or by address",
    args: [0, 1],
    show: symbols,
  },
  translate: {
    usage: "translate ADDRESS",
    about: "the page walk of an address",
    args: [1, 1],
    show: translate,
  },
  read: {
    usage: "read ADDRESS [LENGTH]",
    about: "memory in hex, 64 bytes by default",
    args: [1, 2],
    show: read,
  },
  disasm: {
    usage: "disasm [ADDRESS [COUNT]]",
    about: "instructions, from RIP and 16 by default",
    args: [0, 2],
    show: disasm,
  },
  regs: {
    usage: "regs",
    about: "registers of every CPU and its kernel stack trace",
    args: [0, 0],
    show: regs,
  },
  stats: {
    usage: "stats",
    about: "exits, hooks, caches and counters (with --live)",
    args: [0, 0],
    show: stats,
  },
};
