// SPDX-License-Identifier: MIT
/**
 * The guest's processes, read from its task list (include/linux/sched.h). Lists
 * are followed with a bound and a memory of what was seen, so a circular list
 * or a wild pointer ends the walk with a named problem and what was read so far.
 */
import { gvaFromHalves } from "../../memory/address.ts";
import { isKernelPointer, pointerProblem, type VirtualReader } from "../reader.ts";
import type { Btf } from "./btf.ts";
import type { SymbolTable } from "./kallsyms.ts";

/** More tasks than this are not believed (PID_MAX_LIMIT is 4 Mi; a guest of hvi has thousands). */
const MAX_TASKS = 262_144;
/** A task_struct has some 10 KiB. */
const MAX_TASK_BYTES = 65_536;
const PF_KTHREAD = 0x0020_0000;
/** TASK_COMM_LEN */
const COMM_BYTES = 16;

export interface Task {
  /** GVA of the task_struct. */
  readonly address: number;
  readonly pid: number;
  /** Thread group: the process id that user space sees. */
  readonly tgid: number;
  readonly comm: string;
  /** Letter as in /proc/PID/stat: R S D T t Z X P I. */
  readonly state: string;
  readonly kernelThread: boolean;
  /** GVA of the mm_struct, 0 for a kernel thread. */
  readonly mm: number;
  /** GVA of the page-table root (mm->pgd), 0 without an mm. */
  readonly pgd: number;
  readonly parent: { readonly pid: number; readonly comm: string } | undefined;
}

export interface TaskList {
  readonly tasks: Task[];
  /** Why the list is not complete; undefined when it closed as it should. */
  readonly problem: string | undefined;
}

interface Offsets {
  tasks: number;
  pid: number;
  tgid: number;
  comm: number;
  state: number;
  exitState: number;
  flags: number;
  mm: number;
  pgd: number;
  parent: number;
}

/** Kernel state bits to the letter of /proc (fs/proc/array.c). */
function stateLetter(state: number, exitState: number): string {
  // TASK_UNINTERRUPTIBLE | TASK_NOLOAD
  if ((state & 0x402) === 0x402) return "I";
  const report = (state | exitState) & 0x7f;
  return report === 0 ? "R" : ("SDTtXZP"[31 - Math.clz32(report)] as string);
}

/** Reads tasks of one kernel; made by {@link TaskReader.create}. */
export class TaskReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  /** tasks.next of the task read last. */
  #next = 0;
  readonly #base: number;

  private constructor(
    private readonly vm: VirtualReader,
    private readonly initTask: number,
    private readonly offsets: Offsets,
    private readonly currentSymbol: number | undefined,
  ) {
    // One read takes all fields: they must be of one moment.
    const { pgd: _, ...fields } = offsets;
    this.#base = Math.min(...Object.values(fields));
    this.#bytes = new Uint8Array(Math.max(...Object.values(fields)) + COMM_BYTES - this.#base);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** The reader, or the name of what this kernel lacks for it. */
  static create(
    vm: VirtualReader,
    symbols: SymbolTable,
    btf: Btf,
  ): TaskReader | { missing: string } {
    const initTask = symbols.lookup("init_task");
    if (initTask === undefined) return { missing: "symbol init_task" };
    const size = btf.sizeof("task_struct");
    if (size === undefined || size > MAX_TASK_BYTES) return { missing: "BTF struct task_struct" };
    const member = (names: string[]): number => {
      for (const name of names) {
        const found = btf.member("task_struct", name);
        if (found !== undefined) return found.offset;
      }
      throw new MissingField(`BTF member task_struct.${names[0]}`);
    };
    try {
      const pgd = btf.offsetof("mm_struct", "pgd");
      if (pgd === undefined) throw new MissingField("BTF member mm_struct.pgd");
      const offsets: Offsets = {
        tasks: member(["tasks"]),
        pid: member(["pid"]),
        tgid: member(["tgid"]),
        comm: member(["comm"]),
        // Renamed when it became 32 bits wide; the low half is the same.
        state: member(["__state", "state"]),
        exitState: member(["exit_state"]),
        flags: member(["flags"]),
        mm: member(["mm"]),
        parent: member(["real_parent"]),
        pgd,
      };
      // Per-CPU: within pcpu_hot while that existed, a variable of its own before and after.
      const hot = symbols.lookup("pcpu_hot");
      const within = btf.offsetof("pcpu_hot", "current_task");
      const current =
        hot !== undefined && within !== undefined ? hot + within : symbols.lookup("current_task");
      return new TaskReader(vm, initTask, offsets, current);
    } catch (error) {
      if (error instanceof MissingField) return { missing: error.message };
      throw error;
    }
  }

  #u32(offset: number): number {
    return this.#view.getUint32(offset - this.#base, true);
  }

  #pointer(offset: number): number {
    const at = offset - this.#base;
    return gvaFromHalves(this.#view.getUint32(at, true), this.#view.getUint32(at + 4, true));
  }

  #load(address: number): boolean {
    return isKernelPointer(address) && this.vm.readInto(address + this.#base, this.#bytes);
  }

  /** pid and comm alone, for a parent. `known` remembers them within one walk. */
  #brief(address: number, known: Map<number, Task["parent"]> | undefined): Task["parent"] {
    if (known?.has(address)) return known.get(address);
    const parent = this.#load(address)
      ? { pid: this.#u32(this.offsets.tgid) | 0, comm: this.#comm() }
      : undefined;
    known?.set(address, parent);
    return parent;
  }

  #comm(): string {
    const start = this.offsets.comm - this.#base;
    let text = "";
    for (let i = start; i < start + COMM_BYTES && this.#bytes[i] !== 0; i++) {
      text += String.fromCharCode(this.#bytes[i]);
    }
    return text;
  }

  /** The task whose task_struct is at `address`; undefined when it cannot be read. */
  read(address: number): Task | undefined {
    return this.#read(address, undefined);
  }

  #read(address: number, known: Map<number, Task["parent"]> | undefined): Task | undefined {
    if (!this.#load(address)) return undefined;
    const o = this.offsets;
    // Before the parent is read over it.
    this.#next = this.#pointer(o.tasks);
    const pid = this.#u32(o.pid) | 0;
    const tgid = this.#u32(o.tgid) | 0;
    const comm = this.#comm();
    const state = stateLetter(this.#u32(o.state), this.#u32(o.exitState));
    const kernelThread = (this.#u32(o.flags) & PF_KTHREAD) !== 0;
    const mm = this.#pointer(o.mm);
    const real = this.#pointer(o.parent);
    const pgd = isKernelPointer(mm) ? this.vm.readPtr(mm + o.pgd) : 0;
    const parent = real === address ? undefined : this.#brief(real, known);
    return {
      address,
      pid,
      tgid,
      comm,
      state,
      kernelThread,
      mm,
      pgd: Number.isNaN(pgd) ? 0 : pgd,
      parent,
    };
  }

  /** All processes (thread-group leaders) in the order of the list, the idle task of CPU 0 first. */
  list(): TaskList {
    const tasks: Task[] = [];
    const seen = new Set<number>();
    const parents = new Map<number, Task["parent"]>();
    const head = this.initTask + this.offsets.tasks;
    let problem: string | undefined;
    for (let node = head; ; ) {
      const task = this.#read(node - this.offsets.tasks, parents);
      if (task === undefined) {
        problem = "the task list leads to memory that is not there";
        break;
      }
      tasks.push(task);
      seen.add(node);
      node = this.#next;
      if (node === head) break;
      if (!isKernelPointer(node)) {
        problem = `the task list ${pointerProblem(node)}`;
        break;
      }
      if (seen.has(node) || tasks.length >= MAX_TASKS) {
        problem = seen.has(node) ? "the task list is circular" : "the task list does not end";
        break;
      }
    }
    return { tasks, problem };
  }

  /** Address of the task_struct that a CPU runs, by its kernel GS base; not looked at yet. */
  currentAddress(gsBase: number): number | undefined {
    if (this.currentSymbol === undefined) return undefined;
    const address = this.vm.readPtr(wrap64(gsBase + this.currentSymbol));
    return Number.isNaN(address) ? undefined : address;
  }

  /**
   * The task that a CPU runs. `gsBase` is its kernel GS base (the per-CPU area);
   * undefined when that is no kernel address or what stands there is no task.
   */
  current(gsBase: number): Task | undefined {
    const address = this.currentAddress(gsBase);
    return address === undefined ? undefined : this.read(address);
  }
}

class MissingField extends Error {}

/**
 * The sum of two signed addresses modulo 2^64. Where per-CPU symbols are kernel
 * addresses, the GS base is a distance, and the sum leaves the 64-bit range.
 */
function wrap64(address: number): number {
  const full = 2 ** 64;
  if (address < -(2 ** 63)) return address + full;
  if (address >= 2 ** 63) return address - full;
  return address;
}
