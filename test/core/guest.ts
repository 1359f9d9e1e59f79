// SPDX-License-Identifier: MIT
/** A virtual machine with the core guest in it, driven by commands. */
import {
  HVI_CAP_ICOUNT,
  HVI_EXIT_DEADLINE,
  HVI_EXIT_EPT,
  HVI_EXIT_IO,
  openVm,
  type Vcpu,
  type Vm,
} from "../../src/bridge/index.ts";
import { PhysicalMemory } from "../../src/memory/physical.ts";
import type { BackendName } from "../conformance/bench.ts";
import { Cpu, FLAGS_SHOWN } from "../conformance/cpu.ts";
import type { Image, ImageSource } from "./image.ts";
import {
  KERNEL_BASE,
  type Mode,
  PORT_COMMAND,
  PORT_PANIC,
  RAM_SIZE,
  REGISTERS,
  USER_STUBS,
  VECTORS,
} from "./layout.ts";
import { Space } from "./space.ts";

/** Guest time until a command counts as one that hangs: instructions, and milliseconds where the TSC is real time. */
const BUDGET = 400_000_000;
const BUDGET_MS = 20_000;

/** Registers in the order of their encoding. */
const NAMES = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"] as const;
export type Registers = Partial<Record<(typeof NAMES)[number], number | bigint>>;

export interface RunOptions {
  /** 0 when left out. */
  ring?: 0 | 3;
  /** The address space to run in; the current one when left out (ring 3: that of the last run). */
  space?: Space;
  registers?: Registers;
  /** CF, PF, AF, ZF, SF, OF; 0 when left out. */
  flags?: number;
  /** 32 bytes each, of YMM0 and following. */
  vectors?: readonly Uint8Array[];
}

/** What a stub left. */
export interface Outcome {
  /** Vector of the exception it ended with; -1: it came to its end. */
  readonly fault: number;
  readonly error: number;
  /** CR2 of a page fault. */
  readonly address: bigint;
  readonly registers: readonly bigint[];
  readonly flags: bigint;
  /** As hex. */
  readonly vectors: string;
}

/** What sees each exit first; Introspection is one. */
export interface ExitHandler {
  /** @returns true when the reply is set */
  handle(vcpu: Vcpu): boolean;
  /** Guest TSC at which poll() is due. */
  readonly deadline: number;
  /** A poll after each exit would find work. */
  readonly eager: boolean;
  /** Work between two exits. */
  poll(vcpu: Vcpu): void;
}

export class CoreGuest {
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly memory: PhysicalMemory;
  /** RAM in one piece. */
  readonly ram: Uint8Array;
  readonly avx: boolean;
  /** What handles exits; nothing at the start. */
  engine: ExitHandler | undefined;
  /** Exits that were the engine's. */
  exits = 0;
  readonly #image: Image;
  readonly #view: DataView;

  /** Starts it, up to its first wait for a command. */
  constructor(
    backend: BackendName,
    images: ImageSource,
    readonly mode: Mode,
  ) {
    this.#image = images(mode);
    this.vm = openVm({ backend });
    this.vm.create({ vcpus: 1 });
    this.vm.addMemory({ gpa: 0, size: RAM_SIZE });
    this.vm.mapMemory();
    const ram = this.vm.ram.view(0, RAM_SIZE);
    if (!ram) throw new Error("the guest's RAM is not one view");
    this.ram = ram;
    this.#view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength);
    ram.set(this.#image.bytes, this.#image.base);
    this.memory = new PhysicalMemory(this.vm.ram);
    const cpuid = this.vm.supportedCpuid();
    this.vm.setCpuid(cpuid);
    this.avx = cpuid.some((e) => e.leaf === 1 && (e.ecx & (1 << 28)) !== 0);
    const vcpu = this.vm.vcpus[0];
    if (!vcpu) throw new Error("there is no vCPU");
    this.vcpu = vcpu;
    const cpu = new Cpu(vcpu);
    cpu.init("prot", false);
    cpu.set("rip", this.#image.base);
    this.finish();
  }

  close(): void {
    this.vm.close();
  }

  // ---- memory -------------------------------------------------------------------

  /** Linear address of a symbol of the guest. */
  symbol(name: string): number {
    const address = this.#image.symbols.get(name);
    if (address === undefined) throw new Error(`the guest has no symbol ${name}`);
    return address;
  }
  /** Names of symbols that begin so, without the beginning. */
  symbolsAfter(prefix: string): string[] {
    return [...this.#image.symbols.keys()]
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length));
  }
  /** Physical address of a kernel address. */
  physical(address: number): number {
    return address - KERNEL_BASE[this.mode];
  }
  /** Where ring 3 has a symbol of the stubs. */
  userAddress(name: string): number {
    return this.symbol(name) - this.symbol("stubs_start") + USER_STUBS;
  }
  /** Kernel address of a physical one. */
  linear(gpa: number): number {
    return gpa + KERNEL_BASE[this.mode];
  }
  /** Physical address of a symbol. */
  at(name: string): number {
    return this.physical(this.symbol(name));
  }
  get64(gpa: number): bigint {
    return this.#view.getBigUint64(gpa, true);
  }
  put64(gpa: number, value: number | bigint): void {
    this.#view.setBigUint64(gpa, BigInt.asUintN(64, BigInt(value)), true);
  }
  /** A copy. */
  bytes(gpa: number, length: number): Uint8Array {
    return this.ram.slice(gpa, gpa + length);
  }

  // ---- commands -------------------------------------------------------------------

  /** Calls a function of the guest; its result. */
  call(name: string, ...args: (number | bigint)[]): number {
    this.begin(name, ...args);
    return this.finish();
  }
  /** The first half of call(): the guest runs at finish() or runFor(). */
  begin(name: string, ...args: (number | bigint)[]): void {
    this.put64(this.at("call_function"), this.symbol(name));
    for (const [i, a] of args.entries()) this.put64(this.at("call_args") + 8 * i, a);
  }
  /** Runs until the command is done; its result, rounded beyond 2^53. Throws when the guest hangs or panics. */
  finish(): number {
    const budget = this.vm.has(HVI_CAP_ICOUNT)
      ? BUDGET
      : Math.max(BUDGET, this.vm.info.tscKhz * BUDGET_MS);
    if (!this.runFor(budget)) throw new Error(`the guest hangs at ${this.vcpu.rip.toString(16)}`);
    return Number(this.get64(this.at("call_result")));
  }
  /** Runs for some guest ticks at most. @returns true when the command was done before */
  runFor(ticks: number): boolean {
    const end = this.vcpu.tsc + ticks;
    for (;;) {
      const v = this.vm.run(Math.min(end, this.engine?.deadline ?? end));
      let done = false;
      if (this.engine?.handle(v)) this.exits++;
      else if (v.exitReason === HVI_EXIT_IO && v.exitNumber === PORT_COMMAND) {
        v.skip();
        done = true;
      } else if (v.exitReason !== HVI_EXIT_DEADLINE) throw new Error(this.#unexpected(v));
      const { engine } = this;
      if (engine?.eager || (engine && engine.deadline <= v.exitTsc)) engine.poll(v);
      if (done) return true;
      if (v.exitReason === HVI_EXIT_DEADLINE && v.exitTsc >= end) return false;
    }
  }

  #unexpected(v: Vcpu): string {
    if (v.exitReason === HVI_EXIT_IO && v.exitNumber === PORT_PANIC) {
      const [vector, error, address, ip] = ["vector", "error", "address", "ip"].map((n) =>
        this.get64(this.at(`fault_${n}`)).toString(16),
      );
      return `the guest's kernel: exception ${vector} error ${error} address ${address} at ${ip}`;
    }
    const where = v.exitReason === HVI_EXIT_EPT ? ` gpa ${v.exitGpa.toString(16)}` : "";
    return `exit ${v.exitName}${where} at ${v.rip.toString(16)} is nobody's`;
  }

  // ---- stubs ------------------------------------------------------------------------

  /** Runs a stub (without "stub_") to its end or its first exception. */
  run(stub: string, o: RunOptions = {}): Outcome {
    this.beginRun(stub, o);
    return this.#outcome(this.finish());
  }
  /** The first half of run(), as begin() is of call(). */
  beginRun(stub: string, o: RunOptions = {}): void {
    for (let i = 0; i < REGISTERS; i++) {
      const name = NAMES[i];
      this.put64(this.at("regs_in") + 8 * i, (name && o.registers?.[name]) ?? 0);
      this.put64(this.at("regs_out") + 8 * i, 0);
    }
    this.put64(this.at("flags_in"), 2 | (o.flags ?? 0));
    for (let i = 0; i < VECTORS; i++) {
      const to = this.at("vectors_in") + 32 * i;
      this.ram.fill(0, to, to + 32);
      this.ram.set(o.vectors?.[i] ?? [], to);
    }
    const user = o.ring === 3 ? 1 : 0;
    this.begin("run", this.symbol(`stub_${stub}`), user, o.space?.root ?? 0);
  }
  #outcome(vector: number): Outcome {
    return {
      // All ones is no vector.
      fault: vector > 255 ? -1 : vector,
      error: Number(this.get64(this.at("fault_error"))),
      address: this.get64(this.at("fault_address")),
      registers: Array.from({ length: REGISTERS }, (_, i) =>
        this.get64(this.at("regs_out") + 8 * i),
      ),
      flags: this.get64(this.at("flags_out")) & FLAGS_SHOWN,
      vectors: Buffer.from(this.bytes(this.at("vectors_out"), 32 * VECTORS)).toString("hex"),
    };
  }

  /** A new address space. */
  space(): Space {
    return new Space(this, this.call("space_create"));
  }
  /** A zeroed frame; its physical address. */
  frame(): number {
    return this.call("frame_alloc");
  }
}
