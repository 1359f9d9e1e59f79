// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  EXIT_GVA,
  EXIT_NUMBER,
  EXIT_OLD,
  EXIT_REASON,
  EXIT_VALUE,
  HVI_DTR_LGDT,
  HVI_DTR_LIDT,
  HVI_DTR_LLDT,
  HVI_DTR_SIDT,
  HVI_EXIT_CR_WRITE,
  HVI_EXIT_DTR,
  HVI_EXIT_MSR_READ,
  HVI_EXIT_MSR_WRITE,
  HVI_EXIT_XSETBV,
  HVI_INTERCEPT_CR0_WRITE,
  HVI_INTERCEPT_CR3_WRITE,
  HVI_INTERCEPT_CR4_WRITE,
  HVI_INTERCEPT_CR8_WRITE,
  HVI_INTERCEPT_DTR,
  HVI_INTERCEPT_MSR_READ,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_INTERCEPT_XSETBV,
  HVI_REPLY_INJECT,
  HVI_REPLY_RESUME,
  HVI_REPLY_RETRY,
  HVI_REPLY_SKIP,
  HviError,
  type Vcpu,
} from "../bridge/index.ts";
import { ALLOW, DENY, type HookAction, REPLIED, RETRY } from "../hook-action.ts";
import { type RegisterAccess, type RegisterHook, RegisterHooks } from "./register-hooks.ts";

const LSTAR = 0xc0000082;
const WP = 1 << 16;
const SMEP = 1 << 20;
const SMAP = 1 << 21;

interface Exit {
  reason: number;
  number?: number;
  value?: number;
  old?: number;
  gva?: number;
  vcpu?: number;
}

function setup(vcpus = 1) {
  const { vm, backend } = fakeVm({ vcpus });
  const hooks = new RegisterHooks(vm);
  const put = (words: Uint32Array, offset: number, value: number): void => {
    words[offset >>> 2] = value >>> 0;
    words[(offset >>> 2) + 1] = Math.floor(value / 2 ** 32) >>> 0;
  };
  const exit = (o: Exit): Vcpu => {
    backend.exits.push((page) => {
      const words = page(o.vcpu ?? 0);
      words[EXIT_REASON >>> 2] = o.reason;
      words[EXIT_NUMBER >>> 2] = o.number ?? 0;
      put(words, EXIT_VALUE, o.value ?? 0);
      put(words, EXIT_OLD, o.old ?? 0);
      put(words, EXIT_GVA, o.gva ?? -1);
      return o.vcpu ?? 0;
    });
    return vm.run();
  };
  /** Whether the hooks took the exit, and with which reply. */
  const go = (o: Exit): [boolean, number] => {
    const vcpu = exit(o);
    return [hooks.dispatch(vcpu), vcpu.replyAction];
  };
  const intercept = (kind: number, index = 0) => backend.intercepts.get(`${kind}:${index}`);
  return { vm, backend, hooks, exit, go, intercept };
}

const cr = (number: number, value: number, old: number): Exit => {
  return { reason: HVI_EXIT_CR_WRITE, number, value, old };
};
const wrmsr = (number: number, value = 0, old = 0): Exit => {
  return { reason: HVI_EXIT_MSR_WRITE, number, value, old };
};

describe("intercepts", () => {
  test("are on from the first hook to the last, with the bits of all hooks", () => {
    const { hooks, intercept } = setup();
    const one = hooks.addCr(4, () => ALLOW, { mask: SMEP });
    const two = hooks.addCr(4, () => ALLOW, { mask: SMAP });
    expect(intercept(HVI_INTERCEPT_CR4_WRITE)).toBe(SMEP | SMAP);
    hooks.remove(one);
    expect(intercept(HVI_INTERCEPT_CR4_WRITE)).toBe(SMAP);
    hooks.remove(two);
    hooks.remove(two);
    expect(intercept(HVI_INTERCEPT_CR4_WRITE)).toBeUndefined();
    expect(hooks.count).toBe(0);
  });

  test.each([
    ["CR0", (h: RegisterHooks) => h.addCr(0, () => ALLOW), HVI_INTERCEPT_CR0_WRITE, 0xffffffff],
    ["CR3", (h: RegisterHooks) => h.addCr(3, () => ALLOW), HVI_INTERCEPT_CR3_WRITE, 1],
    ["bits of CR3", (h: RegisterHooks) => h.addCr(3, () => ALLOW, { mask: 0xffffff000 }), 4, 1],
    ["CR8", (h: RegisterHooks) => h.addCr(8, () => ALLOW), HVI_INTERCEPT_CR8_WRITE, 1],
    ["XCR", (h: RegisterHooks) => h.addXcr(() => ALLOW), HVI_INTERCEPT_XSETBV, 1],
    ["tables", (h: RegisterHooks) => h.addDtr(0x83, () => ALLOW), HVI_INTERCEPT_DTR, 0x83],
  ])("of %s are what the interface wants", (_name, add, kind, mask) => {
    const { hooks, intercept } = setup();
    const hook = add(hooks);
    expect(intercept(kind)).toBe(mask);
    hooks.remove(hook);
    expect(intercept(kind)).toBeUndefined();
  });

  test("that somebody else had on stay on, with the bits that were there", () => {
    const { vm, hooks, intercept } = setup();
    vm.intercept(HVI_INTERCEPT_CR0_WRITE, 0, 8);
    vm.intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR, 1);
    const all = [hooks.addCr(0, () => ALLOW, { mask: WP }), hooks.addMsr(LSTAR, () => ALLOW)];
    expect(intercept(HVI_INTERCEPT_CR0_WRITE)).toBe(WP | 8);
    for (const hook of all) hooks.remove(hook);
    expect(intercept(HVI_INTERCEPT_CR0_WRITE)).toBe(8);
    expect(intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBe(1);
  });

  test("of reads and writes of an MSR are two", () => {
    const { hooks, intercept } = setup();
    const read = hooks.addMsr(LSTAR, () => ALLOW, { read: true });
    expect(intercept(HVI_INTERCEPT_MSR_READ, LSTAR)).toBe(1);
    expect(intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBeUndefined();
    hooks.addMsr(LSTAR, () => ALLOW);
    hooks.remove(read);
    expect(intercept(HVI_INTERCEPT_MSR_READ, LSTAR)).toBeUndefined();
    expect(intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBe(1);
  });

  test("that the backend refuses leave no hook", () => {
    const { hooks, backend, go } = setup();
    backend.failNth(1, 22, "HVI_INTERCEPT");
    expect(() => hooks.addMsr(0x5000, () => DENY)).toThrow(HviError);
    expect(hooks.count).toBe(0);
    expect(go(wrmsr(0x5000))).toEqual([false, HVI_REPLY_RESUME]);
  });

  test("are not asked of the backend again for a hook that changes nothing", () => {
    const { hooks, backend } = setup();
    const one = hooks.addMsr(LSTAR, () => ALLOW);
    hooks.addMsr(LSTAR, () => ALLOW);
    hooks.remove(one);
    expect(backend.count("HVI_INTERCEPT")).toBe(1);
  });
});

describe("answers", () => {
  test.each([
    [ALLOW, HVI_REPLY_RESUME],
    [DENY, HVI_REPLY_SKIP],
    [RETRY, HVI_REPLY_RETRY],
  ] as const)("%i becomes reply %i", (action, reply) => {
    const { hooks, go } = setup();
    hooks.addMsr(LSTAR, () => action);
    expect(go(wrmsr(LSTAR, 5))).toEqual([true, reply]);
  });

  test("a hook may reply itself", () => {
    const { hooks, go } = setup();
    hooks.addXcr((access) => {
      access.vcpu.injectReply();
      return REPLIED;
    });
    expect(go({ reason: HVI_EXIT_XSETBV, value: 7, old: 3 })).toEqual([true, HVI_REPLY_INJECT]);
  });

  test("the greatest wins, and all hooks are asked", () => {
    const { hooks, go } = setup();
    const actions: HookAction[] = [ALLOW, DENY, ALLOW];
    const all = actions.map((action) => hooks.addMsr(LSTAR, () => action));
    expect(go(wrmsr(LSTAR))).toEqual([true, HVI_REPLY_SKIP]);
    expect(all.map((hook) => hook.calls)).toEqual([1, 1, 1]);
    expect(hooks.counters).toMatchObject({ exits: 1, denied: 1, allowed: 0 });
  });

  test("what hooks allow goes on to others who had it intercepted; what they deny does not", () => {
    const { vm, hooks, go } = setup();
    vm.intercept(HVI_INTERCEPT_CR8_WRITE, 0, 1);
    let answer: HookAction = ALLOW;
    hooks.addCr(8, () => answer);
    expect(go(cr(8, 5, 0))[0]).toBe(false);
    answer = DENY;
    expect(go(cr(8, 5, 0))).toEqual([true, HVI_REPLY_SKIP]);
  });

  test("others get only what they asked for", () => {
    const { vm, hooks, go } = setup();
    vm.intercept(HVI_INTERCEPT_CR0_WRITE, 0, 8);
    vm.intercept(HVI_INTERCEPT_DTR, 0, HVI_DTR_LGDT);
    hooks.addCr(0, () => ALLOW, { mask: WP });
    hooks.addDtr(HVI_DTR_LIDT, () => ALLOW);
    expect(go(cr(0, 0x80000033, 0x80010033))[0]).toBe(true);
    expect(go(cr(0, 0x8001003b, 0x80010033))[0]).toBe(false);
    expect(go({ reason: HVI_EXIT_DTR, number: HVI_DTR_LIDT, gva: 0x1000 })[0]).toBe(true);
    expect(go({ reason: HVI_EXIT_DTR, number: HVI_DTR_LGDT, gva: 0x1000 })[0]).toBe(false);
  });

  test("exits of registers without hooks, and other exits, are not taken", () => {
    const { hooks, go } = setup();
    hooks.addMsr(LSTAR, () => DENY);
    expect(go(wrmsr(LSTAR + 1))[0]).toBe(false);
    expect(go({ reason: HVI_EXIT_MSR_READ, number: LSTAR })[0]).toBe(false);
    expect(go(cr(2, 0, 0))[0]).toBe(false);
    expect(go({ reason: 1, number: LSTAR })[0]).toBe(false);
  });
});

describe("what hooks are told", () => {
  /** A handler that keeps copies. */
  function keeper(answer: HookAction = ALLOW) {
    const seen: RegisterAccess[] = [];
    const handler = (access: RegisterAccess): HookAction => {
      seen.push({ ...access });
      return answer;
    };
    return { seen, handler };
  }

  test("kind, number, new and old value, exactly", () => {
    const { hooks, go } = setup();
    const { seen, handler } = keeper();
    hooks.addMsr(LSTAR, handler);
    go(wrmsr(LSTAR, -0x7e000000, -0x7d000000));
    expect(seen[0]).toMatchObject({
      kind: HVI_EXIT_MSR_WRITE,
      number: LSTAR,
      lo: 0x82000000,
      hi: 0xffffffff,
      oldLo: 0x83000000,
      oldHi: 0xffffffff,
      gva: Number.NaN,
    });
  });

  test("only changes of their bits", () => {
    const { hooks, go } = setup();
    const smep = hooks.addCr(4, () => ALLOW, { mask: SMEP });
    const smap = hooks.addCr(4, () => ALLOW, { mask: SMAP });
    const all = hooks.addCr(4, () => ALLOW);
    go(cr(4, SMEP, SMEP | SMAP));
    go(cr(4, SMEP | SMAP | 0x20, SMEP | SMAP));
    expect([smep.calls, smap.calls, all.calls]).toEqual([0, 1, 2]);
  });

  test("bits above 32, and writes of CR3 that change nothing unless bits were named", () => {
    const { hooks, go } = setup();
    const every = hooks.addCr(3, () => ALLOW);
    const high = hooks.addCr(3, () => ALLOW, { mask: 2 ** 40 });
    go(cr(3, 0x1000, 0x1000));
    go(cr(3, 0x2000, 0x1000));
    go(cr(3, 2 ** 40 + 0x1000, 0x1000));
    expect([every.calls, high.calls]).toEqual([3, 1]);
  });

  test("of tables which instruction, the operand and the selector", () => {
    const { hooks, go } = setup();
    const { seen, handler } = keeper(DENY);
    hooks.addDtr(HVI_DTR_LIDT | HVI_DTR_LLDT, handler);
    const lidt = { reason: HVI_EXIT_DTR, number: HVI_DTR_LIDT, gva: -0x1000 };
    expect(go(lidt)).toEqual([true, HVI_REPLY_SKIP]);
    go({ reason: HVI_EXIT_DTR, number: HVI_DTR_LLDT, value: 0x58 });
    go({ reason: HVI_EXIT_DTR, number: HVI_DTR_SIDT, gva: 0x1000 });
    expect(seen.map((a) => [a.number, a.gva, a.lo])).toEqual([
      [HVI_DTR_LIDT, -0x1000, 0],
      [HVI_DTR_LLDT, Number.NaN, 0x58],
    ]);
  });

  test("a value that a hook before them has changed, which is also what is written", () => {
    const { hooks, exit } = setup();
    const { seen, handler } = keeper();
    hooks.addCr(4, handler, { mask: SMEP, priority: -1 });
    hooks.addCr(4, (access) => {
      access.vcpu.setExitValue((access.lo | SMAP) >>> 0, access.hi);
      return ALLOW;
    });
    const vcpu = exit(cr(4, 0x20, SMEP | SMAP));
    expect(hooks.dispatch(vcpu)).toBe(true);
    expect(seen[0]?.lo).toBe(SMAP | 0x20);
    expect(vcpu.exitValueLo).toBe(SMAP | 0x20);
  });

  test("what the guest tried, also when a hook before them has undone it", () => {
    const { hooks, go } = setup();
    hooks.addCr(0, (access) => {
      access.vcpu.setExitValue(access.oldLo, access.oldHi);
      return ALLOW;
    });
    const later = hooks.addCr(0, () => ALLOW, { mask: WP });
    go(cr(0, 0x80000033, 0x80010033));
    expect(later.calls).toBe(1);
  });

  test("in order of priority, then age, and a spoilt record is mended", () => {
    const { hooks, go } = setup();
    const order: string[] = [];
    const add = (name: string, priority: number) =>
      hooks.addMsr(
        LSTAR,
        (access) => {
          order.push(`${name} ${access.lo}`);
          access.lo = 99;
          return ALLOW;
        },
        { priority },
      );
    add("a", 0);
    add("b", 5);
    add("c", 0);
    add("d", 5);
    go(wrmsr(LSTAR, 7));
    expect(order).toEqual(["b 7", "d 7", "a 7", "c 7"]);
  });
});

describe("changes from inside a handler", () => {
  test("a hook that removes itself is not called again; its intercept goes with it", () => {
    const { hooks, go, intercept } = setup();
    const hook: RegisterHook = hooks.addMsr(LSTAR, (access, self) => {
      access.vcpu.setExitValue(1, 2);
      hooks.remove(self);
      return ALLOW;
    });
    expect(go(wrmsr(LSTAR, 5))).toEqual([true, HVI_REPLY_RESUME]);
    expect(intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBeUndefined();
    expect(hook.calls).toBe(1);
    expect(go(wrmsr(LSTAR, 5))[0]).toBe(false);
  });

  test("one that removes another keeps it from being called", () => {
    const { hooks, go } = setup();
    hooks.addMsr(LSTAR, () => {
      hooks.remove(victim);
      return ALLOW;
    });
    const victim = hooks.addMsr(LSTAR, () => DENY);
    expect(go(wrmsr(LSTAR))).toEqual([true, HVI_REPLY_RESUME]);
    expect([victim.calls, hooks.count]).toEqual([0, 1]);
  });

  test("one that is added is called from the next exit on", () => {
    const { hooks, go, intercept } = setup();
    const added: RegisterHook[] = [];
    const first = hooks.addMsr(LSTAR, () => {
      if (added.length === 0) added.push(hooks.addMsr(LSTAR, () => DENY, { priority: 9 }));
      hooks.remove(first);
      return ALLOW;
    });
    expect(go(wrmsr(LSTAR))).toEqual([true, HVI_REPLY_RESUME]);
    expect(added[0]?.calls).toBe(0);
    expect(go(wrmsr(LSTAR))).toEqual([true, HVI_REPLY_SKIP]);
    expect(intercept(HVI_INTERCEPT_MSR_WRITE, LSTAR)).toBe(1);
  });

  test("those of another register are in effect at once", () => {
    const { hooks, go, intercept } = setup();
    const other = hooks.addCr(3, () => ALLOW);
    hooks.addMsr(LSTAR, () => {
      hooks.remove(other);
      hooks.addXcr(() => ALLOW);
      return ALLOW;
    });
    go(wrmsr(LSTAR));
    expect(intercept(HVI_INTERCEPT_CR3_WRITE)).toBeUndefined();
    expect(intercept(HVI_INTERCEPT_XSETBV)).toBe(1);
  });
});

test("each vCPU's exit is its own", () => {
  const { hooks, exit } = setup(2);
  const seen: number[] = [];
  hooks.addMsr(LSTAR, (access) => {
    seen.push(access.vcpu.index, access.lo);
    return access.vcpu.index === 0 ? ALLOW : DENY;
  });
  const first = exit({ ...wrmsr(LSTAR, 1), vcpu: 0 });
  hooks.dispatch(first);
  const second = exit({ ...wrmsr(LSTAR, 2), vcpu: 1 });
  hooks.dispatch(second);
  expect(seen).toEqual([0, 1, 1, 2]);
  expect([first.replyAction, second.replyAction]).toEqual([HVI_REPLY_RESUME, HVI_REPLY_SKIP]);
});

test("wrong registers and masks are refused", () => {
  const { hooks } = setup();
  expect(() => hooks.addCr(2, () => ALLOW)).toThrow(RangeError);
  for (const mask of [0, -1, 1.5, Number.NaN, 2 ** 60]) {
    expect(() => hooks.addCr(4, () => ALLOW, { mask })).toThrow(RangeError);
  }
  for (const msr of [-1, 1.5, 2 ** 32, LSTAR | 0]) {
    expect(() => hooks.addMsr(msr, () => ALLOW)).toThrow(RangeError);
  }
  for (const mask of [0, 0x100, -1])
    expect(() => hooks.addDtr(mask, () => ALLOW)).toThrow(RangeError);
  expect(hooks.count).toBe(0);
});

test("figures name registers and owners", () => {
  const { hooks, go } = setup();
  hooks.addMsr(LSTAR, () => DENY, { owner: "syscalls" });
  hooks.addCr(4, () => ALLOW, { mask: SMEP });
  go(wrmsr(LSTAR));
  expect(hooks.read()).toEqual({
    hooks: 2,
    exits: 1,
    allowed: 0,
    denied: 1,
    retried: 0,
    replied: 0,
    "MSR 0xc0000082 write.hooks": 1,
    "MSR 0xc0000082 write.calls": 1,
    "MSR 0xc0000082 write.owners": "syscalls",
    "CR4.hooks": 1,
    "CR4.calls": 0,
    "CR4.owners": "?",
  });
});
