import type { Originator, ProcessInfo } from "../alerts/alert.ts";
import type { Vcpu } from "../bridge/index.ts";
import type { LinuxGuest } from "../guest/linux/kernel.ts";
import { formatGva } from "../memory/address.ts";
import { disassembleAtRip } from "./disassemble.ts";

/** Who makes the access that is being handled, and whether it is the kernel patching itself. */
export interface Attributed {
  originator: Originator;
  process: ProcessInfo | undefined;
  /** The kernel's own text patching, asked for by the kernel itself. */
  kernelPatching: boolean;
}

/** Return addresses that are read from one stack. */
const MAX_FRAMES = 16;

/** The kernel's copy routines, which text patching goes through (arch/x86/lib/memcpy_64.S). */
const COPY = /^(__|__pi_)?(memcpy|memset)(_erms|_orig)?$/;
/** arch/x86/kernel/alternative.c, up to the entry points that the rest of the kernel calls. */
const PATCH = /^(__|smp_)?text_poke/;

/**
 * Tells the kernel's own patching from a write made by somebody else. Not by the address of the
 * instruction alone: a module can call text_poke, or memcpy, and be the author of the write all the
 * same. So the stack is unwound: the copy routine, then the patching functions, and whoever called
 * those must be the kernel image and not a module or unknown memory.
 */
export class Attribution {
  readonly #guest: LinuxGuest;

  constructor(guest: LinuxGuest) {
    this.#guest = guest;
  }

  of(vcpu: Vcpu): Attributed {
    const guest = this.#guest;
    const rip = vcpu.rip;
    const frames = [rip, ...guest.unwind(vcpu, MAX_FRAMES)];
    const user = vcpu.cpl === 3;
    let patching = false;
    let author = 0;
    for (; author < frames.length; author++) {
      const at = frames[author] as number;
      // A module may name its function text_poke too: only the kernel's own count.
      if (!guest.inKernelText(at)) break;
      const name = baseName(guest.symbolName(at));
      if (PATCH.test(name)) patching = true;
      else if (!COPY.test(name)) break;
    }
    const responsible = frames[author];
    const kernelPatching =
      !user && patching && responsible !== undefined && guest.inKernelText(responsible);
    const originator = this.#originator(vcpu, frames, responsible ?? rip, user);
    return { originator, process: this.#process(vcpu), kernelPatching };
  }

  #originator(vcpu: Vcpu, frames: number[], responsible: number, user: boolean): Originator {
    const guest = this.#guest;
    const rip = frames[0] as number;
    // A kernel helper may do the write for a module further up: then the module is the source.
    const source = guest.inKernelText(responsible)
      ? (frames.find((f) => guest.moduleAt(f) !== undefined) ?? responsible)
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

  #process(vcpu: Vcpu): ProcessInfo | undefined {
    const task = this.#guest.currentTask(vcpu);
    if (task === undefined) return undefined;
    const info: ProcessInfo = { pid: task.pid, tgid: task.tgid, comm: task.comm };
    if (task.kernelThread) info.kernelThread = true;
    if (task.parent !== undefined) info.parent = { pid: task.parent.pid, comm: task.parent.comm };
    return info;
  }
}

/** Symbol without the suffixes gcc adds to split or specialised functions. */
function baseName(name: string | undefined): string {
  return name === undefined ? "" : name.replace(/\.(part|constprop|isra|cold|llvm)\b.*$/, "");
}
