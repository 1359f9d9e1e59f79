// SPDX-License-Identifier: MIT
/** Runs cases and writes down what happened. */
import * as abi from "../../src/bridge/abi.ts";
import type { Vcpu } from "../../src/bridge/index.ts";
import { type BackendName, Bench } from "./bench.ts";
import { at, type Case, NEEDED_CAPS, Step, type Want } from "./case.ts";
import { type Cpu, FLAGS_SHOWN, hex, type RegName, u64 } from "./cpu.ts";
import type { ImageSource } from "./guests.ts";
import { PORT_DONE, PORT_VECTOR, VECTORS } from "./layout.ts";

export interface Result {
  readonly name: string;
  readonly transcript: string[];
  readonly failures: string[];
  readonly skipped: boolean;
}

/** Guest time for a run of a case; a guest that runs longer hangs. */
const BUDGET = 20_000_000;
/** The same where the TSC is real time: a fast clock's ticks may all go by while the thread waits for its CPU. */
const BUDGET_MS = 200;
/** Exits of one case at most. */
const MAX_EXITS = 20_000;

const ERROR_CODE_VECTORS = new Set([8, 10, 11, 12, 13, 14, 17]);

function accessText(a: number): string {
  const kinds = [a & abi.HVI_R ? "r" : "", a & abi.HVI_W ? "w" : "", a & abi.HVI_X ? "x" : ""].join(
    "",
  );
  const more = [
    a & abi.HVI_ACCESS_WALK ? "+walk" : "",
    a & abi.HVI_ACCESS_NO_RAM ? "+noram" : "",
    a & abi.HVI_ACCESS_EVENT ? "+event" : "",
    a & abi.HVI_ACCESS_USER ? "+user" : "",
    a & abi.HVI_ACCESS_GVA ? "" : "-gva",
  ].join("");
  return kinds + more;
}
function rightsText(r: number): string {
  return (r & 1 ? "r" : "-") + (r & 2 ? "w" : "-") + (r & 4 ? "x" : "-");
}

interface Frame {
  error: bigint | undefined;
  rip: bigint;
  cs: bigint;
  rflags: bigint;
}
/** What an exception or interrupt pushed, seen at the first instruction of its handler. */
function readFrame(t: Bench, cpu: Cpu, vector: number): Frame {
  const slot = t.image === "long" ? 8 : t.mode === "real" ? 2 : 4;
  let sp = t.phys(cpu.get("rsp"));
  const read = (): bigint => {
    const v =
      slot === 8 ? t.get64(sp) : slot === 4 ? BigInt(t.get32(sp)) : BigInt(t.get32(sp) & 0xffff);
    sp += slot;
    return v;
  };
  const error = slot > 2 && ERROR_CODE_VECTORS.has(vector) ? read() : undefined;
  return { error, rip: read(), cs: read(), rflags: read() };
}

/** One line for one exit: everything the ABI says of it that does not depend on the backend. */
function describe(t: Bench, v: Vcpu, cpu: Cpu, want: Want | undefined): string {
  const u32 = (o: number) => cpu.u32(o);
  const reason = u32(abi.EXIT_REASON);
  const rip = `rip=${hex(cpu.get("rip"))}`;
  const name = abi.hviExitReasonNames[reason] ?? `reason ${reason}`;
  const length = `len=${u32(abi.EXIT_INSN_LEN)}`;
  const number = `number=${hex(u32(abi.EXIT_NUMBER))}`;
  const value = `value=${hex(cpu.u64(abi.EXIT_VALUE))}`;
  const old = `old=${hex(cpu.u64(abi.EXIT_OLD))}`;
  const gva = `gva=${hex(cpu.u64(abi.EXIT_GVA))}`;
  const view = u32(abi.EXIT_VIEW) === 0 ? "" : ` view=${u32(abi.EXIT_VIEW)}`;
  switch (reason) {
    case abi.HVI_EXIT_EPT: {
      const a = u32(abi.EXIT_ACCESS);
      const head = `${name}${view} ${rip}`;
      const tail = `access=${accessText(a)} rights=${rightsText(u32(abi.EXIT_RIGHTS))}`;
      if (want?.page) {
        const page = (x: bigint) => hex(x & ~0xfffn);
        return `${head} ${length} gpa=${page(cpu.u64(abi.EXIT_GPA))}.. gva=${page(cpu.u64(abi.EXIT_GVA))}.. ${tail}`;
      }
      return `${head} ${length} gpa=${hex(cpu.u64(abi.EXIT_GPA))} ${gva} ${tail} size=${u32(abi.EXIT_SIZE)}`;
    }
    case abi.HVI_EXIT_IO: {
      const port = u32(abi.EXIT_NUMBER);
      if (port === PORT_DONE) return `DONE`;
      if (port >= PORT_VECTOR && port < PORT_VECTOR + VECTORS) {
        const f = readFrame(t, cpu, port - PORT_VECTOR);
        const error = f.error === undefined ? "" : ` error=${hex(f.error)}`;
        const cr2 = port - PORT_VECTOR === 14 ? ` cr2=${hex(cpu.get("cr2"))}` : "";
        return `HANDLER vector=${port - PORT_VECTOR}${error} from=${hex(f.cs)}:${hex(f.rip)} rflags=${hex(f.rflags & FLAGS_SHOWN)}${cr2} rsp=${hex(cpu.get("rsp"))}`;
      }
      const flags = u32(abi.EXIT_FLAGS);
      const kind = `${flags & abi.HVI_IO_IN ? "in" : "out"}${flags & abi.HVI_IO_STRING ? " string" : ""}${flags & abi.HVI_IO_REP ? " rep" : ""}`;
      const data = flags & abi.HVI_IO_STRING ? gva : flags & abi.HVI_IO_IN ? "" : value;
      return `${name} ${rip} ${length} port=${hex(port)} ${kind} size=${u32(abi.EXIT_SIZE)} ${data}`.trimEnd();
    }
    case abi.HVI_EXIT_MSR_READ:
      return `${name} ${rip} ${length} ${number}`;
    case abi.HVI_EXIT_MSR_WRITE:
    case abi.HVI_EXIT_CR_WRITE:
    case abi.HVI_EXIT_XSETBV:
      return `${name} ${rip} ${length} ${number} ${value} ${old}`;
    case abi.HVI_EXIT_DTR:
      return `${name} ${rip} ${length} ${number} ${gva} ${value}`;
    case abi.HVI_EXIT_EXCEPTION:
      return `${name} ${rip} ${length} ${number} ${value}${u32(abi.EXIT_NUMBER) === 14 ? ` ${gva}` : ""}`;
    case abi.HVI_EXIT_CPUID:
      return `${name} ${rip} ${length} ${value} ${old}`;
    case abi.HVI_EXIT_VMCALL:
    case abi.HVI_EXIT_HLT:
      return `${name} ${rip} ${length}`;
    case abi.HVI_EXIT_INJECTED:
      return `${name} ${rip} status=${abi.hviEventStatusNames[u32(abi.EVENT_STATUS)]}`;
    case abi.HVI_EXIT_STEP:
      return `${name} ${rip} in=${v.view}`;
    case abi.HVI_EXIT_DEADLINE:
    case abi.HVI_EXIT_PAUSED:
    case abi.HVI_EXIT_IDLE:
      return name;
    case abi.HVI_EXIT_ENTRY_FAILED:
      return `${name} ${rip} ${abi.hviEntryErrorNames[u32(abi.EXIT_NUMBER)]} ${abi.hviFieldNames[Number(cpu.u64(abi.EXIT_VALUE))]}`;
    case abi.HVI_EXIT_EMULATION:
      return `${name} ${rip} ${number} ${value}`;
    default:
      return `${name} ${rip}`;
  }
}

/** What of an exit is not as wanted. */
function compare(t: Bench, cpu: Cpu, want: Want): string[] {
  const bad: string[] = [];
  const same = (what: string, have: bigint | number, should: bigint | number | undefined) => {
    if (should !== undefined && u64(have) !== u64(should)) {
      bad.push(`${what} is ${hex(have)}, should be ${hex(should)}`);
    }
  };
  const u32 = (o: number) => cpu.u32(o);
  const reason = u32(abi.EXIT_REASON);
  if (reason !== want.reason) {
    return [
      `reason is ${abi.hviExitReasonNames[reason]}, should be ${abi.hviExitReasonNames[want.reason]}`,
    ];
  }
  const gpa = cpu.u64(abi.EXIT_GPA);
  const gva = cpu.u64(abi.EXIT_GVA);
  const pages = (x: bigint | number | undefined) =>
    x === undefined ? undefined : want.page ? u64(x) & ~0xfffn : x;
  same("gpa", pages(gpa)!, pages(want.gpa));
  same("gva", pages(gva)!, pages(want.gva));
  if (want.access !== undefined) {
    const should = Array.isArray(want.access) ? want.access : [want.access];
    const have = u32(abi.EXIT_ACCESS);
    // rmw-read in compare.ts
    const readUntold = t.backend === "vmx" && (have & abi.HVI_W) !== 0 ? have | abi.HVI_R : have;
    if (!should.includes(have) && !should.includes(readUntold)) {
      bad.push(`access is ${accessText(have)}, should be ${should.map(accessText).join(" or ")}`);
    }
  }
  same("rights", u32(abi.EXIT_RIGHTS), want.rights);
  // ept-size in compare.ts
  if (t.backend !== "vmx" || u32(abi.EXIT_SIZE) !== 0 || reason !== abi.HVI_EXIT_EPT)
    same("size", u32(abi.EXIT_SIZE), want.size);
  same("number", u32(abi.EXIT_NUMBER), want.number);
  same("value", cpu.u64(abi.EXIT_VALUE), want.value);
  same("old", cpu.u64(abi.EXIT_OLD), want.old);
  same("flags", u32(abi.EXIT_FLAGS), want.flags);
  same("insn_len", u32(abi.EXIT_INSN_LEN), want.insnLen);
  same("view", u32(abi.EXIT_VIEW), want.view);
  same("rip", cpu.get("rip"), typeof want.rip === "string" ? t.symbol(want.rip) : want.rip);
  same("event status", u32(abi.EVENT_STATUS), want.eventStatus);
  for (const [name, value] of Object.entries(want.regs ?? {}))
    same(name, cpu.get(name as RegName), value);
  if (want.frame) {
    const f = readFrame(t, cpu, want.frame.vector);
    if (want.frame.error !== undefined) same("pushed error code", f.error ?? -1n, want.frame.error);
    const rip = want.frame.rip;
    same("pushed RIP", f.rip, typeof rip === "string" ? t.symbol(rip) : rip);
    same("cr2", cpu.get("cr2"), want.frame.cr2);
  }
  return bad;
}

function isDone(cpu: Cpu): boolean {
  return cpu.u32(abi.EXIT_REASON) === abi.HVI_EXIT_IO && cpu.u32(abi.EXIT_NUMBER) === PORT_DONE;
}

/** The scripts of a case, each with its DONE at the end. */
function scriptsOf(c: Case, t: Bench): Step[][] {
  const scripts = c.scripts ? at(c.scripts, t).map((s) => [...s]) : [[...at(c.script, t)]];
  if (c.done !== false) {
    for (const s of scripts)
      s.push(new Step(() => ({ reason: abi.HVI_EXIT_IO, number: PORT_DONE })));
  }
  return scripts;
}

function drive(c: Case, t: Bench, lines: string[][], failures: string[]): void {
  const scripts = scriptsOf(c, t);
  const at = scripts.map(() => 0);
  const usual = t.vm.has(abi.HVI_CAP_ICOUNT)
    ? BUDGET
    : Math.max(BUDGET, t.vm.info.tscKhz * BUDGET_MS);
  for (let n = 0; n < MAX_EXITS; n++) {
    if (scripts.every((s, i) => at[i]! >= s.length)) return;
    const now = Math.max(...t.cpus.map((p) => Number(p.get("tsc"))));
    const budget = (Array.isArray(c.budget) ? c.budget[n] : c.budget) ?? usual;
    const v = t.vm.run(budget === 0 ? undefined : now + budget);
    const i = v.index;
    if (v.exitReason !== abi.HVI_EXIT_ENTRY_FAILED && v.tsc !== v.exitTsc) {
      failures.push(`vCPU ${i}, exit ${n + 1}: tsc is ${v.tsc}, that of the exit ${v.exitTsc}`);
    }
    if ((v.valid & abi.HVI_STATE_ALL) !== abi.HVI_STATE_ALL) t.vm.fetch(i, abi.HVI_STATE_ALL);
    const cpu = t.cpus[i]!;
    const script = scripts[i];
    const step = script?.[at[i]!];
    const want = step?.want(t);
    const first = at[i] === 0;
    at[i]!++;
    const line = describe(t, v, cpu, want);
    const done = isDone(cpu);
    lines[i]!.push(done && !c.brief ? `${line} ${cpu.summary()}` : line);
    if (!step || !want) {
      failures.push(`vCPU ${i}: one exit too many: ${line}`);
      return;
    }
    const start = c.entry ?? "nothing";
    const instructionExit =
      want.reason === abi.HVI_EXIT_EPT && want.rip === undefined && !want.frame;
    const bad = compare(
      t,
      cpu,
      first && instructionExit && c.entry ? { ...want, rip: start } : want,
    );
    for (const b of bad) failures.push(`vCPU ${i}, exit ${at[i]}: ${b}`);
    if (bad.length > 0) {
      failures.push(`  the exit: ${line}`);
      return;
    }
    step.reply?.(v, t);
    if (done && scripts.length > 1) cpu.set("mpState", abi.HVI_MP_WAIT_SIPI);
  }
  failures.push(`more than ${MAX_EXITS} exits`);
}

/** Whether page walks' writes were counted, as a line of the transcript; Bochs makes them without an exit. */
function adWrites(t: Bench, bochs: boolean, failures: string[]): string {
  if (t.vcpu().adWrites > 0) return "ad_writes counted";
  if (!bochs) failures.push("counters.ad_writes is 0");
  return `ad_writes not counted${bochs ? ": Bochs" : ""}`;
}

function has(t: Bench, needed: NonNullable<Case["needs"]>): boolean {
  if (needed === "avx") return t.avx;
  return needed === "avx2" ? t.avx2 : t.vm.has(NEEDED_CAPS[needed]);
}

/** Runs one case on a fresh machine; `bochs`: its CPU is Bochs's. */
export function runCase(c: Case, backend: BackendName, images: ImageSource, bochs = false): Result {
  const vcpus = c.vcpus ?? 1;
  const lines: string[][] = Array.from({ length: vcpus }, () => []);
  const failures: string[] = [];
  const result = (skipped: boolean): Result => {
    const transcript =
      vcpus === 1 ? lines[0]! : lines.flatMap((l, i) => l.map((s) => `vcpu${i} ${s}`));
    return { name: c.name, transcript, failures, skipped };
  };
  let t: Bench | undefined;
  try {
    t = new Bench(backend, images, c.mode ?? "long", vcpus, c.high);
    if (c.needs && !has(t, c.needs)) {
      lines[0]!.push(`not supported: ${c.needs}`);
      return result(true);
    }
    for (const cpu of t.cpus) cpu.set("rip", t.symbol(c.entry ?? "nothing"));
    if (c.regs) t.cpu.setAll(at(c.regs, t));
    c.setup?.(t);
    drive(c, t, lines, failures);
    if (failures.length === 0) {
      for (const [name, value] of Object.entries(c.end ? at(c.end, t) : {})) {
        const have = t.cpu.get(name as RegName);
        if (have !== u64(value))
          failures.push(`at the end ${name} is ${hex(have)}, should be ${hex(value)}`);
      }
      for (const [gpa, bytes] of c.memory ? at(c.memory, t) : []) {
        const should = bytes.replace(/\s+/g, "");
        const have = t.peek(gpa, should.length / 2);
        if (have !== should)
          failures.push(`at the end memory ${hex(gpa)} is ${have}, should be ${should}`);
      }
      const more = c.check?.(t);
      if (more) failures.push(more);
      if (c.adWrites) lines[0]!.push(adWrites(t, bochs, failures));
    }
  } catch (e) {
    failures.push(`threw ${e instanceof Error ? `${e.name}: ${e.message}` : String(e)}`);
  } finally {
    t?.close();
  }
  return result(false);
}

/** The whole transcript as text. */
export function transcriptOf(results: readonly Result[]): string {
  return results.map((r) => `== ${r.name}\n${r.transcript.map((l) => `${l}\n`).join("")}`).join("");
}
