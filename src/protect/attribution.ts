// SPDX-License-Identifier: MIT
import type { Originator, ProcessInfo } from "../alerts/alert.ts";
import { HVI_ACCESS_GVA, type Vcpu } from "../bridge/index.ts";
import type { LinuxGuest } from "../guest/linux/kernel.ts";
import { formatGva } from "../memory/address.ts";
import { disassembleAtRip } from "./disassemble.ts";

/** Who makes the access that is being handled. */
export interface Attributed {
  originator: Originator;
  process: ProcessInfo | undefined;
}

/** Return addresses that are read from one stack. */
const MAX_FRAMES = 16;
/** Frames between the store of a patch and whoever asked for it; a dozen at most in all kernels seen. */
const MAX_PATCH_FRAMES = 12;
/** Addresses whose kind is remembered. */
const MAX_KNOWN = 4096;

/** The kernel's copy routines, which text patching goes through (arch/x86/lib/memcpy_64.S). */
const COPY = /^(__|__pi_)?(memcpy|memset)(_erms|_orig)?$/;
/** arch/x86/kernel/alternative.c, up to the entry points that the rest of the kernel calls. */
const PATCH = /^(__|smp_)?text_poke/;

/**
 * Who calls those, and so may have kernel text patched: jump labels, ftrace, static calls, kprobes,
 * alternatives, BPF, kgdb; with callers that are all there is on the stack when gcc made the last
 * call a jump. None of them calls through a pointer that a module can set: a module's callback that
 * jumps to text_poke would leave only its caller on the stack.
 */
const PATCHERS = [
  /^(__)?(arch_)?jump_label_(transform|update)(_queue|_apply)?$/,
  /^ftrace_(replace_code|modify_(all_)?code(_direct)?|update_ftrace_func|make_(call|nop)|modify_call|mod_jmp)$/,
  /^ftrace_(en|dis)able_ftrace_graph_caller$/,
  /^(update_ftrace_func|arch_ftrace_update_(code|trampoline))$/,
  /^(__|arch_)?static_call_(transform|update)$/,
  /^__static_call_transform$/,
  /^((arch_)?(dis)?arm_kprobe|arch_(un)?optimize_kprobes?|(force_)?unoptimize_kprobe)$/,
  /^alternatives_(enable_smp|smp_module_add)$/,
  /^(__)?bpf_arch_text_(poke|copy|set|invalidate)$/,
  /^kgdb_arch_(set|remove)_breakpoint$/,
];
/** CR0.WP (SDM 3A 2.5). */
const CR0_WP = 1 << 16;

/** What a piece of code is to text patching. */
type Role = "copy" | "patch" | "patcher" | "other";
/** What a call goes to. */
type Callee = Role | "pointer";
/** What calls through a register go to, with mitigations on (arch/x86/lib/retpoline.S). */
const RETPOLINE = /^__x86_indirect_/;

/**
 * Tells the kernel's own patching from a write made by somebody else. Not by the address of the
 * instruction alone: a module can call text_poke, or memcpy, and be the author of the write all the
 * same. So the stack is unwound: the copy routine, then the patching functions, and whoever called
 * those must be one of the kernel's patchers, each by a call that stands in its code. And the write
 * itself must be as text_poke makes it: through its private mapping in the lower half, with write
 * protection on (__text_poke of arch/x86/kernel/alternative.c), which a memcpy on a forged stack is not.
 */
export class Attribution {
  readonly #guest: LinuxGuest;
  /** Roles of addresses in kernel text, which does not change: patching asks for the same few again. */
  readonly #roles = new Map<number, Role>();
  /** What is called before a return address in kernel text. */
  readonly #calls = new Map<number, Callee>();

  constructor(guest: LinuxGuest) {
    this.#guest = guest;
  }

  /** Whether stacks can be unwound; without, who asks text_poke for a patch is not known. */
  get tellsCallers(): boolean {
    return !this.#guest.missing.has("unwind");
  }

  /** Whether this is the kernel's own text patching, asked for by the kernel itself. */
  isKernelPatching(vcpu: Vcpu): boolean {
    if (vcpu.cpl === 3 || (vcpu.cr0 & CR0_WP) === 0) return false;
    if ((vcpu.exitAccess & HVI_ACCESS_GVA) !== 0 && vcpu.exitGva < 0) return false;
    // Most accesses that are not patching show it at once, without a look at the stack.
    const first = this.#role(vcpu.rip);
    if (first !== "copy" && first !== "patch") return false;
    // A kernel that is denied its own patches dies: without a stack, text_poke's mapping must do.
    if (!this.tellsCallers) return true;
    this.#below = first;
    this.#patching = first === "patch";
    this.#asked = false;
    this.#frames = 0;
    this.#guest.walkStack(vcpu, this.#climb);
    return this.#patching && this.#asked;
  }

  // Where `#climb` is on its way from the store to whoever asked for the patch.
  #below: Role = "other";
  #patching = false;
  #asked = false;
  #frames = 0;

  /** One frame further out; whether to go on. */
  readonly #climb = (back: number): boolean => {
    const role = this.#role(back);
    // A return address that no call of the frame below left there was put there.
    if (role === "other" || !this.#called(back, role)) return false;
    if (role === "patcher") {
      this.#asked = true;
      return false;
    }
    if (role === "patch") this.#patching = true;
    this.#below = role;
    return ++this.#frames < MAX_PATCH_FRAMES;
  };

  /** Whether the code before `back`, a return address in `role`, calls what runs in the frame below. */
  #called(back: number, role: Role): boolean {
    const callee = this.#callee(back);
    // Only text_poke calls its copy routine through a pointer; patchers call it by name.
    if (callee === "pointer") return role === "patch";
    // What was called may have ended in a jump to what runs now, and is in no frame then.
    if (callee === "patch") return true;
    return callee === this.#below || (role === "patcher" && callee === "patcher");
  }

  /** What the CALL instruction that ends at `back` calls (SDM 2A, CALL). */
  #callee(back: number): Callee {
    const known = this.#calls.get(back);
    if (known !== undefined) return known;
    const callee = this.#decodeCall(back);
    if (this.#calls.size >= MAX_KNOWN) this.#calls.clear();
    this.#calls.set(back, callee);
    return callee;
  }

  #decodeCall(back: number): Callee {
    const { vm } = this.#guest;
    // CALL rel32
    if (vm.read8(back - 5) === 0xe8) {
      const relative = vm.read32(back - 4);
      const target = back + (relative | 0);
      if (relative >= 0 && this.#role(target) !== "other") return this.#role(target);
      if (relative >= 0 && RETPOLINE.test(this.#guest.symbolName(target) ?? "")) return "pointer";
    }
    // CALL r64
    return vm.read8(back - 2) === 0xff && (vm.read8(back - 1) & 0xf8) === 0xd0
      ? "pointer"
      : "other";
  }

  /** Who makes the access. */
  of(vcpu: Vcpu): Attributed {
    const frames = [vcpu.rip, ...this.#guest.unwind(vcpu, MAX_FRAMES)];
    const responsible = frames[this.#author(frames)] ?? vcpu.rip;
    return {
      originator: this.#originator(vcpu, frames, responsible, vcpu.cpl === 3),
      process: this.#process(vcpu),
    };
  }

  /** Index of the first frame that is neither copy routine nor patching function. */
  #author(frames: readonly number[]): number {
    let i = 0;
    while (i < frames.length) {
      const role = this.#role(frames[i] as number);
      if (role !== "copy" && role !== "patch") break;
      i++;
    }
    return i;
  }

  #role(at: number): Role {
    const known = this.#roles.get(at);
    if (known !== undefined) return known;
    // A module may name its function text_poke too: only the kernel's own count.
    if (!this.#guest.inKernelText(at)) return "other";
    const name = baseName(this.#guest.symbolName(at));
    const role = roleOf(name);
    if (this.#roles.size >= MAX_KNOWN) this.#roles.clear();
    this.#roles.set(at, role);
    return role;
  }

  #originator(vcpu: Vcpu, frames: number[], responsible: number, user: boolean): Originator {
    const guest = this.#guest;
    const rip = frames[0] as number;
    // A kernel helper may do the write for a module further up: then the module is the source.
    const source = guest.inKernelText(responsible)
      ? (frames.find((f) => guest.moduleAt(f) !== undefined) ?? this.#work(vcpu) ?? responsible)
      : responsible;
    const module = guest.moduleAt(source);
    const instruction = disassembleAtRip(vcpu, guest.memory);
    const originator: Originator = {
      kind: user
        ? "user"
        : module !== undefined
          ? "module"
          : guest.inKernelText(source)
            ? "kernel"
            : "unknown",
      module,
      symbol: user ? undefined : guest.symbolize(source),
      rip: formatGva(rip),
      instruction: instruction?.text,
      bytes: instruction?.bytes,
      stack: frames.slice(1).map((f) => guest.symbolize(f) ?? formatGva(f)),
    };
    if (source !== rip) originator.ripSymbol = guest.symbolize(rip);
    return originator;
  }

  /**
   * The function of the work item that is running, when it is not the kernel's: one that ended in a
   * jump to the helper has left no frame.
   */
  #work(vcpu: Vcpu): number | undefined {
    const work = this.#guest.currentWork(vcpu);
    return work === undefined || this.#guest.inKernelText(work) ? undefined : work;
  }

  #process(vcpu: Vcpu): ProcessInfo | undefined {
    const task = this.#guest.currentTask(vcpu);
    if (task === undefined) return undefined;
    const info: ProcessInfo = { pid: task.pid, tgid: task.tgid, comm: task.comm };
    if (task.kernelThread) info.kernelThread = true;
    if (task.parent !== undefined) info.parent = { pid: task.parent.pid, comm: task.parent.comm };
    return info;
  }
}

function roleOf(name: string): Role {
  if (PATCH.test(name)) return "patch";
  if (COPY.test(name)) return "copy";
  return PATCHERS.some((pattern) => pattern.test(name)) ? "patcher" : "other";
}

/** Symbol without the suffixes gcc adds to split or specialised functions. */
function baseName(name: string | undefined): string {
  return name === undefined ? "" : name.replace(/\.(part|constprop|isra|cold|llvm)\b.*$/, "");
}
