// SPDX-License-Identifier: MIT
/** What `hvi inspect` looks at: memory and CPUs that stand still, and how addresses are named. */
import type { Vcpu } from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import { identify } from "../../guest/identify.ts";
import type { LinuxGuest } from "../../guest/linux/kernel.ts";
import { hex, type PhysicalMemory, parseGpa, parseGva, VirtualMemory } from "../../memory/index.ts";
import type { Statistics } from "../../statistics.ts";
import { pagingFeatures, pagingMode } from "../../x86/segments.ts";

/** Which address space is meant. */
export interface SpaceOptions {
  /** vCPU whose registers count. */
  cpu: number;
  /** Process whose address space counts. */
  pid: number | undefined;
  /** Root of the page tables. */
  root: number | undefined;
}

/** What a running machine knows already. */
export interface Known {
  guest: LinuxGuest | undefined;
  statistics: Statistics;
}

/** A pattern that may find what was meant: in the same module, with anything around it. */
function searchFor(name: string): string {
  const colon = name.indexOf(":");
  return colon < 0 ? `*${name.slice(0, 32)}*` : `${name.slice(0, colon)}:*`;
}

export class Subject {
  readonly cpu: Vcpu;
  /** Undefined for a snapshot. */
  readonly statistics: Statistics | undefined;
  #guest: LinuxGuest | undefined;
  #reason = "";

  /**
   * @param name of the file, or --live, for messages
   * @param known undefined for a snapshot
   * @throws InputError when there is no such vCPU
   */
  constructor(
    readonly name: string,
    readonly memory: PhysicalMemory,
    readonly cpus: readonly Vcpu[],
    readonly options: SpaceOptions,
    known?: Known,
  ) {
    this.#guest = known?.guest;
    this.statistics = known?.statistics;
    const cpu = cpus[options.cpu];
    if (cpu === undefined) {
      throw new InputError(
        `--cpu ${options.cpu}: ${name} has ${cpus.length} CPU(s)`,
        "count from 0",
      );
    }
    this.cpu = cpu;
  }

  /** The Linux guest, looked for at the first call; undefined when there is none. */
  linux(): LinuxGuest | undefined {
    if (this.#guest !== undefined || this.#reason !== "") return this.#guest;
    for (const cpu of [this.cpu, ...this.cpus]) {
      const attempt = identify(this.memory, cpu);
      if (attempt.ok) {
        this.#guest = attempt.guest;
        break;
      }
      this.#reason = attempt.reason;
    }
    return this.#guest;
  }

  /** The Linux guest. @throws InputError with the reason when it is not identified */
  needLinux(): LinuxGuest {
    const guest = this.linux();
    if (guest === undefined) {
      throw new InputError(
        `${this.name}: guest not identified: ${this.#reason}`,
        "use addresses with read, translate, disasm and regs, which need no symbols",
      );
    }
    return guest;
  }

  /** The address space that `gva` belongs to under the options. */
  space(gva: number): VirtualMemory {
    const { root, pid } = this.options;
    const mode = pagingMode(this.cpu);
    const features = pagingFeatures(this.cpu);
    if (root !== undefined) return new VirtualMemory(this.memory, root, mode, features);
    if (pid !== undefined) return this.#processSpace(pid);
    // With page-table isolation a user's tables lack the kernel: take the kernel's own.
    const guest = gva < 0 ? this.linux() : undefined;
    return guest === undefined
      ? new VirtualMemory(this.memory, this.cpu.cr3, mode, features)
      : guest.vm;
  }

  #processSpace(pid: number): VirtualMemory {
    const guest = this.needLinux();
    const task = guest.tasks().tasks.find((t) => t.tgid === pid || t.pid === pid);
    if (task === undefined) {
      throw new InputError(`--pid ${pid}: no such process`, `see hvi inspect ${this.name} ps`);
    }
    if (task.pgd === 0) {
      throw new InputError(
        `--pid ${pid}: ${task.comm} has no address space of its own`,
        "choose a user process",
      );
    }
    const root = guest.vm.gpaOf(task.pgd);
    if (root < 0) {
      throw new InputError(
        `--pid ${pid}: its page tables at ${hex(task.pgd)} are not present`,
        "choose another",
      );
    }
    return guest.vm.withRoot(root);
  }

  /**
   * A virtual address: hex, or a symbol, or either with +offset.
   * "module:symbol" names one of a module. @throws InputError
   */
  address(text: string): number {
    const match = /^(.+?)(?:\+(0x[0-9a-f]+|\d+))?$/i.exec(text.trim());
    const base = match?.[1] ?? "";
    const offset = match?.[2] === undefined ? 0 : Number(match[2]);
    const literal =
      /^(0x)?[0-9a-f]{5,16}$/i.test(base) || base.startsWith("0x") ? parseGva(base) : undefined;
    const address = literal ?? this.#symbol(base);
    if (!Number.isSafeInteger(address + offset)) {
      throw new InputError(
        `${text}: not an address`,
        "write it as 0xffffffff81000000 or vfs_read+0x10",
      );
    }
    return address + offset;
  }

  #symbol(name: string): number {
    if (/^0x/i.test(name)) {
      throw new InputError(`${name}: not a 48-bit canonical address`, "give 1 to 16 hex digits");
    }
    const guest = this.needLinux();
    const address = guest.resolve(name);
    if (address === undefined) {
      throw new InputError(
        `${name}: no such symbol in Linux ${guest.version}`,
        `search with hvi inspect ${this.name} symbols '${searchFor(name)}'`,
      );
    }
    return address;
  }

  /** A physical address in hex. @throws InputError */
  physicalAddress(text: string): number {
    const gpa = parseGpa(text);
    if (gpa === undefined)
      throw new InputError(`${text}: not a physical address`, "write it in hex, as 0x1000000");
    return gpa;
  }

  /** Bytes at an address. @throws InputError when some of them are not there */
  read(address: number, length: number, physical: boolean): Uint8Array {
    if (physical) {
      const bytes = this.memory.read(address, length);
      if (bytes === undefined) {
        throw new InputError(
          `${hex(address)}: ${length} bytes from there are not all RAM`,
          "see the memory's size with regs",
        );
      }
      return bytes;
    }
    const space = this.space(address);
    const bytes = new Uint8Array(length);
    const done = space.readPartial(address, bytes);
    if (done < length)
      throw new InputError(
        this.absent(space, address + done),
        "choose --pid, --root or --cpu for another address space",
      );
    return bytes;
  }

  /** One line on why an address has no memory. */
  absent(space: VirtualMemory, gva: number): string {
    if (space.gpaOf(gva) >= 0)
      return `${hex(gva)}: maps to ${hex(space.last.gpa)}, where no RAM is`;
    const level = space.last.lastLevel;
    return `${hex(gva)}: not present${level === undefined ? "" : ` (${space.last.statusName} at ${level})`}`;
  }
}
