// SPDX-License-Identifier: MIT
/** A9: several views, switching, remaps, single-stepping in another view; A7: pause; A12: two vCPUs. */
import * as abi from "../../../src/bridge/abi.ts";
import { type Bench, fromHex, le } from "../bench.ts";
import { type Case, ept, exit, over, trap } from "../case.ts";
import { STACK } from "../layout.ts";
import { R, RW, RWX, VALUE, X } from "./words.ts";

/** A spare page with these bytes at an offset. */
function spare(t: Bench, bytes: string, offset = 0): number {
  const i = t.vm.addSpare(1);
  t.vm.spare(i).set(fromHex(bytes), offset);
  return i;
}

export const views: Case[] = [
  {
    name: "view.rights-are-its-own",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      const v = t.vm.createView(0);
      t.rights(t.p(0), R, v);
    },
    script: [],
    check: (t) =>
      t.vm.rights(0, t.gfn(0)) === RWX && t.vm.rights(1, t.gfn(0)) === R
        ? undefined
        : "rights leak between views",
  },
  {
    name: "view.run-in-view-1",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.vcpu().view = t.vm.createView(0);
      t.rights(t.p(0), R, 1);
    },
    script: (t) => [ept("w", t.p(0), { view: 1, rights: R }).scratch()],
    memory: (t) => [[t.p(0), le(0, 8)]],
  },
  {
    name: "view.copied-on-create",
    setup: (t) => {
      t.rights(t.p(0), R);
      t.rights(t.p(1), X);
      const v = t.vm.createView(0);
      t.rights(t.p(0), RWX);
      const w = t.vm.createView(v);
      const have = [v, w].map((x) =>
        [t.vm.rights(x, t.gfn(0)), t.vm.rights(x, t.gfn(1)), t.vm.rights(x, t.gfn(2))].join(),
      );
      if (have.join(" ") !== "1,4,7 1,4,7")
        throw new Error(`rights of the copies: ${have.join(" ")}`);
    },
    needs: "exec-only",
    script: [],
  },
  {
    name: "view.switched-at-an-exit",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("w", t.p(0), { view: 0 })
        .do((v) => {
          v.view = 1;
        })
        .retry(),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8) + le(VALUE, 8)]],
    check: (t) => (t.vcpu().view === 1 ? undefined : `the view is ${t.vcpu().view}`),
  },
  {
    name: "view.step.silent",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("w", t.p(0)).step(1),
      ept("w", t.p(0, 8), { view: 0, rip: t.symbol("st8x2") + 3 }).step(1),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8) + le(VALUE, 8)]],
    check: (t) => (t.vcpu().view === 0 ? undefined : `the view is ${t.vcpu().view}`),
  },
  {
    name: "view.step.notify",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    script: (t) => [
      ept("w", t.p(0)).step(1, true),
      exit(abi.HVI_EXIT_STEP, { rip: t.symbol("st8x2") + 3 })
        .do((v) => {
          if (v.view !== 0) throw new Error(`after the step the view is ${v.view}`);
        })
        .resume(),
      ept("w", t.p(0, 8)).scratch(),
    ],
    memory: (t) => [[t.p(0), le(VALUE, 8) + le(0, 8)]],
  },
  {
    name: "view.step.violates-there-too",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.createView(0);
    },
    script: (t) => [ept("w", t.p(0), { view: 0 }).step(1), ept("w", t.p(0), { view: 1 }).resume()],
    memory: (t) => [[t.p(0), le(VALUE, 8)]],
  },
  {
    name: "view.step.fault-delivered",
    entry: "ud2",
    setup: (t) => {
      t.vm.createView(0);
      t.code(3, 0, "0f0b");
      t.rights(t.p(3), R);
    },
    // The step is the delivery of #UD.
    script: (t) => [
      ept("x", t.p(3), { rip: t.d(3) }).step(1, true),
      exit(abi.HVI_EXIT_STEP, { rip: t.symbol("handlers") + 16 * 6 }).resume(),
      trap(6, { rip: t.d(3) }),
    ],
    done: false,
  },
  {
    name: "view.step.spare-page-bytes",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0, 0x10) }),
    // What the instruction reads comes from a spare page that only view 1 shows.
    setup: (t) => {
      const v = t.vm.createView(0);
      t.vm.remap(v, t.gfn(0), spare(t, le(VALUE, 8), 0x10));
      t.rights(t.p(0), X);
    },
    needs: "exec-only",
    script: (t) => [ept("r", t.p(0, 0x10)).step(1)],
    end: { rax: VALUE },
    memory: (t) => [[t.p(0, 0x10), le(0, 8)]],
  },
  {
    name: "view.step.throw-away-page",
    entry: "st8_ld8",
    regs: (t) => ({ rdi: t.d(0, 0x10), rsi: t.d(0, 0x10), rax: VALUE }),
    setup: (t) => {
      const v = t.vm.createView(0);
      t.vm.remap(v, t.gfn(0), t.vm.addSpare(1));
      t.rights(t.p(0), R);
    },
    script: (t) => [ept("w", t.p(0, 0x10)).step(1)],
    end: { rbx: 0 },
    memory: (t) => [[t.p(0, 0x10), le(0, 8)]],
    check: (t) => {
      const have = Buffer.from(t.vm.spare(0).subarray(0x10, 0x18)).toString("hex");
      return have === le(VALUE, 8) ? undefined : `the spare page holds ${have}`;
    },
  },
  {
    name: "remap.read-and-write",
    entry: "st8_ld8",
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(0, 8), rax: VALUE }),
    setup: (t) => {
      const v = t.vm.createView(0);
      t.vm.remap(v, t.gfn(0), spare(t, le(0x77, 8), 8));
      t.vcpu().view = v;
    },
    script: [],
    end: { rbx: 0x77 },
    memory: (t) => [[t.p(0), le(0, 16)]],
    check: (t) =>
      Buffer.from(t.vm.spare(0).subarray(0, 8)).toString("hex") === le(VALUE, 8)
        ? undefined
        : "the store missed the spare page",
  },
  {
    name: "remap.other-view-sees-ram",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      const v = t.vm.createView(0);
      t.vm.remap(v, t.gfn(0), spare(t, le(1, 8)));
      t.put64(t.p(0), VALUE);
    },
    script: [],
    end: { rax: VALUE },
  },
  {
    name: "remap.keeps-rights",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      t.rights(t.p(0), R);
      t.vm.remap(0, t.gfn(0), t.vm.addSpare(1));
    },
    script: (t) => [ept("w", t.p(0), { rights: R }).resume()],
    memory: (t) => [[t.p(0), le(0, 8)]],
    check: (t) =>
      Buffer.from(t.vm.spare(0).subarray(0, 8)).toString("hex") === le(VALUE, 8)
        ? undefined
        : "the store missed the spare page",
  },
  {
    name: "remap.undone",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), VALUE);
      t.vm.remap(0, t.gfn(0), t.vm.addSpare(1));
      t.vm.remap(0, t.gfn(0), -1);
    },
    script: [],
    end: { rax: VALUE },
  },
  {
    name: "remap.copied-with-the-view",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.vm.remap(0, t.gfn(0), spare(t, le(VALUE, 8)));
      const v = t.vm.createView(0);
      t.vm.remap(0, t.gfn(0), -1);
      t.vcpu().view = v;
    },
    script: [],
    end: { rax: VALUE },
  },
  {
    name: "remap.code",
    // The cloak: MOV RAX, [RIP + 0x19] runs from the spare page, and its read is stepped in view 0, which shows RAM.
    setup: (t) => {
      t.poke(t.p(3), "488b0519000000 e6ee");
      t.put64(t.p(3, 0x20), VALUE);
      const v = t.vm.createView(0);
      t.vm.remap(v, t.gfn(3), spare(t, "488b0519000000 b307 e6ee"));
      t.rights(t.p(3), X, v);
      t.vcpu().view = v;
      t.cpu.set("rip", t.d(3));
    },
    needs: "exec-only",
    script: (t) => [ept("r", t.p(3, 0x20), { rip: t.d(3), rights: X, view: 1 }).step(0)],
    end: { rax: VALUE, rbx: 7 },
  },
  {
    name: "remap.while-running",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => {
      t.put64(t.p(0), 1n);
      t.rights(t.p(0), 0);
    },
    script: (t) => [
      ept("r", t.p(0))
        .do((_, b) => {
          b.vm.remap(0, b.gfn(0), spare(b, le(VALUE, 8)));
        })
        .resume(),
    ],
    end: { rax: VALUE },
  },
  {
    name: "remap.two-gfns-one-spare",
    entry: "st8_ld8",
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(1), rax: VALUE }),
    setup: (t) => {
      const s = t.vm.addSpare(1);
      t.vm.remap(0, t.gfn(0), s);
      t.vm.remap(0, t.gfn(1), s);
    },
    script: [],
    end: { rbx: VALUE },
  },
  {
    name: "view.engine-writes-ram-code",
    // Code that ran is changed by the engine at an exit, and runs changed.
    setup: (t) => {
      t.code(3, 0, "e642 b001 e642 ebf8");
    },
    script: [0, 1, 2].map((i) =>
      exit(abi.HVI_EXIT_IO, { number: 0x42, value: i === 2 ? 0x7 : i }).do((v, t) => {
        if (i === 1) {
          t.poke(t.p(3, 0), "b007e6429090e6ee");
          v.rip = Number(BigInt.asIntN(64, t.d(3)));
          v.retry();
        } else v.skip();
      }),
    ),
  },
  {
    name: "view.highest-number",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      let last = 0;
      for (let i = 1; i < t.vm.info.maxViews; i++) last = t.vm.createView(0);
      t.rights(t.p(0), R, last);
      t.vcpu().view = last;
    },
    script: (t) => [ept("w", t.p(0), { view: t.vm.info.maxViews - 1 }).resume()],
  },
  {
    name: "view.destroyed-and-made-again",
    setup: (t) => {
      const v = t.vm.createView(0);
      t.rights(t.p(0), R, v);
      t.vm.destroyView(v);
      const w = t.vm.createView(0);
      if (w !== v) throw new Error(`view ${v} was freed, the next one is ${w}`);
      if (t.vm.rights(w, t.gfn(0)) !== RWX)
        throw new Error("a new view has the rights of the one before it");
    },
    script: [],
  },
];

/** The same step many times. */
const times = <T>(n: number, s: () => T): T[] => Array.from({ length: n }, s);

/** Sets a second vCPU to work on an entry. */
function second(t: Bench, entry: string, regs: Parameters<Bench["cpu"]["setAll"]>[0]): void {
  t.cpus[1]!.setAll({ ...regs, rip: t.symbol(entry), rsp: STACK - 0x800 });
}

const ROUNDS = 300;
export const smp: Case[] = [
  {
    name: "smp.hooked-store.nothing-lost",
    vcpus: 2,
    entry: "count_locked",
    regs: (t) => ({ rdi: t.d(0), rsi: t.d(1), rcx: ROUNDS }),
    setup: (t) => {
      second(t, "count_locked", { rdi: t.d(0), rsi: t.d(1, 8), rcx: ROUNDS });
      t.rights(t.p(1), R);
    },
    script: [],
    scripts: (t) => [
      times(ROUNDS, () => ept("w", t.p(1), { rip: t.symbol("count_locked") + 4 }).resume()),
      times(ROUNDS, () => ept("w", t.p(1, 8), { rip: t.symbol("count_locked") + 4 }).resume()),
    ],
    memory: (t) => [
      [t.p(0), le(2 * ROUNDS, 8)],
      [t.p(1), le(1, 8) + le(1, 8)],
    ],
    brief: true,
  },
  {
    name: "smp.hooked-atomic.nothing-lost",
    vcpus: 2,
    entry: "count_hooked",
    regs: (t) => ({ rdi: t.d(0), rcx: ROUNDS }),
    setup: (t) => {
      second(t, "count_hooked", { rdi: t.d(0), rcx: ROUNDS });
      t.rights(t.p(0), R);
    },
    script: [],
    scripts: (t) =>
      [0, 1].map(() => times(ROUNDS, () => ept("rw", t.p(0), { rights: R }).resume())),
    memory: (t) => [[t.p(0), le(2 * ROUNDS, 8)]],
    brief: true,
  },
  {
    // vCPU 0 runs supplied code from a page that it also writes to, as vCPU 1 does at that time.
    name: "smp.emulated-code.nothing-lost",
    vcpus: 2,
    regs: (t) => ({ rip: t.d(7), rdi: t.d(7, 0x100), rax: VALUE }),
    setup: (t) => {
      t.poke(t.p(7), "90 90 90 e6ee");
      t.rights(t.p(7), RW);
      second(t, "st8", { rdi: t.d(7, 0x200), rax: VALUE });
    },
    script: [],
    scripts: (t) => [
      [
        ept("x", t.p(7), { rights: RW }).do((v) => v.emulate(t.p(7), fromHex("48 89 07"))),
        ept("x", t.p(7, 3), { rights: RW }).resume(),
      ],
      [],
    ],
    memory: (t) => [
      [t.p(7), "909090e6ee"],
      [t.p(7, 0x100), le(VALUE, 8)],
      [t.p(7, 0x200), le(VALUE, 8)],
    ],
  },
  {
    name: "smp.hooked-atomic.stepped",
    vcpus: 2,
    entry: "count_hooked",
    regs: (t) => ({ rdi: t.d(0), rcx: ROUNDS }),
    setup: (t) => {
      second(t, "count_hooked", { rdi: t.d(0), rcx: ROUNDS });
      t.vm.createView(0);
      t.rights(t.p(0), R);
    },
    script: [],
    // While one steps in view 1 the other must still exit.
    scripts: (t) =>
      [0, 1].map(() => times(ROUNDS, () => ept("rw", t.p(0), { rights: R, view: 0 }).step(1))),
    memory: (t) => [[t.p(0), le(2 * ROUNDS, 8)]],
    brief: true,
  },
  {
    name: "smp.hooked-atomic.emulated",
    vcpus: 2,
    entry: "count_hooked",
    regs: (t) => ({ rdi: t.d(0), rcx: ROUNDS }),
    setup: (t) => {
      second(t, "count_hooked", { rdi: t.d(0), rcx: ROUNDS });
      t.rights(t.p(0), R);
    },
    script: [],
    scripts: (t) =>
      [0, 1].map(() =>
        times(ROUNDS, () => [
          ept("rw", t.p(0), { rights: R }).emulate([[t.p(0, 8), "ff"]], {
            write: true,
            notify: true,
          }),
          over(t.symbol("count_hooked") + 4),
        ]).flat(),
      ),
    memory: (t) => [[t.p(0), le(2 * ROUNDS, 8)]],
    brief: true,
  },
  {
    // vCPU 0 is paused with its reply taken; what vCPU 1 counts meanwhile is what it goes on from.
    name: "smp.hooked-atomic.paused-with-its-reply",
    vcpus: 2,
    entry: "count_hooked",
    regs: (t) => ({ rdi: t.d(0), rcx: 1 }),
    setup: (t) => {
      second(t, "watch_flag", { rsi: t.d(1) });
      t.rights(t.p(0), R);
    },
    script: [],
    scripts: (t) => [
      [
        ept("rw", t.p(0))
          .emulate([[t.p(0, 8), "ff"]], { write: true, notify: true })
          .do((_, b) => {
            b.vm.pause(0);
            b.cpus[1]!.setAll({ rip: b.symbol("count_hooked"), rdi: b.d(0), rcx: 5 });
          }),
        exit(abi.HVI_EXIT_PAUSED).resume(),
        over(t.symbol("count_hooked") + 4),
      ],
      [
        ...times(4, () => ept("rw", t.p(0), { rip: t.symbol("count_hooked") }).resume()),
        ept("rw", t.p(0), { rip: t.symbol("count_hooked") }).resume(true),
        over(t.symbol("count_hooked") + 4).do((_, b) => b.vm.resume(0)),
      ],
    ],
    memory: (t) => [[t.p(0), le(6, 8)]],
    brief: true,
  },
  {
    name: "smp.unhooked-atomic",
    vcpus: 2,
    entry: "count_hooked",
    regs: (t) => ({ rdi: t.d(0), rcx: 20000 }),
    setup: (t) => second(t, "count_hooked", { rdi: t.d(0), rcx: 20000 }),
    script: [],
    scripts: [[], []],
    memory: (t) => [[t.p(0), le(40000, 8)]],
    brief: true,
  },
  {
    name: "smp.a-view-each",
    vcpus: 2,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => {
      second(t, "st8", { rdi: t.d(0, 8), rax: VALUE });
      const v = t.vm.createView(0);
      t.rights(t.p(0), R, v);
      t.vcpu(1).view = v;
    },
    script: [],
    scripts: (t) => [[], [ept("w", t.p(0, 8), { view: 1 }).scratch()]],
    memory: (t) => [[t.p(0), le(VALUE, 8) + le(0, 8)]],
  },
  {
    name: "smp.one-sees-the-other",
    vcpus: 2,
    entry: "ping",
    regs: (t) => ({ rsi: t.d(0), rax: 7, rdi: t.d(1), rbx: 9 }),
    setup: (t) => {
      t.put64(t.p(0), 7n);
      second(t, "ping", { rsi: t.d(1), rax: 9, rdi: t.d(2), rbx: 1 });
    },
    script: [],
    scripts: [[], []],
    // vCPU 0 waits for memory that the engine fills before the run.
    check: (t) =>
      t.get64(t.p(2)) === 1n ? undefined : "the second vCPU did not see the first's store",
    brief: true,
  },
  {
    name: "smp.one-sees-the-others-code",
    vcpus: 2,
    // vCPU 1 spins in code that vCPU 0 changes: EB FE becomes 90 90.
    entry: "st2",
    regs: (t) => ({ rdi: t.d(3), rax: 0x9090 }),
    setup: (t) => {
      t.poke(t.p(3), "ebfe e6ee");
      t.cpus[1]!.setAll({ rip: t.d(3), rsp: STACK - 0x800 });
    },
    script: [],
    scripts: [[], []],
  },
  {
    name: "smp.rights-change-reaches-both",
    vcpus: 2,
    entry: "out1",
    regs: { rdx: 0x60 },
    setup: (t) => second(t, "out1", { rdx: 0x61 }),
    script: [],
    // At the first exit of each its own next page loses X.
    scripts: (t) => [
      [
        exit(abi.HVI_EXIT_IO, { number: 0x60 }).do((v, b) => {
          b.put64(b.p(0), VALUE);
          v.rip = b.symbol("ld8");
          b.cpus[0]!.set("rsi", b.d(0));
          b.rights(b.p(0), 0);
          v.retry();
        }),
        ept("r", t.p(0), { rip: "ld8" }).resume(),
      ],
      [
        exit(abi.HVI_EXIT_IO, { number: 0x61 }).do((v, b) => {
          v.rip = b.symbol("ld8");
          b.cpus[1]!.set("rsi", b.d(1));
          b.rights(b.p(1), 0);
          v.retry();
        }),
        ept("r", t.p(1), { rip: "ld8" }).resume(),
      ],
    ],
  },
  {
    name: "smp.waits-for-sipi",
    vcpus: 2,
    entry: "nops",
    setup: (t) => t.cpus[1]!.setAll({ rip: t.symbol("nops"), mpState: abi.HVI_MP_WAIT_SIPI }),
    script: [],
    scripts: [
      [
        exit(abi.HVI_EXIT_IO, { number: 0xee }).do((v, t) => {
          t.cpus[1]!.set("mpState", abi.HVI_MP_RUNNING);
          t.cpus[0]!.set("mpState", abi.HVI_MP_WAIT_SIPI);
          v.skip();
        }),
      ],
      [exit(abi.HVI_EXIT_IO, { number: 0xee })],
    ],
    done: false,
  },
  {
    name: "pause.one-of-two",
    vcpus: 2,
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0), rax: 1 }),
    setup: (t) => {
      second(t, "st8", { rdi: t.d(0, 8), rax: 1 });
      t.vm.pause(1);
    },
    script: [],
    scripts: [
      [
        exit(abi.HVI_EXIT_IO, { number: 0xee }).do((_, t) => {
          if (t.get64(t.p(0, 8)) !== 0n) throw new Error("the paused vCPU ran");
          t.cpus[0]!.set("mpState", abi.HVI_MP_WAIT_SIPI);
          t.vm.resume(1);
        }),
      ],
      [exit(abi.HVI_EXIT_PAUSED), exit(abi.HVI_EXIT_IO, { number: 0xee })],
    ],
    done: false,
    memory: (t) => [[t.p(0), le(1, 8) + le(1, 8)]],
  },
  {
    name: "pause.kick-before-run",
    entry: "nops",
    setup: (t) => t.vm.kick(),
    script: [exit(abi.HVI_EXIT_PAUSED, { rip: "nops" })],
  },
  {
    name: "pause.kick-while-spinning",
    entry: "watch_flag",
    regs: (t) => ({ rsi: t.d(0) }),
    // The kick comes at an exit, the flag with it.
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [
      ept("r", t.p(0))
        .do((_, b) => {
          b.vm.kick();
        })
        .retry(),
      exit(abi.HVI_EXIT_PAUSED).do((_, b) => {
        b.poke(b.p(0), "01");
        b.rights(b.p(0), RW);
      }),
    ],
  },
];
