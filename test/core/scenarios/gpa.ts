// SPDX-License-Identifier: MIT
/** Hooks on physical pages beyond single instructions: several on a page, changes while they hold, implicit accesses. */
import {
  HVI_ACCESS_EVENT,
  HVI_ACCESS_GVA,
  HVI_ACCESS_USER,
  HVI_ACCESS_WALK,
  HVI_R,
  HVI_W,
  HVI_X,
} from "../../../src/bridge/index.ts";
import {
  ALLOW,
  DENY,
  type HookAction,
  type PageAccess,
  REPLIED,
  RETRY,
} from "../../../src/ept/gpa-hooks.ts";
import { LARGE, PAGE, SOURCE, TARGET } from "../layout.ts";
import { Answer, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

/** A space with pages at TARGET; their frames. */
function target(t: Trial, pages = 1): { space: Space; frames: number[]; va: number } {
  const space = t.guest.space();
  const va = TARGET[t.mode];
  return { space, va, frames: space.mapNew(va, pages) };
}

/** Stores AX at an address from ring 3. */
function store(t: Trial, space: Space, va: number, ax: number, stub = "mov4_st"): number {
  return t.guest.run(stub, { ring: 3, space, registers: { ax, di: va } }).fault;
}

const kind = (a: PageAccess): string =>
  [
    a.access & HVI_R ? "r" : "",
    a.access & HVI_W ? "w" : "",
    a.access & HVI_X ? "x" : "",
    a.access & HVI_ACCESS_EVENT ? " event" : "",
    a.access & HVI_ACCESS_WALK ? " walk" : "",
    a.access & HVI_ACCESS_USER ? " user" : "",
    a.access & HVI_ACCESS_GVA ? "" : " no address",
  ].join("");

const parts: Scenario = {
  name: "gpa.parts-of-a-page",
  run: (t) => {
    const { space, va, frames } = target(t);
    const gfn = frames[0]! / PAGE;
    const called: string[] = [];
    const hooks = [
      [0, 8],
      [8, 16],
      [12, 20],
      [4095, 4096],
    ].map(([start, end]) =>
      t.core.hooks.add(
        gfn,
        HVI_W,
        () => {
          called.push(`${start}`);
          return ALLOW;
        },
        { start, end },
      ),
    );
    t.core.hooks.commit();
    for (const [offset, stub, should] of [
      [0, "mov1_st", "0"],
      [6, "mov4_st", "0 8"],
      [8, "mov4_st", "8"],
      [13, "mov2_st", "8 12"],
      [16, "mov1_st", "12"],
      [20, "movups_st", ""],
      [2, "movups_st", "0 8 12"],
      [4095, "mov1_st", "4095"],
      [4094, "mov1_st", ""],
      [100, "mov4_st", ""],
    ] as const) {
      called.length = 0;
      t.same("exception", store(t, space, va + offset, 0x55aa, stub), -1);
      t.same(`${stub} at ${offset}`, called.join(" "), should);
    }
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

const several: Scenario = {
  name: "gpa.several-on-a-page",
  run: (t) => {
    const { space, va, frames } = target(t);
    const gfn = frames[0]! / PAGE;
    const called: string[] = [];
    const add = (name: string, right: number, wish: typeof ALLOW | typeof DENY, priority: number) =>
      t.core.hooks.add(
        gfn,
        right,
        () => {
          called.push(name);
          return wish;
        },
        { priority },
      );
    const hooks = [
      add("read", HVI_R, ALLOW, 0),
      add("write", HVI_W, ALLOW, 1),
      add("first", HVI_W, ALLOW, 9),
      add("fetch", HVI_X, ALLOW, 5),
    ];
    t.core.hooks.commit();
    store(t, space, va, 1);
    t.same("told of a store", called.join(" "), "first write");
    called.length = 0;
    store(t, space, va, 1, "add4");
    t.same("told of a add", called.join(" "), "first write read");
    t.same("memory", t.guest.memory.read32(frames[0]!), 2);
    called.length = 0;
    t.guest.run("mov4_ld", { ring: 3, space, registers: { si: va } });
    t.same("told of a load", called.join(" "), "read");
    called.length = 0;
    const deny = add("deny", HVI_W, DENY, 1);
    t.core.hooks.commit();
    store(t, space, va, 77);
    t.same("told of a store that one denies", called.join(" "), "first write deny");
    t.same("memory", t.guest.memory.read32(frames[0]!), 2);
    t.core.hooks.remove(deny);
    t.core.hooks.commit();
    store(t, space, va, 78);
    t.same("memory", t.guest.memory.read32(frames[0]!), 78);
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

const inside: Scenario = {
  name: "gpa.changes-inside-a-callback",
  run: (t) => {
    const { space, va, frames } = target(t, 2);
    const { hooks } = t.core;
    const called: string[] = [];
    const once = (name: string, page: number, action: HookAction, then?: () => void): void => {
      hooks.add(frames[page]! / PAGE, HVI_W, (_, hook) => {
        called.push(name);
        hooks.remove(hook);
        then?.();
        return action;
      });
    };
    // Another in its place, and one on the other page: both hold from the next access on.
    once("first", 0, ALLOW, () => {
      once("second", 0, ALLOW);
      once("third", 1, DENY);
    });
    hooks.commit();
    for (let n = 1; n <= 3; n++) store(t, space, va, n);
    t.same("memory", t.guest.memory.read32(frames[0]!), 3);
    for (let n = 1; n <= 2; n++) store(t, space, va + PAGE, n);
    t.same("memory of the other", t.guest.memory.read32(frames[1]!), 2);
    t.same("called", called.join(" "), "first second third");
    t.same("exits", t.guest.exits, 3);
  },
};

const retry: Scenario = {
  name: "gpa.retry-after-removal",
  run: (t) => {
    const { space, va, frames } = target(t);
    t.core.hooks.add(frames[0]! / PAGE, HVI_W, (_, hook) => {
      t.core.hooks.remove(hook);
      return RETRY;
    });
    t.core.hooks.commit();
    store(t, space, va, 5, "xadd4");
    t.same("memory", t.guest.memory.read32(frames[0]!), 5);
    t.same("exits", t.guest.exits, 1);
  },
};

const skip: Scenario = {
  name: "gpa.reply-of-its-own",
  run: (t) => {
    const { space, va, frames } = target(t);
    t.guest.put64(frames[0]!, 0x1111222233334444n);
    const hook = t.core.hooks.add(frames[0]! / PAGE, HVI_R, (a) => {
      a.vcpu.emulate(a.gpa, Uint8Array.of(1, 2, 3, 4));
      return REPLIED;
    });
    t.core.hooks.commit();
    for (const [stub, should] of [
      ["mov4_ld", 0x04030201n],
      ["movzx1_ld", 1n],
      ["add4_ld", 0x04030202n],
    ] as const) {
      const o = t.guest.run(stub, { ring: 3, space, registers: { ax: 1, si: va } });
      t.same(stub, o.registers[0], should);
    }
    t.same("memory", t.guest.get64(frames[0]!), 0x1111222233334444n);
    t.core.hooks.remove(hook);
  },
};

const remapped: Scenario = {
  name: "gpa.page-remapped",
  run: (t) => {
    const { space, va, frames } = target(t);
    const other = t.guest.frame();
    const deny = new Answer(DENY);
    const hook = t.core.hooks.add(frames[0]! / PAGE, HVI_W, deny.handler);
    t.core.hooks.commit();
    store(t, space, va, 1);
    space.map(va, other);
    store(t, space, va, 2);
    t.same("the new frame", t.guest.memory.read32(other), 2);
    // A second way to the old one, of another size.
    const base = 0x40000000;
    space.mapLarge(base, LARGE);
    space.map(SOURCE[t.mode], frames[0]!);
    store(t, space, SOURCE[t.mode], 3);
    t.same("the old frame", t.guest.memory.read32(frames[0]!), 0);
    t.same("calls", deny.calls, 2);
    t.core.hooks.remove(hook);
    const large = t.core.hooks.add((LARGE + 0x5000) / PAGE, HVI_W, deny.handler);
    t.core.hooks.commit();
    store(t, space, base + 0x5ff0, 4, "movups_st");
    store(t, space, base + 0x6000, 5);
    t.same("in the large page", t.guest.memory.read32(LARGE + 0x5ff0), 0);
    t.same("beside it", t.guest.memory.read32(LARGE + 0x6000), 5);
    t.same("calls", deny.calls, 3);
    t.core.hooks.remove(large);
  },
};

const host: Scenario = {
  name: "gpa.write-by-the-host",
  run: (t) => {
    const { space, va, frames } = target(t);
    let calls = 0;
    const hook = t.core.hooks.add(frames[0]! / PAGE, HVI_R, (a) => {
      calls++;
      // Changed between the exit and the access: the guest reads what stands there then.
      if (calls === 2) t.guest.memory.write32(a.gpa, 99);
      return ALLOW;
    });
    const deny = new Answer(DENY);
    const write = t.core.hooks.add(frames[0]! / PAGE, HVI_W, deny.handler);
    t.core.hooks.commit();
    const load = () =>
      t.guest.run("mov4_ld", { ring: 3, space, registers: { si: va } }).registers[0];
    t.guest.memory.write32(frames[0]!, 42);
    t.same("calls after the host's write", calls, 0);
    t.same("read", load(), 42n);
    t.same("read", load(), 99n);
    // A device asks first; the answer is the hook's.
    const action = t.core.hooks.ask(t.guest.vcpu, frames[0]! + 4, 4, Number.NaN, HVI_W);
    t.same("a device's write", action, DENY);
    t.same("calls", deny.calls, 1);
    t.core.hooks.remove(hook);
    t.core.hooks.remove(write);
  },
};

const execute: Scenario = {
  name: "gpa.execute",
  run: (t) => {
    const { space, va, frames } = target(t, 2);
    // inc %eax; ret; and the same over the page boundary (90: nop).
    const code = Uint8Array.of(0x83, 0xc0, 0x01, 0xc3);
    t.guest.ram.set(code, frames[0]! + 16);
    t.guest.ram.set(code.subarray(0, 2), frames[0]! + PAGE - 2);
    t.guest.ram.set(code.subarray(2), frames[1]!);
    const seen: string[] = [];
    const hooks = frames.map((pa, page) =>
      t.core.hooks.add(pa / PAGE, HVI_X, (a) => {
        seen.push(`${kind(a)} ${page}:${a.gpa % PAGE}`);
        return ALLOW;
      }),
    );
    t.core.hooks.commit();
    for (const ring of [0, 3] as const) {
      for (const at of [16, PAGE - 2]) {
        seen.length = 0;
        const o = t.guest.run("call_ax", { ring, space, registers: { ax: va + at } });
        t.same("exception", o.fault, -1);
        t.same(
          "result",
          Number(BigInt.asUintN(32, o.registers[0] ?? 0n)),
          ((va + at) % 2 ** 32) + 1,
        );
        t.line(`ring ${ring} at ${at}: ${seen.join(", ")}`);
      }
    }
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

/** Pages that the CPU reads and writes by itself; which kinds of access a hook on each is told of. */
const implicit: Scenario = {
  name: "gpa.implicit",
  run: (t) => {
    const { space, va } = target(t);
    const run = (
      what: string,
      gpa: number,
      right: number,
      stub: string,
      ring: 0 | 3,
      shown: (kind: string) => boolean = () => true,
    ): void => {
      const seen = new Set<string>();
      const hook = t.core.hooks.add(Math.floor(gpa / PAGE), right, (a) => {
        seen.add(kind(a));
        return ALLOW;
      });
      t.core.hooks.commit();
      const o = t.guest.run(stub, { ring, space, registers: { di: va } });
      t.core.hooks.remove(hook);
      t.core.hooks.commit();
      t.check(seen.size > 0, `${what}: not called`);
      t.line(`${what}: ${[...seen].filter(shown).sort().join(", ")}; vector ${o.fault}`);
    };
    run("IDT at an exception", t.guest.at("idt"), HVI_R, "undefined", 0);
    run("IDT at INT", t.guest.at("idt"), HVI_R, "nothing", 3);
    run("GDT at a return to ring 3", t.guest.at("gdt"), HVI_R, "nothing", 3);
    run("TSS at INT from ring 3", t.guest.at("tss"), HVI_R, "nothing", 3);
    run("stack at INT from ring 3", t.guest.at("trap_stack"), HVI_W, "nothing", 3);
    run("stack at an exception", t.guest.at("kernel_stack"), HVI_W, "undefined", 0);
    for (const [i, at] of space.path(va).entries()) {
      // PDPTEs of PAE are in the CPU; they are not read by a walk.
      if (t.mode === "pae" && i === 0) continue;
      // Whether the kernel's half is walked depends on what the CPU still has in its caches.
      run(`table ${i} at a store`, at, HVI_R, "mov4_st", 3, (k) => k.includes("user"));
    }
  },
};

const strings: Scenario = {
  name: "gpa.string-over-pages",
  run: (t) => {
    const { space, va, frames } = target(t, 3);
    const calls = [0, 0, 0];
    const hooks = [1, 2].map((page) =>
      t.core.hooks.add(frames[page]! / PAGE, HVI_W, () => {
        calls[page]!++;
        return page === 1 ? DENY : ALLOW;
      }),
    );
    t.core.hooks.commit();
    const start = PAGE - 64;
    const count = (2 * PAGE - 64 + 64) / 4 + 16;
    const registers = { ax: 0xabcdef01, cx: count, di: va + start };
    const o = t.guest.run("rep_stosl", { ring: 3, space, registers });
    t.same("exception", o.fault, -1);
    t.same("CX", o.registers[1], 0n);
    t.same("DI", o.registers[7], BigInt(va + start + 4 * count));
    const sum = (page: number) => t.guest.bytes(frames[page]!, PAGE).reduce((n, b) => n + b, 0);
    const each = 0xab + 0xcd + 0xef + 0x01;
    t.same("first page", sum(0), 16 * each);
    t.same("second page", sum(1), 0);
    t.same("third page", sum(2), (count - 16 - PAGE / 4) * each);
    t.line(`calls ${calls.join(" ")}`);
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

/** Not an access, however near: the guest's own pager moves a hooked page away. */
const swapped: Scenario = {
  name: "gpa.frame-swapped-out",
  run: (t) => {
    const { space, va, frames } = target(t);
    t.guest.memory.write32(frames[0]!, 7);
    const allow = new Answer(ALLOW);
    const hook = t.core.hooks.add(frames[0]! / PAGE, HVI_W, allow.handler);
    t.core.hooks.commit();
    space.swapOut(va);
    store(t, space, va, 3, "add4");
    const now = space.memory.gpaOf(va);
    t.check(now >= 0 && now !== frames[0], "it is not in another frame");
    t.same("memory", t.guest.memory.read32(now), 10);
    t.same("calls", allow.calls, 0);
    // The old frame's next owner is met: it is zeroed when it is given out.
    const left = t.guest.call("frames_left");
    let n = 0;
    while (allow.calls === 0 && n++ < left) t.guest.frame();
    t.check(allow.calls > 0, "the frame was never given out again");
    t.core.hooks.remove(hook);
  },
};

/** Accessed and dirty bits are the CPU's own business, and are set all the same. */
const walks: Scenario = {
  name: "gpa.accessed-and-dirty",
  run: (t) => {
    const { space, va } = target(t);
    const deny = new Answer(DENY);
    const tables = new Set(space.path(va).map((at) => Math.floor(at / PAGE)));
    const hooks = [...tables].map((gfn) => t.core.hooks.add(gfn, HVI_W, deny.handler));
    t.core.hooks.commit();
    const [accessed, dirty] = [1 << 5, 1 << 6];
    const bits = () => t.guest.memory.read32(space.entryAt(va)) & (accessed | dirty);
    t.same("bits before", bits(), 0);
    t.guest.run("mov4_ld", { ring: 3, space, registers: { si: va } });
    t.same("bits after a read", bits(), accessed);
    t.same("exception", store(t, space, va, 1), -1);
    t.same("bits after a write", bits(), accessed | dirty);
    t.same("calls", deny.calls, 0);
    for (const h of hooks) t.core.hooks.remove(h);
  },
};

export const gpa: readonly Scenario[] = [
  walks,
  parts,
  several,
  inside,
  retry,
  skip,
  remapped,
  host,
  execute,
  implicit,
  strings,
  swapped,
];
