// SPDX-License-Identifier: MIT
/** Hooks on control registers, MSRs, descriptor tables and XCRs. */
import {
  HVI_CAP_DTR_EXIT,
  HVI_DTR_LGDT,
  HVI_DTR_LIDT,
  HVI_DTR_SGDT,
  HVI_DTR_SIDT,
  HVI_DTR_SLDT,
  HVI_DTR_STR,
} from "../../../src/bridge/index.ts";
import { ALLOW, DENY, type HookAction } from "../../../src/ept/gpa-hooks.ts";
import type { RegisterAccess, RegisterHandler } from "../../../src/registers/register-hooks.ts";
import { SOURCE, TARGET, WORD } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

const WP = 1 << 16;
const TS = 1 << 3;
const AM = 1 << 18;
const TSD = 1 << 2;
const DE = 1 << 3;
const LSTAR = 0xc0000082;
const SYSENTER_EIP = 0x176;

const SHOWN = (a: RegisterAccess): string =>
  `${a.number}: ${hex(a.oldLo)} -> ${hex(a.lo)}${a.hi === a.oldHi ? "" : " high too"}`;

/** Keeps in `seen` which bits change. */
function keeper(seen: string[], action: HookAction = ALLOW): RegisterHandler {
  return (access) => {
    seen.push(`${access.number}:${hex((access.lo ^ access.oldLo) >>> 0)}`);
    return action;
  };
}

/** Value of a register that a stub puts in AX. */
function read(t: Trial, stub: string): number {
  return Number(t.guest.run(stub).registers[0]);
}
function write(t: Trial, stub: string, value: number): void {
  t.same(`exception of ${stub}`, t.guest.run(stub, { registers: { ax: value } }).fault, -1);
}

const control: Scenario = {
  name: "registers.control",
  run: (t) => {
    const { registers } = t.core;
    const seen: string[] = [];
    const cr0 = read(t, "get_cr0");
    const cr4 = read(t, "get_cr4");
    const all = [
      registers.addCr(0, keeper(seen), { mask: WP | TS }),
      registers.addCr(4, keeper(seen), { mask: TSD }),
      registers.addCr(4, keeper(seen, DENY), { mask: DE }),
    ];
    // AM is nobody's.
    write(t, "set_cr0", cr0 + AM);
    t.same("told of AM", seen.length, 0);
    write(t, "set_cr0", cr0 - WP);
    t.same("CR0", read(t, "get_cr0"), cr0 - WP);
    write(t, "cr0_clts", cr0 + TS);
    write(t, "lmsw_clts", (cr0 & 0xffff) | TS);
    t.same("CR0", read(t, "get_cr0"), cr0);
    write(t, "set_cr4", cr4 | TSD);
    t.same("CR4", read(t, "get_cr4"), cr4 | TSD);
    write(t, "set_cr4", cr4 | DE);
    t.same("CR4 as it was", read(t, "get_cr4"), cr4 | TSD);
    write(t, "set_cr4", cr4);
    t.same("told", seen.join(" "), "0:0x50000 0:0x10008 0:0x8 0:0x8 0:0x8 4:0x4 4:0xc 4:0xc 4:0x4");
    for (const hook of all) registers.remove(hook);
    write(t, "set_cr4", cr4 | DE);
    t.same("CR4 without hooks", read(t, "get_cr4"), cr4 | DE);
    write(t, "set_cr4", cr4);
  },
};

const spaces: Scenario = {
  name: "registers.address-spaces",
  run: (t) => {
    const { registers } = t.core;
    const all = [1, 2, 3, 4].map(() => t.guest.space());
    const roots: number[] = [];
    let action: HookAction = ALLOW;
    const hook = registers.addCr(3, (a) => {
      roots.push(a.lo);
      return action;
    });
    for (const space of [...all, ...all]) space.enter();
    t.same("roots", roots.map(hex).join(" "), [...all, ...all].map((s) => hex(s.root)).join(" "));
    action = DENY;
    all[0]!.enter();
    t.same("CR3 after a denial", read(t, "get_cr3"), all[3]!.root);
    registers.remove(hook);
    all[0]!.enter();
    t.same("CR3 without hooks", read(t, "get_cr3"), all[0]!.root);
    t.line(`${roots.length} writes`);
  },
};

const msrs: Scenario = {
  name: "registers.msr",
  run: (t) => {
    const { registers } = t.core;
    const seen: string[] = [];
    const wrmsr = (msr: number, lo: number, hi = 0) =>
      t.guest.run("wrmsr", { registers: { cx: msr, ax: lo, dx: hi } }).fault;
    const rdmsr = (msr: number) =>
      Number(t.guest.run("rdmsr", { registers: { cx: msr } }).registers[0]);
    const msr = t.mode === "long" ? LSTAR : SYSENTER_EIP;
    t.same("exception", wrmsr(msr, 0x1000), -1);
    let action: HookAction = ALLOW;
    const written = registers.addMsr(msr, (a) => {
      seen.push(SHOWN(a));
      if (a.lo === 0x4000) a.vcpu.setExitValue(0x5000, 0);
      return action;
    });
    wrmsr(msr, 0x2000);
    t.same("allowed", rdmsr(msr), 0x2000);
    wrmsr(msr, 0x4000);
    t.same("another value", rdmsr(msr), 0x5000);
    action = DENY;
    wrmsr(msr, 0x3000);
    t.same("denied", rdmsr(msr), 0x5000);
    t.same("calls", written.calls, 3);
    // Ring 3 may not: #GP comes before any hook.
    const space = t.guest.space();
    const o = { ring: 3, space, registers: { cx: msr } } as const;
    t.same("exception in ring 3", t.guest.run("wrmsr", o).fault, 13);
    t.same("calls", written.calls, 3);
    let reads = 0;
    const readHook = registers.addMsr(
      msr,
      (_, hook) => {
        reads++;
        // The last call is this one.
        registers.remove(hook);
        return ALLOW;
      },
      { read: true },
    );
    t.same("read", rdmsr(msr), 0x5000);
    t.same("read again", rdmsr(msr), 0x5000);
    t.same("reads told of", reads, 1);
    t.check(readHook.removed, "the hook is still there");
    registers.remove(written);
    wrmsr(msr, 0x3000);
    t.same("without hooks", rdmsr(msr), 0x3000);
    t.line(seen.join("; "));
  },
};

const several: Scenario = {
  name: "registers.several",
  run: (t) => {
    const { registers } = t.core;
    const order: string[] = [];
    const add = (name: string, priority: number, action: HookAction) =>
      registers.addMsr(
        SYSENTER_EIP,
        () => {
          order.push(name);
          return action;
        },
        { priority },
      );
    const all = [add("second", 0, ALLOW), add("first", 7, DENY), add("third", 0, ALLOW)];
    const go = (value: number) =>
      t.guest.run("wrmsr", { registers: { cx: SYSENTER_EIP, ax: value } });
    go(0x777);
    t.same("order", order.join(" "), "first second third");
    const value = () =>
      Number(t.guest.run("rdmsr", { registers: { cx: SYSENTER_EIP } }).registers[0]);
    t.same("denied by one of them", value(), 0);
    registers.remove(all[1]!);
    go(0x888);
    t.same("allowed by the others", value(), 0x888);
    for (const hook of all) registers.remove(hook);
  },
};

/** Space with the register's image of a table stored at TARGET. */
function stored(t: Trial, stub: "sidt" | "sgdt"): Space {
  const space = t.guest.space();
  space.mapNew(TARGET[t.mode], 1);
  space.mapNew(SOURCE[t.mode], 1);
  t.guest.run(stub, { space, registers: { di: TARGET[t.mode] } });
  return space;
}

const tables: Scenario = {
  name: "registers.descriptor-tables",
  run: (t) => {
    if (!t.guest.vm.has(HVI_CAP_DTR_EXIT)) return t.line("not supported: descriptor-table exits");
    const { registers } = t.core;
    const va = TARGET[t.mode];
    for (const [load, store, bits, name] of [
      ["lidt", "sidt", HVI_DTR_LIDT | HVI_DTR_SIDT, "idt"],
      ["lgdt", "sgdt", HVI_DTR_LGDT | HVI_DTR_SGDT, "gdt"],
    ] as const) {
      const space = stored(t, store);
      const gpa = space.memory.gpaOf(va);
      t.same(
        `base of the ${name}`,
        Number(BigInt.asIntN(64, wordAt(t, gpa + 2))),
        t.guest.symbol(name),
      );
      const seen: string[] = [];
      let action: HookAction = ALLOW;
      const hook = registers.addDtr(bits, (a) => {
        seen.push(`${a.number} at ${hex(a.gva - va)}`);
        return action;
      });
      t.same("exception", t.guest.run(load, { space, registers: { si: va } }).fault, -1);
      t.same("exception", t.guest.run(store, { space, registers: { di: va + 32 } }).fault, -1);
      t.same("stored", wordAt(t, gpa + 34), wordAt(t, gpa + 2));
      action = DENY;
      // One table further, which would be the end of the guest.
      t.guest.memory.write8(gpa + 3, t.guest.memory.read8(gpa + 3) ^ 0x10);
      t.same("exception", t.guest.run(load, { space, registers: { si: va } }).fault, -1);
      t.guest.run(store, { space, registers: { di: va + 64 } });
      t.same("nothing stored", wordAt(t, gpa + 66), 0n);
      t.same("vector through the table", t.guest.run("undefined", { ring: 3, space }).fault, 6);
      registers.remove(hook);
      t.line(`${name}: ${seen.join("; ")}`);
    }
    const selectors: string[] = [];
    const space = stored(t, "sidt");
    const hook = registers.addDtr(HVI_DTR_SLDT | HVI_DTR_STR, (a) => {
      selectors.push(`${a.number}: ${hex(a.lo)}`);
      return ALLOW;
    });
    for (const stub of ["sldt", "str"]) t.guest.run(stub, { space, registers: { di: va } });
    registers.remove(hook);
    t.line(selectors.join("; "));
  },
};

function wordAt(t: Trial, gpa: number): bigint {
  const word = t.guest.get64(gpa);
  return WORD[t.mode] === 8 ? word : BigInt.asUintN(32, word);
}

const xcr: Scenario = {
  name: "registers.xcr",
  run: (t) => {
    if (!t.guest.avx) return t.line("not supported: avx");
    const { registers } = t.core;
    const seen: string[] = [];
    let action: HookAction = ALLOW;
    const hook = registers.addXcr((a) => {
      seen.push(SHOWN(a));
      return action;
    });
    const set = (value: number) => {
      const done = t.guest.run("xsetbv", { registers: { ax: value, cx: 0, dx: 0 } });
      t.same("exception", done.fault, -1);
    };
    const get = () => Number(t.guest.run("xgetbv", { registers: { cx: 0 } }).registers[0]);
    action = DENY;
    set(3);
    t.same("XCR0 denied", get(), 7);
    action = ALLOW;
    set(7);
    t.same("XCR0 allowed", get(), 7);
    registers.remove(hook);
    t.same("calls", hook.calls, 2);
    t.line(seen.join("; "));
  },
};

export const registers: readonly Scenario[] = [control, spaces, msrs, several, tables, xcr];
