// SPDX-License-Identifier: MIT
/** A10: what a guest may do without an exit: EPTP switching, #VE, sub-page writes; INVEPT only where due. */

import * as abi from "../../../src/bridge/abi.ts";
import type { Vcpu } from "../../../src/bridge/index.ts";
import { type Bench, fromHex, le } from "../bench.ts";
import { type Case, ept, exit, none, trap } from "../case.ts";
import { gate, IDT, RAM_SIZE } from "../layout.ts";
import { R, RW, RWX, RX, VALUE, X } from "./words.ts";

const VE = 20;
/** The virtualisation-exception information page. */
const INFO = 0x5000;
/** RAM that nobody has touched yet, 2 MiB of it, seen at the same linear address. */
const UNTOUCHED = 0x600000;

/** Code at the start of data page 3, then DONE. */
function code(t: Bench, bytes: string): void {
  t.code(3, 0, `${bytes} e6ee`);
}
/** MOV ECX, index; XOR EAX, EAX; VMFUNC. */
const vmfunc = (index: number): string => `b9${le(index, 4)} 31c0 0f01d4`;
const VMFUNC_AT = 7;
/** MOV RBX, [RSI]; MOV [RDI], RDX; an exit. */
const LOAD = "488b1e";
const STORE = "488917";
const CALL_OUT = "e642";
/** Starts with a store to the first QWORD of data page 0. */
const STORES: Pick<Case, "entry" | "regs"> = {
  entry: "st8",
  regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
};
const out = () => exit(abi.HVI_EXIT_IO, { number: 0x42 });

/** View n + 1 shows `values[n]` in data page 0; views 0 and these may be selected. */
function views(t: Bench, ...values: number[]): void {
  const list = [0];
  for (const value of values) {
    const v = t.vm.createView(0);
    const s = t.vm.addSpare(1);
    t.vm.spare(s).set(fromHex(le(value, 8)));
    t.vm.remap(v, t.gfn(0), s);
    list.push(v);
  }
  t.vm.setVe(0, false, 0, list);
}
function inView(t: Bench, view: number, index: number): string | undefined {
  const v = t.vcpu();
  return v.view === view && v.eptpIndex === index >>> 0
    ? undefined
    : `view ${v.view}, index ${v.eptpIndex}; should be ${view}, ${index >>> 0}`;
}

/** VMFUNC with these registers raises #UD. */
function refusedVmfunc(name: string, rax: number, rcx: number): Case {
  return {
    name: `vmfunc.refused.${name}`,
    needs: "eptp-switch",
    regs: { rax, rcx },
    setup: (t) => {
      views(t, 0x77);
      code(t, "0f01d4");
    },
    script: (t) => [trap(6, { rip: t.d(3) })],
    done: false,
    check: (t) => inView(t, 0, 0),
  };
}

const switching: Case[] = [
  {
    name: "vmfunc.without-permission",
    setup: (t) => code(t, "0f01d4"),
    script: (t) => [trap(6, { rip: t.d(3) })],
    done: false,
    check: (t) => inView(t, 0, -1),
  },
  ...(["long", "user"] as const).map(
    (mode): Case => ({
      name: `vmfunc.switches.${mode}`,
      mode,
      needs: "eptp-switch",
      regs: (t) => ({ rsi: t.d(0) }),
      setup: (t) => {
        views(t, 0x77);
        code(t, vmfunc(1) + LOAD);
      },
      script: none,
      end: { rbx: 0x77 },
      check: (t) => inView(t, 1, 1),
    }),
  ),
  {
    name: "vmfunc.there-and-back",
    needs: "eptp-switch",
    regs: (t) => ({ rsi: t.d(0), rdi: t.d(0, 8), rdx: VALUE }),
    setup: (t) => {
      t.put64(t.p(0), 0x11n);
      views(t, 0x77);
      code(t, vmfunc(1) + STORE + vmfunc(0) + LOAD);
    },
    script: none,
    end: { rbx: 0x11 },
    memory: (t) => [[t.p(0, 8), le(0, 8)]],
    check: (t) => inView(t, 0, 0),
  },
  {
    name: "vmfunc.rights-of-the-view",
    needs: "eptp-switch",
    regs: (t) => ({ rdi: t.d(1), rdx: VALUE }),
    setup: (t) => {
      views(t, 0x77, 0x88);
      t.rights(t.p(1), R, 2);
      code(t, vmfunc(2) + STORE);
    },
    script: (t) => [
      ept("w", t.p(1), { view: 2, rights: R, rip: t.d(3, 10) })
        .do((v) => {
          if (v.eptpIndex !== 2) throw new Error(`index ${v.eptpIndex}`);
          v.view = 0;
        })
        .retry(),
    ],
    memory: (t) => [[t.p(1), le(VALUE, 8)]],
    check: (t) => inView(t, 0, 0),
  },
  {
    name: "vmfunc.rights-taken-in-another-view",
    needs: "eptp-switch",
    regs: (t) => ({ rdi: t.d(1), rdx: VALUE }),
    // The guest has written there, is elsewhere while the right goes, and comes back.
    setup: (t) => {
      views(t, 0x77);
      code(t, vmfunc(1) + STORE + vmfunc(0) + CALL_OUT + vmfunc(1) + STORE);
    },
    script: (t) => [
      out()
        .do((_, b) => b.rights(b.p(1), R, 1))
        .skip(),
      ept("w", t.p(1), { view: 1, rights: R }).resume(),
    ],
  },
  {
    name: "vmfunc.view-not-in-the-list",
    needs: "eptp-switch",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      views(t, 0x77);
      t.vcpu().view = t.vm.createView(0);
      code(t, CALL_OUT + vmfunc(1) + LOAD);
    },
    script: [
      out()
        .do((v) => {
          if (v.view !== 2 || v.eptpIndex !== 0xffffffff)
            throw new Error(`view ${v.view}, index ${v.eptpIndex}`);
        })
        .skip(),
    ],
    end: { rbx: 0x77 },
    check: (t) => inView(t, 1, 1),
  },
  refusedVmfunc("behind-the-list", 0, 2),
  refusedVmfunc("behind-every-list", 0, 512),
  refusedVmfunc("far-index", 0, 0xffffffff),
  refusedVmfunc("function-1", 1, 0),
  refusedVmfunc("function-63", 63, 0),
  refusedVmfunc("function-64", 64, 0),
  {
    name: "vmfunc.list-made-shorter",
    needs: "eptp-switch",
    setup: (t) => {
      views(t, 0x77, 0x88);
      code(t, vmfunc(2) + CALL_OUT + vmfunc(0) + vmfunc(2));
    },
    script: (t) => [
      out()
        .do((_, b) => b.vm.setVe(0, false, 0, [0, 1]))
        .skip(),
      trap(6, { rip: t.d(3, 12 + 10 + VMFUNC_AT) }),
    ],
    done: false,
    check: (t) => inView(t, 0, 0),
  },
  {
    name: "vmfunc.taken-away",
    needs: "eptp-switch",
    setup: (t) => {
      views(t, 0x77);
      code(t, vmfunc(1) + CALL_OUT + vmfunc(0));
    },
    script: (t) => [
      out()
        .do((_, b) => b.vm.setVe(0, false, 0, []))
        .skip(),
      trap(6, { rip: t.d(3, 12 + VMFUNC_AT) }),
    ],
    done: false,
    check: (t) => inView(t, 1, -1),
  },
  {
    // The instruction itself was violated, so it runs alone.
    name: "vmfunc.resumed",
    needs: "eptp-switch",
    regs: (t) => ({ rsi: t.d(0), rcx: 1 }),
    setup: (t) => {
      views(t, 0x77);
      t.code(3, 0, `0f01d4 ${LOAD} e6ee`);
      t.rights(t.p(3), R);
    },
    script: (t) => [ept("x", t.p(3)).resume()],
    end: { rbx: 0x77 },
    check: (t) => inView(t, 1, 1),
  },
  {
    name: "vmfunc.stepped-in-a-view",
    needs: "eptp-switch",
    regs: (t) => ({ rsi: t.d(0), rcx: 2 }),
    // The guest's choice stands: it is not undone by the end of the step.
    setup: (t) => {
      views(t, 0x77, 0x88);
      t.code(3, 0, `0f01d4 ${LOAD} e6ee`);
      t.rights(t.p(3), R);
    },
    script: (t) => [
      ept("x", t.p(3)).step(1, true),
      exit(abi.HVI_EXIT_STEP, { rip: t.d(3, 3), view: 2 }).resume(),
    ],
    end: { rbx: 0x88 },
    check: (t) => inView(t, 2, 2),
  },
  {
    name: "vmfunc.listed-views-stay",
    needs: "eptp-switch",
    setup: (t) => {
      views(t, 0x77);
      let refused = false;
      try {
        t.vm.destroyView(1);
      } catch {
        refused = true;
      }
      if (!refused) throw new Error("a view that VMFUNC may select was destroyed");
      t.vm.setVe(0, false, 0, []);
      t.vm.destroyView(1);
    },
    script: none,
  },
  {
    name: "vmfunc.of-one-vcpu",
    needs: "eptp-switch",
    vcpus: 2,
    setup: (t) => {
      views(t, 0x77);
      code(t, vmfunc(1));
      t.cpus[1]!.set("rip", t.d(3));
    },
    script: none,
    scripts: (t) => [
      [],
      [
        trap(6, { rip: t.d(3, VMFUNC_AT) }).do((v, b) => {
          v.rip = b.symbol("nothing");
          v.retry();
        }),
      ],
    ],
  },
];

/** The information area as the CPU should have left it. */
function told(
  t: Bench,
  want: { access: number; rights: number; gpa: number; index?: number },
): string | undefined {
  const have = [t.get32(INFO), t.get32(INFO + 4)].map((x) => (x >>> 0).toString(16)).join(" ");
  if (have !== "30 ffffffff") return `the information area begins with ${have}`;
  // SDM table 27-7: bits 0-2 the access, 3-5 the rights, 7 and 8 the linear address. A write may read.
  const q = Number(t.get64(INFO + 8) & 0x1bfn);
  const should = 0x180 | (want.rights << 3) | want.access;
  if (q !== should && !(want.access & 2 && (q | 1) === (should | 1)))
    return `exit qualification 0x${q.toString(16)}, should be 0x${should.toString(16)}`;
  if (t.get64(INFO + 16) !== t.gva(want.gpa))
    return `linear address 0x${t.get64(INFO + 16).toString(16)}`;
  if (t.get64(INFO + 24) !== BigInt(want.gpa))
    return `physical address 0x${t.get64(INFO + 24).toString(16)}`;
  // Bochs 3.0 does not load the index at an entry: only that of a VMFUNC is certain.
  const index = Number(t.get64(INFO + 32) & 0xffffn);
  return index === (want.index ?? index) ? undefined : `EPTP index ${index}`;
}
/** #VE for these pages of view 0. */
function convertible(t: Bench, ...gpas: number[]): void {
  t.vm.setVe(0, true, INFO, []);
  for (const gpa of gpas) t.vm.setVePages(0, gpa >>> 12, 1, true);
}
/** Data page 0 is convertible and read only. */
function closed(t: Bench): void {
  convertible(t, t.p(0));
  t.rights(t.p(0), R);
}
/** The guest's handler is done with the information area. */
const free = (_: Vcpu, t: Bench) => t.put32(INFO + 4, 0);

const exceptions: Case[] = [
  {
    name: "ve.write",
    needs: "ve",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 0x18), rax: VALUE }),
    setup: closed,
    // The handler leaves the area busy: the second violation exits.
    script: (t) => [trap(VE, { rip: "st8" }), ept("w", t.p(0, 0x18), { rights: R }).scratch()],
    memory: (t) => [[t.p(0, 0x18), le(0, 8)]],
    check: (t) => told(t, { access: 2, rights: R, gpa: t.p(0, 0x18) }),
  },
  {
    name: "ve.user",
    needs: "ve",
    mode: "user",
    ...STORES,
    setup: (t) => {
      convertible(t, t.p(0));
      t.rights(t.p(0), RX);
    },
    script: (t) => [trap(VE, { rip: "st8" }), ept("wu", t.p(0)).resume()],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
    check: (t) => told(t, { access: 2, rights: RX, gpa: t.p(0) }),
  },
  {
    name: "ve.read-of-nothing",
    needs: "ve",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0, 8) }),
    setup: (t) => {
      t.put64(t.p(0, 8), VALUE);
      convertible(t, t.p(0));
      t.rights(t.p(0), 0);
    },
    script: (t) => [trap(VE, { rip: "ld8" }), ept("r", t.p(0, 8), { rights: 0 }).resume()],
    end: { rax: VALUE },
    check: (t) => told(t, { access: 1, rights: 0, gpa: t.p(0, 8) }),
  },
  {
    name: "ve.fetch",
    needs: "ve",
    setup: (t) => {
      code(t, "90");
      convertible(t, t.p(3));
      t.rights(t.p(3), RW);
    },
    script: (t) => [
      trap(VE, { rip: t.d(3) }),
      ept("x", t.p(3)).resume(),
      ept("x", t.p(3, 1)).resume(),
    ],
    done: true,
    check: (t) => told(t, { access: 4, rights: RW, gpa: t.p(3) }),
  },
  {
    name: "ve.again-and-again",
    needs: "ve",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: closed,
    script: () => [
      trap(VE, { rip: "st8x2" }).do(free),
      trap(VE, { rip: "st8x2" }).do(free),
      // What a handler does who asks the engine for the right.
      trap(VE, { rip: "st8x2" }).do((_, b) => b.rights(b.p(0), RW)),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8) + le(VALUE, 8)]],
  },
  {
    name: "ve.off",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      convertible(t, t.p(0));
      t.vm.setVe(0, false, 0, []);
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0)).scratch()],
    memory: () => [[INFO, le(0, 8)]],
  },
  {
    name: "ve.other-pages-exit",
    needs: "ve",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(1), rax: VALUE }),
    setup: (t) => {
      convertible(t, t.p(0), t.p(2));
      t.rights(t.p(1), R);
    },
    script: (t) => [ept("w", t.p(1)).resume()],
    memory: (t) => [
      [t.p(1), le(VALUE, 8)],
      [INFO, le(0, 8)],
    ],
  },
  {
    name: "ve.of-one-vcpu",
    needs: "ve",
    vcpus: 2,
    entry: "st8",
    setup: (t) => {
      closed(t);
      t.cpus[0]!.setAll({ rdi: t.d(0), rax: VALUE });
      t.cpus[1]!.setAll({ rip: t.symbol("st8"), rdi: t.d(0), rax: VALUE });
    },
    script: none,
    scripts: (t) => [
      [trap(VE, { rip: "st8" }), ept("w", t.p(0)).scratch()],
      [ept("w", t.p(0)).scratch()],
    ],
  },
  {
    name: "ve.pages-made-at-the-first-touch",
    needs: "ve",
    entry: "st8_ld8",
    regs: { rdi: UNTOUCHED + 0x3000, rsi: UNTOUCHED + 0x5000, rax: VALUE },
    // Convertible, and all rights: that nothing stands there yet is the module's business.
    setup: (t) => convertible(t, UNTOUCHED + 0x3000, UNTOUCHED + 0x5000),
    script: none,
    end: { rbx: 0 },
    memory: () => [[INFO, le(0, 8)]],
  },
  {
    name: "ve.first-touch-violates",
    needs: "ve",
    entry: "st8",
    regs: { rdi: UNTOUCHED + 0x3000, rax: VALUE },
    setup: (t) => {
      convertible(t, UNTOUCHED + 0x3000);
      t.rights(UNTOUCHED + 0x3000, R);
    },
    script: [trap(VE, { rip: "st8" }), ept("w", UNTOUCHED + 0x3000, { rights: R }).resume()],
    check: (t) => told(t, { access: 2, rights: R, gpa: UNTOUCHED + 0x3000 }),
  },
  {
    name: "ve.whole-of-ram",
    needs: "ve",
    entry: "st8",
    regs: { rdi: UNTOUCHED + 0x1ff000, rax: VALUE },
    setup: (t) => {
      t.vm.setVe(0, true, INFO, []);
      t.vm.setVePages(0, 0, RAM_SIZE / 4096, true);
      t.rights(UNTOUCHED + 0x1ff000, R);
    },
    script: [trap(VE, { rip: "st8" }).do((_, b) => b.rights(UNTOUCHED + 0x1ff000, RWX))],
  },
  {
    name: "ve.undone",
    needs: "ve",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: closed,
    script: (t) => [
      trap(VE, { rip: "st8x2" })
        .do(free)
        .do((_, b) => b.vm.setVePages(0, b.gfn(0), 1, false)),
      ept("w", t.p(0)).scratch(),
      ept("w", t.p(0, 8)).scratch(),
    ],
  },
  {
    name: "ve.copied-with-the-view",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      t.vcpu().view = t.vm.createView(0);
      t.vm.setVePages(0, t.gfn(0), 1, false);
    },
    script: (t) => [trap(VE, { rip: "st8" }), ept("w", t.p(0), { view: 1 }).scratch()],
  },
  {
    name: "ve.of-its-view",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vcpu().view = t.vm.createView(0);
      convertible(t, t.p(0));
    },
    script: (t) => [ept("w", t.p(0), { view: 1 }).scratch()],
    memory: () => [[INFO, le(0, 8)]],
  },
  {
    name: "ve.index-of-the-view",
    needs: "eptp-switch",
    regs: (t) => ({ rdi: t.d(1), rdx: VALUE }),
    setup: (t) => {
      const [a, b] = [t.vm.createView(0), t.vm.createView(0)];
      t.vm.setVePages(a, t.gfn(1), 1, true);
      t.rights(t.p(1), R, a);
      t.vm.setVe(0, true, INFO, [0, b, a]);
      code(t, vmfunc(2) + STORE);
    },
    script: (t) => [trap(VE, { rip: t.d(3, 10) }), ept("w", t.p(1), { view: 1 }).scratch()],
    check: (t) => told(t, { access: 2, rights: R, gpa: t.p(1), index: 2 }) ?? inView(t, 1, 2),
  },
  {
    name: "ve.remapped",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      t.vm.remap(0, t.gfn(0), t.vm.addSpare(1));
    },
    script: (t) => [trap(VE, { rip: "st8" }), ept("w", t.p(0)).scratch()],
  },
  {
    // The CPU writes there whatever the views say: the page is the engine's choice.
    name: "ve.information-page-hooked",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      t.rights(INFO, 0);
      t.vm.remap(0, INFO >>> 12, t.vm.addSpare(1));
    },
    script: (t) => [trap(VE, { rip: "st8" }), ept("w", t.p(0)).scratch()],
    check: (t) => told(t, { access: 2, rights: R, gpa: t.p(0) }),
  },
  {
    name: "ve.information-page-busy-from-the-start",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      t.put32(INFO + 4, 1);
    },
    script: (t) => [ept("w", t.p(0)).scratch()],
  },
  {
    name: "ve.information-page-itself-violated",
    needs: "ve",
    entry: "st8",
    regs: { rdi: INFO + 0x40, rax: VALUE },
    setup: (t) => {
      convertible(t, INFO);
      t.rights(INFO, R);
    },
    script: [trap(VE, { rip: "st8" }), ept("w", INFO + 0x40).resume()],
    check: (t) => told(t, { access: 2, rights: R, gpa: INFO + 0x40 }),
  },
  {
    name: "ve.not-while-delivering",
    needs: "ve",
    setup: (t) => {
      code(t, "cd21");
      convertible(t, IDT);
      t.rights(IDT, 0);
    },
    script: (t) => [
      ept("re", IDT + 16 * 0x21, { page: true, rip: t.d(3) }).resume(),
      trap(0x21, { rip: t.d(3, 2) }),
    ],
    memory: () => [[INFO, le(0, 8)]],
  },
  {
    name: "ve.not-in-real-mode",
    needs: "ve",
    mode: "real",
    setup: (t) => {
      convertible(t, 0xb000);
      t.rights(0xb000, R);
      // MOV [0xb000], AX
      t.poke(0x6000, "a300b0 e6ee");
      t.cpu.set("rip", 0x6000);
    },
    script: [ept("w", 0xb000, { gva: 0xb000 }).scratch()],
    memory: () => [[INFO, le(0, 8)]],
  },
  {
    name: "ve.intercepted",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, 1 << VE);
    },
    script: (t) => [
      exit(abi.HVI_EXIT_EXCEPTION, { number: VE, rip: "st8" })
        .do((_, b) => {
          const wrong = told(b, { access: 2, rights: R, gpa: b.p(0) });
          if (wrong) throw new Error(wrong);
        })
        .resume(),
      trap(VE, { rip: "st8" }),
      ept("w", t.p(0)).scratch(),
    ],
  },
  {
    name: "ve.stepped",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setVePages(t.vm.createView(0), t.gfn(0), 1, true);
      t.vm.setVe(0, true, INFO, []);
    },
    // The step is the delivery.
    script: (t) => [
      ept("w", t.p(0), { view: 0 }).step(1, true),
      exit(abi.HVI_EXIT_STEP, { rip: t.symbol("handlers") + 16 * VE }).resume(),
      trap(VE, { rip: "st8" }),
      ept("w", t.p(0), { view: 0 }).scratch(),
    ],
  },
  {
    // SDM 25.5.7.3: with respect to double faults it is a page fault.
    name: "ve.its-delivery-faults",
    needs: "ve",
    ...STORES,
    setup: (t) => {
      closed(t);
      gate(t, VE, { present: false });
    },
    script: [trap(8, { error: 0 })],
    done: false,
  },
];

/** Data page 0 is R, its parts of `mask` writable; a store of RAX at the offset. */
function part(
  name: string,
  offset: number,
  mask: number,
  open: boolean,
  more: Partial<Case> = {},
): Case {
  const entry = more.entry ?? "st8";
  return {
    name: `spp.${name}`,
    needs: "spp",
    entry,
    regs: (t) => ({ rdi: t.d(0, offset), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), mask);
    },
    script: (t) => (open ? [] : [ept("w|rw", t.p(0, offset), { rights: R }).scratch()]),
    memory: (t) => [[t.p(0, offset), open ? le(VALUE, 8) : le(0, 8)]],
    ...more,
  };
}

const parts: Case[] = [
  part("open.first", 0, 1, true),
  part("open.last", 0xff8, 0x80000000, true),
  part("open.in-the-middle", 0x478, 1 << 8, true),
  part("closed.first", 0, 0xfffffffe, false),
  part("closed.last", 0xf80, 0x7fffffff, false),
  part("closed.beside", 0x80, ~(1 << 1) >>> 0, false),
  part("from-a-closed-into-an-open-one", 0x7c, ~1 >>> 0, false),
  part("mask-of-nothing", 0, 0, false),
  part("read-modify-write.open", 0x100, 1 << 2, true, { entry: "add8" }),
  part("read-modify-write.closed", 0x100, ~(1 << 2) >>> 0, false, { entry: "add8" }),
  part("undone", 0x80, 0, false, {
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 0xffffffff);
      t.vm.setSubPage(0, t.gfn(0), 0);
    },
  }),
  part("page-with-write", 0x80, 1, true, {
    setup: (t) => t.vm.setSubPage(0, t.gfn(0), 1),
  }),
  part("waits-for-the-rights", 0x80, 1, false, {
    setup: (t) => {
      t.vm.setSubPage(0, t.gfn(0), 1);
      t.rights(t.p(0), R);
    },
  }),
  part("copied-with-the-view", 0x80, 2, true, {
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 2);
      t.vcpu().view = t.vm.createView(0);
      t.vm.setSubPage(0, t.gfn(0), 0);
    },
  }),
  part("of-its-view", 0x80, 2, false, {
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vcpu().view = t.vm.createView(0);
      t.vm.setSubPage(0, t.gfn(0), 2);
    },
    script: (t) => [ept("w", t.p(0, 0x80), { view: 1 }).scratch()],
  }),
  part("not-with-vmfunc", 0x80, 2, false, {
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 2);
      t.vm.setVe(0, false, 0, [0]);
    },
  }),
  {
    name: "spp.both-kinds-in-turn",
    needs: "spp",
    regs: (t) => ({ rdi: t.d(0), rdx: VALUE }),
    // Stores at 0, 0x80, 0x100, 0 again; MOV [RDI + disp32], RDX.
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 0b101);
      code(t, [0, 0x80, 0x100, 0].map((at) => `488997${le(at, 4)}`).join(""));
    },
    script: (t) => [ept("w", t.p(0, 0x80), { rip: t.d(3, 7) }).resume()],
    memory: (t) => [0, 0x80, 0x100].map((at) => [t.p(0, at), le(VALUE, 8)]),
  },
  {
    name: "spp.mask-changed-at-an-exit",
    needs: "spp",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0, 0x78), rax: VALUE }),
    // Stores at 0x78 and 0x80.
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 2);
    },
    script: (t) => [
      ept("w", t.p(0, 0x78))
        .do((_, b) => b.vm.setSubPage(0, b.gfn(0), 1))
        .retry(),
      ept("w", t.p(0, 0x80)).scratch(),
    ],
    memory: (t) => [[t.p(0, 0x78), le(VALUE, 8) + le(0, 8)]],
  },
  {
    name: "spp.taken-after-use",
    needs: "spp",
    regs: (t) => ({ rdi: t.d(0), rdx: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 1);
      code(t, STORE + CALL_OUT + STORE);
    },
    script: (t) => [
      out()
        .do((_, b) => b.vm.setSubPage(0, b.gfn(0), 2))
        .skip(),
      ept("w", t.p(0), { rip: t.d(3, 5) }).scratch(),
    ],
  },
  {
    name: "spp.remapped",
    needs: "spp",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0, 0x80), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.setSubPage(0, t.gfn(0), 2);
      t.vm.remap(0, t.gfn(0), t.vm.addSpare(1));
    },
    script: none,
    memory: (t) => [[t.p(0, 0x80), le(0, 8)]],
    check: (t) =>
      Buffer.from(t.vm.spare(0).subarray(0x80, 0x88)).toString("hex") === le(VALUE, 8)
        ? undefined
        : "the store missed the spare page",
  },
  {
    name: "spp.code-writes-its-own-page",
    needs: "spp",
    regs: (t) => ({ rdi: t.d(3, 0x100), rdx: VALUE }),
    setup: (t) => {
      code(t, STORE);
      t.rights(t.p(3), RX);
      t.vm.setSubPage(0, t.gfn(3), 1 << 2);
    },
    script: none,
    memory: (t) => [[t.p(3, 0x100), le(VALUE, 8)]],
  },
  {
    name: "spp.not-without-read",
    needs: "spp",
    ...STORES,
    setup: (t) => {
      t.rights(t.p(0), X);
      t.vm.setSubPage(0, t.gfn(0), 0xffffffff);
    },
    script: (t) => [ept("w", t.p(0), { rights: X }).scratch()],
    memory: (t) => [[t.p(0), le(0, 8)]],
  },
];

/** What the guest ran between two exits cost so many INVEPTs. */
function invepts(n: number): (v: Vcpu, t: Bench) => void {
  let before = -1;
  return (v, t) => {
    const now = v.invepts;
    const should = t.backend === "vmx" ? n : 0;
    if (before >= 0 && now - before !== should)
      throw new Error(`${now - before} INVEPTs, should be ${should}`);
    before = now;
  };
}

const invalidation: Case[] = [
  {
    name: "ept.invept.not-for-more-rights",
    regs: (t) => ({ rdi: t.d(0), rdx: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(1), R);
      code(t, CALL_OUT + STORE + CALL_OUT);
    },
    script: () => {
      const count = invepts(0);
      return [
        out()
          .do(count)
          .do((_, b) => b.rights(b.p(0), RWX))
          .do((_, b) => b.rights(b.p(1), R))
          .skip(),
        out().do(count).skip(),
      ];
    },
  },
  {
    name: "ept.invept.not-for-a-fill",
    regs: { rdi: UNTOUCHED + 0x3000, rdx: VALUE },
    setup: (t) => code(t, CALL_OUT + STORE + CALL_OUT),
    script: () => {
      const count = invepts(0);
      return [out().do(count).skip(), out().do(count).skip()];
    },
  },
  {
    name: "ept.invept.once-for-less-rights",
    regs: (t) => ({ rdi: t.d(2), rdx: VALUE }),
    setup: (t) => {
      // Of 4 KiB already: no large page is split below.
      t.rights(t.p(9), R);
      code(t, CALL_OUT + CALL_OUT);
    },
    script: () => {
      const count = invepts(1);
      return [
        out()
          .do(count)
          .do((_, b) => {
            for (const page of [0, 1, 4, 5]) b.rights(b.p(page), R);
          })
          .skip(),
        out().do(count).skip(),
      ];
    },
  },
  {
    name: "ept.invept.not-for-another-view",
    setup: (t) => {
      t.vm.createView(0);
      code(t, CALL_OUT + CALL_OUT);
    },
    script: () => {
      const count = invepts(0);
      return [
        out()
          .do(count)
          .do((_, b) => b.rights(b.p(0), R, 1))
          .skip(),
        out().do(count).skip(),
      ];
    },
  },
];

export const direct: Case[] = [...switching, ...exceptions, ...parts, ...invalidation];
