// SPDX-License-Identifier: MIT
/** A guest that writes its page tables, for tests: each write goes through the hooks as on a CPU. */
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  EXIT_REASON,
  HVI_ACCESS_WRITE,
  HVI_EXIT_DEADLINE,
  HVI_REPLY_RESUME,
  HVI_RWX,
  HVI_W,
  VCPU_RIP,
} from "../bridge/index.ts";
import { type AddressSpace, DEFAULT_FEATURES, type PagingMode } from "../memory/index.ts";
import { PhysicalMemory } from "../memory/physical.ts";
import { GpaHooks } from "./gpa-hooks.ts";
import { GvaHooks } from "./gva-hooks.ts";
import { PageTables, type PageTablesLimits } from "./page-tables.ts";
import { noInstructions, violate } from "./violation.fixture.ts";

export interface GuestWrite {
  /** The engine can work out the bytes; true when left out. */
  known?: boolean;
  /** The instruction does not fault after its exits; true when left out. */
  happens?: boolean;
}

export class TablesGuest {
  readonly vm;
  readonly backend;
  readonly memory: PhysicalMemory;
  readonly hooks: GpaHooks;
  readonly tables: PageTables;
  readonly gva: GvaHooks;
  #rip = 0x1000;
  /** What the instruction at hand writes. */
  #gpa = 0;
  #bytes: readonly number[] | undefined;
  exits = 0;

  constructor(o: { size?: number; limits?: Partial<PageTablesLimits> } = {}) {
    const { vm, backend } = fakeVm({ size: o.size ?? 0x100000 });
    this.vm = vm;
    this.backend = backend;
    this.memory = new PhysicalMemory(vm.ram);
    this.hooks = new GpaHooks(vm, noInstructions);
    this.tables = new PageTables(
      this.hooks,
      this.memory,
      (access, out) => {
        if (this.#bytes === undefined) return -1;
        const from = access.gpa - this.#gpa;
        const count = Math.min(out.length, this.#bytes.length - from);
        for (let i = 0; i < count; i++) out[i] = this.#bytes[from + i] as number;
        return count;
      },
      o.limits,
    );
    this.gva = new GvaHooks(this.hooks, this.tables, this.memory);
  }

  rights(gfn: number): number {
    return this.backend.rightsOf(0, gfn) ?? 0;
  }
  /** Frames without a right, in order. */
  without(right: number): number[] {
    return [...this.backend.restricted(0)]
      .filter(([, rights]) => (rights & right) === 0)
      .map(([gfn]) => gfn)
      .sort((a, b) => a - b);
  }
  isUntouched(): boolean {
    return this.backend.restricted(0).size === 0;
  }

  /** One instruction that writes; returns the reply of its last exit, RESUME when there was none. */
  write(gpa: number, bytes: readonly number[], o: GuestWrite = {}): number {
    let reply = HVI_REPLY_RESUME;
    let allowed = true;
    this.#gpa = gpa;
    this.#bytes = o.known === false ? undefined : bytes;
    const first = Math.min(bytes.length, 0x1000 - (gpa % 0x1000));
    const parts = [[gpa, first] as const, [gpa + first, bytes.length - first] as const];
    const answered = new Set<number>();
    // An answer holds for its page while the instruction goes on to violate others, old or new.
    for (;;) {
      const part = parts.find(([at, size]) => {
        const gfn = Math.floor(at / 0x1000);
        return size > 0 && !answered.has(gfn) && (this.rights(gfn) & HVI_W) === 0;
      });
      if (part === undefined) break;
      const [at, size] = part;
      answered.add(Math.floor(at / 0x1000));
      this.exits++;
      const access = HVI_ACCESS_WRITE;
      const vcpu = violate(this.vm, this.backend, { gpa: at, access, size, rip: this.#rip });
      this.hooks.settle(vcpu);
      if (this.hooks.dispatch(vcpu)) reply = vcpu.replyAction;
      this.hooks.commit();
      if (reply !== HVI_REPLY_RESUME) allowed = false;
    }
    this.#bytes = undefined;
    // A fault goes on elsewhere too: at its handler.
    this.#rip += 4;
    if (allowed && o.happens !== false) this.memory.write(gpa, Uint8Array.from(bytes));
    return reply;
  }

  /** Any exit of the guest. */
  exit(): void {
    this.backend.exits.push((page) => {
      page(0)[EXIT_REASON >>> 2] = HVI_EXIT_DEADLINE;
      page(0)[VCPU_RIP >>> 2] = this.#rip;
      return 0;
    });
    const vcpu = this.vm.run();
    this.hooks.settle(vcpu);
    this.hooks.commit();
  }

  /** An access of one kind; true when it came to an exit of ours. */
  access(gpa: number, access: number, size = 1): boolean {
    const right = access & HVI_RWX;
    if ((this.rights(Math.floor(gpa / 0x1000)) & right) === right) return false;
    const vcpu = violate(this.vm, this.backend, { gpa, access, size, rip: this.#rip });
    this.hooks.settle(vcpu);
    const ours = this.hooks.dispatch(vcpu);
    this.hooks.commit();
    this.#rip += 4;
    return ours;
  }
}

export function space(root: number, mode: PagingMode, features = DEFAULT_FEATURES): AddressSpace {
  return { root, mode, features };
}

/** A 64-bit paging entry as bytes. */
export function entry(lo: number, hi = 0): number[] {
  return [...word(lo), ...word(hi)];
}
/** A 32-bit one. */
export function word(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}
