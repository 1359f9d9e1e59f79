// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  EMULATE_RANGE_LEN,
  EMULATE_RANGE_OFFSET,
  EVENT_CR2,
  EVENT_ERROR_CODE,
  HVI_ACCESS_EVENT,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_READ,
  HVI_ACCESS_WRITE,
  HVI_EMULATE_RANGES,
  HVI_R,
  HVI_REPLY_EMULATE,
  HVI_REPLY_INJECT,
  HVI_REPLY_NOTIFY,
  HVI_REPLY_RESUME,
  HVI_REPLY_RETRY,
  HVI_REPLY_SCRATCH,
  HVI_REPLY_WRITE,
  HVI_RWX,
  HVI_SS,
  HVI_W,
  HVI_X,
  REPLY_ACTION,
  REPLY_RANGE,
  SIZEOF_EMULATE_RANGE,
} from "../bridge/index.ts";
import { AccessList } from "../x86/index.ts";
import { ALLOW, DENY, GpaHooks, type HookAction, REPLIED, RETRY } from "./gpa-hooks.ts";
import { noInstructions, violate } from "./violation.fixture.ts";

/** What an instruction accesses: linear address, bytes, HVI_ACCESS_READ | HVI_ACCESS_WRITE. */
type Operand = readonly [gva: number, size: number, flags: number];

function accessList(operands: readonly Operand[], complete = true): AccessList {
  const list = new AccessList();
  for (const [gva, size, flags] of operands) list.add(gva, size, flags);
  list.complete = complete;
  return list;
}

function setup() {
  const { vm, backend } = fakeVm();
  return { vm, backend, hooks: new GpaHooks(vm, noInstructions) };
}

describe("rights", () => {
  test("change at commit, and not before", () => {
    const { backend, hooks } = setup();
    hooks.add(5, HVI_W, () => ALLOW);
    expect(backend.rightsOf(0, 5)).toBe(HVI_RWX);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_R | HVI_X);
  });

  test("are those of all hooks together, and come back with the last", () => {
    const { backend, hooks } = setup();
    const write = hooks.add(5, HVI_W, () => ALLOW);
    const exec = hooks.add(5, HVI_X, () => ALLOW);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_R);
    hooks.remove(write);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_R | HVI_W);
    hooks.remove(exec);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_RWX);
    expect(hooks.pageCount).toBe(0);
  });

  test("never hold W without R", () => {
    const { backend, hooks } = setup();
    hooks.add(5, HVI_R, () => ALLOW);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_X);
  });

  test("of many pages change in one call", () => {
    const { backend, hooks } = setup();
    for (let gfn = 200; gfn >= 100; gfn--) hooks.add(gfn, HVI_W, () => ALLOW);
    hooks.commit();
    hooks.commit();
    expect(backend.count("HVI_EPT_SET")).toBe(1);
    expect(backend.restricted(0).size).toBe(101);
  });

  test("of more pages than one call takes change all the same", () => {
    const { vm, backend } = fakeVm({ size: 0x24000000 });
    const hooks = new GpaHooks(vm, noInstructions);
    for (let gfn = 0; gfn < 140_000; gfn += 2) hooks.add(gfn, HVI_W, () => ALLOW);
    hooks.commit();
    expect(backend.count("HVI_EPT_SET")).toBe(2);
    expect(backend.restricted(0).size).toBe(70_000);
  });

  test.each([
    [HVI_R | HVI_W, 0, 4096],
    [HVI_W, -1, 8],
    [HVI_W, 8, 8],
    [HVI_W, 0, 4097],
  ])("refuse right %p of [%p, %p)", (right, start, end) => {
    const { hooks } = setup();
    expect(() => hooks.add(1, right, () => ALLOW, { start, end })).toThrow(RangeError);
  });
});

describe("what an instruction sees of a page", () => {
  const GFN = 5;
  /** A read or write of 8 bytes at byte 8 of the page; RIP is elsewhere, or at `rip` in the page. */
  function run(o: {
    shown?: [number, number][];
    hooks: [right: number, action: HookAction, start?: number, end?: number][];
    flags: number;
    rip?: number;
    real?: boolean;
  }) {
    const { vm, backend } = fakeVm();
    const hooks = new GpaHooks(vm, {
      accesses: () => accessList([[0x7008, 8, o.flags]]),
      length: () => 3,
      gpaOf: () => (o.rip === undefined ? 0x90000 : GFN * 4096 + o.rip),
    });
    for (const [right, action, start, end] of o.hooks) {
      const handler = (): HookAction => {
        if (o.real === true) hooks.showReal();
        return action;
      };
      hooks.add(GFN, right, handler, { start, end });
    }
    if (o.shown !== undefined) {
      const ranges = Int32Array.from(o.shown.flat());
      hooks.setShown(GFN, { spare: vm.addSpare(1), ranges, count: o.shown.length });
    }
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa: GFN * 4096 + 8, gva: 0x7008, access: o.flags });
    expect(hooks.dispatch(vcpu)).toBe(true);
    const ranges: string[] = [];
    const at = REPLY_RANGE >>> 2;
    for (let i = 0; i < HVI_EMULATE_RANGES; i++) {
      const w = at + i * (SIZEOF_EMULATE_RANGE >>> 2);
      const length = vcpu.u32[w + (EMULATE_RANGE_LEN >>> 2)] as number;
      if (length === 0) continue;
      const spare = vcpu.u32[w + (EMULATE_RANGE_OFFSET >>> 2)] as number;
      ranges.push(`${((vcpu.u32[w] as number) - GFN * 4096).toString(16)}+${length}@${spare}`);
    }
    return { action: vcpu.replyAction, write: (vcpu.replyFlags & HVI_REPLY_WRITE) !== 0, ranges };
  }

  test("is what is shown of it, and its other writes are made", () => {
    const hooks: Parameters<typeof run>[0]["hooks"] = [
      [HVI_R, ALLOW],
      [HVI_W, ALLOW],
    ];
    const read = run({
      shown: [
        [0, 16],
        [0x20, 0x40],
      ],
      hooks,
      flags: HVI_ACCESS_READ,
    });
    expect(read).toEqual({ action: HVI_REPLY_EMULATE, write: true, ranges: ["0+16@0", "20+32@0"] });
    const write = run({ shown: [[0, 16]], hooks, flags: HVI_ACCESS_WRITE });
    expect(write).toEqual({ action: HVI_REPLY_EMULATE, write: true, ranges: ["0+16@0"] });
  });

  test("with a write that another hook denies is shown, and nothing is written", () => {
    const denied = run({
      shown: [[0x100, 0x110]],
      hooks: [[HVI_W, DENY]],
      flags: HVI_ACCESS_WRITE,
    });
    expect(denied).toEqual({ action: HVI_REPLY_EMULATE, write: false, ranges: ["100+16@0"] });
  });

  test("never is what the code that runs consists of", () => {
    const hooks: Parameters<typeof run>[0]["hooks"] = [[HVI_R, ALLOW]];
    const shown: [number, number][] = [
      [0x20, 0x40],
      [0x80, 0x90],
    ];
    const at = (rip: number) => run({ shown, hooks, flags: HVI_ACCESS_READ, rip }).ranges;
    expect(at(0x3f)).toEqual(["80+16@0"]);
    expect(at(0x1e)).toEqual(["80+16@0"]);
    expect(at(0x1d)).toEqual(["20+32@0", "80+16@0"]);
    expect(at(0x40)).toEqual(["20+32@0", "80+16@0"]);
  });

  test("is the page as it is when a hook says so", () => {
    const real = run({
      shown: [[0, 16]],
      hooks: [[HVI_R, ALLOW]],
      flags: HVI_ACCESS_READ,
      real: true,
    });
    expect(real.action).toBe(HVI_REPLY_RESUME);
  });

  test("is zeros where its reads are denied, above what is shown", () => {
    const denied = run({ hooks: [[HVI_R, DENY, 4, 0x20]], flags: HVI_ACCESS_READ });
    expect(denied).toEqual({ action: HVI_REPLY_EMULATE, write: false, ranges: ["4+28@0"] });
    const both = run({
      shown: [[0, 16]],
      hooks: [[HVI_R, DENY, 8, 0x10]],
      flags: HVI_ACCESS_READ | HVI_ACCESS_WRITE,
    });
    expect(both.ranges).toEqual(["0+16@0", "8+8@1"]);
    expect(both.write).toBe(false);
  });

  test("is nothing at all when a reply cannot hold it", () => {
    const many = Array.from(
      { length: HVI_EMULATE_RANGES + 1 },
      (_, i) => [i * 16, i * 16 + 16] as const,
    );
    const hooks = many.map(([start, end]): [number, HookAction, number, number] => [
      HVI_R,
      DENY,
      start,
      end,
    ]);
    const { vm, backend } = fakeVm();
    const all = new GpaHooks(vm, noInstructions);
    for (const [right, action, start, end] of hooks)
      all.add(GFN, right, () => action, { start, end });
    all.commit();
    const vcpu = violate(vm, backend, { gpa: GFN * 4096, access: HVI_ACCESS_READ });
    all.dispatch(vcpu);
    expect(vcpu.u32[(REPLY_RANGE + EMULATE_RANGE_LEN) >>> 2]).toBe(4096);
  });

  test("a device does not write what is shown otherwise", () => {
    const { vm } = fakeVm();
    const hooks = new GpaHooks(vm, noInstructions);
    hooks.add(GFN, HVI_W, () => ALLOW);
    hooks.setShown(GFN, { spare: 0, ranges: Int32Array.of(16, 32), count: 1 });
    const ask = (at: number, size: number) =>
      hooks.ask(vm.vcpus[0], GFN * 4096 + at, size, Number.NaN, HVI_ACCESS_WRITE);
    expect([ask(8, 8), ask(8, 9), ask(31, 1), ask(32, 8)]).toEqual([ALLOW, DENY, DENY, ALLOW]);
  });
});

describe("dispatch", () => {
  function answer(wishes: HookAction[], access = HVI_ACCESS_WRITE, right = HVI_W): number {
    const { vm, backend, hooks } = setup();
    for (const wish of wishes) hooks.add(5, right, () => wish);
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa: 0x5010, access, size: 8 });
    expect(hooks.dispatch(vcpu)).toBe(true);
    return vcpu.u32[REPLY_ACTION >>> 2] as number;
  }

  test("the greatest wish of all hooks wins", () => {
    expect(answer([ALLOW])).toBe(HVI_REPLY_RESUME);
    expect(answer([ALLOW, DENY])).toBe(HVI_REPLY_SCRATCH);
    expect(answer([DENY, ALLOW])).toBe(HVI_REPLY_SCRATCH);
    expect(answer([DENY, RETRY])).toBe(HVI_REPLY_RETRY);
  });

  test("a reply set by a hook itself stays", () => {
    const { vm, backend, hooks } = setup();
    hooks.add(5, HVI_W, (a) => {
      a.vcpu.retry();
      return REPLIED;
    });
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 });
    hooks.dispatch(vcpu);
    expect(vcpu.u32[REPLY_ACTION >>> 2]).toBe(HVI_REPLY_RETRY);
  });

  test("a page that is not hooked is not ours", () => {
    const { vm, backend, hooks } = setup();
    expect(hooks.dispatch(violate(vm, backend, { gpa: 0x9000, access: HVI_ACCESS_WRITE }))).toBe(
      false,
    );
  });

  test.each([
    ["just before", 0x5008, 8, 0],
    ["its first byte as the access's last", 0x5009, 8, 1],
    ["its last byte as the access's first", 0x5017, 8, 1],
    ["just after", 0x5018, 8, 0],
    ["around it", 0x5000, 64, 1],
    ["of unknown size before it", 0x5000, 0, 1],
  ])("a part of a page: an access %s", (_what, gpa, size, calls) => {
    const { vm, backend, hooks } = setup();
    let called = 0;
    hooks.add(
      5,
      HVI_W,
      () => {
        called++;
        return DENY;
      },
      { start: 0x10, end: 0x18 },
    );
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size });
    expect(hooks.dispatch(vcpu)).toBe(true);
    expect(called).toBe(calls);
    expect(vcpu.u32[REPLY_ACTION >>> 2]).toBe(calls === 1 ? HVI_REPLY_SCRATCH : HVI_REPLY_RESUME);
  });

  /** A page at 0x7000, GFN 5, and the next one, GFN 9; the exit is at its byte 8. */
  function operands(
    list: readonly Operand[] | undefined,
    access: number,
    right: number,
    start = 0,
    complete = true,
  ) {
    const { vm, backend } = fakeVm();
    const hooks = new GpaHooks(vm, {
      accesses: () => list && accessList(list, complete),
      length: () => 0,
      gpaOf: (_vcpu, gva) =>
        Math.floor(gva / 4096) === 7 || Math.floor(gva / 4096) === 20
          ? 0x5000 + (gva % 4096)
          : 0x9000 + (gva % 4096),
    });
    const seen: string[] = [];
    hooks.add(
      5,
      right,
      (a) => {
        seen.push(`${(a.gpa % 4096).toString(16)}+${a.size} ${a.access & 3}`);
        return ALLOW;
      },
      { start, end: start === 0 ? 4096 : start + 8 },
    );
    hooks.commit();
    hooks.dispatch(violate(vm, backend, { gpa: 0x5008, gva: 0x7008, access }));
    return { seen, counters: hooks.counters };
  }
  const R = HVI_ACCESS_READ;
  const W = HVI_ACCESS_WRITE;

  test.each<[string, Operand[] | undefined, number, string[]]>([
    ["an operand that ends before the part", [[0x7008, 8, W]], W, []],
    ["an operand that reaches into it", [[0x7008, 9, W]], W, ["8+9 2"]],
    ["an operand that is not known", undefined, W, ["8+4088 2"]],
    ["an operand elsewhere", [[0x8008, 1, W]], W, ["8+4088 2"]],
    // The stack frame of an event is no operand of the instruction it interrupted.
    ["an event's delivery", [[0x7008, 1, W]], W | HVI_ACCESS_EVENT, ["8+4088 2"]],
    [
      "two operands of the page",
      [
        [0x7008, 2, W],
        [0x7012, 2, W],
      ],
      W,
      ["12+2 2"],
    ],
    [
      "an operand through another mapping of the page",
      [
        [0x7008, 2, W],
        [0x14010, 4, W],
      ],
      W,
      ["10+4 2"],
    ],
  ])("a part of a page and %s", (_what, list, access, calls) => {
    expect(operands(list, access, HVI_W, 0x10).seen).toEqual(calls);
  });

  test("what the instruction does to the page beside the violation is put to the hooks as well", () => {
    // MOVS inside the page: the exit is its read, and opens the page for its write.
    expect(
      operands(
        [
          [0x7008, 4, R],
          [0x7100, 4, W],
        ],
        R,
        HVI_W,
      ).seen,
    ).toEqual(["100+4 2"]);
    // A CPU tells of a read-modify-write that it writes.
    expect(operands([[0x7008, 4, R | W]], W, HVI_R).seen).toEqual(["8+4 3"]);
    // A plain write is no read, though the page without R cannot be written either.
    expect(operands([[0x7008, 4, W]], R | W, HVI_R).seen).toEqual([]);
  });

  test("of an operand over a page boundary the part in the page counts", () => {
    expect(operands([[0x6ffc, 16, W]], W, HVI_W).seen).toEqual(["0+12 2"]);
    expect(operands([[0x7008, 0x1000, W]], W, HVI_W).seen).toEqual(["8+4088 2"]);
  });

  test("what no operand explains is counted", () => {
    expect(operands([[0x7008, 4, W]], W, HVI_W).counters.unexplained).toBe(0);
    expect(operands(undefined, W, HVI_W).counters.unexplained).toBe(1);
    // Some of what it accesses is not known: to the end of the page, to be safe.
    expect(operands([[0x7008, 4, W]], W, HVI_W, 0, false).seen).toEqual(["8+4 2", "8+4088 2"]);
  });

  test("a denied fetch is the #PF of a page that is not executable", () => {
    const { vm, backend, hooks } = setup();
    hooks.add(5, HVI_X, () => DENY);
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa: 0x5010, gva: 0x7010, access: HVI_ACCESS_EXEC });
    vcpu.setSeg(HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
    hooks.dispatch(vcpu);
    expect(vcpu.replyAction).toBe(HVI_REPLY_INJECT);
    expect([vcpu.eventVector, vcpu.u32[EVENT_ERROR_CODE >>> 2]]).toEqual([14, 0x15]);
    expect(vcpu.u32[EVENT_CR2 >>> 2]).toBe(0x7010);
  });

  test.each([true, false])(
    "what waits for the instruction runs at the next exit, asked for: %p",
    (exit) => {
      const { vm, backend, hooks } = setup();
      let ran = 0;
      // The instruction violates another page first: it is not over at the first exit.
      const next = {
        run: () => {
          if (++ran === 1) hooks.afterInstruction(next);
        },
      };
      hooks.add(5, HVI_W, () => {
        hooks.afterInstruction(next, exit);
        return ALLOW;
      });
      hooks.commit();
      const vcpu = violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 });
      hooks.settle(vcpu);
      hooks.dispatch(vcpu);
      expect((vcpu.replyFlags & HVI_REPLY_NOTIFY) !== 0).toBe(exit);
      expect(ran).toBe(0);
      for (let i = 0; i < 3; i++) hooks.settle(vcpu);
      expect(ran).toBe(2);
    },
  );

  test("only hooks of the right that was used are called", () => {
    expect(answer([DENY], HVI_ACCESS_READ)).toBe(HVI_REPLY_RESUME);
    expect(answer([RETRY], HVI_ACCESS_EXEC, HVI_X)).toBe(HVI_REPLY_RETRY);
  });

  test("the greater priority is asked first, equals in the order in which they came", () => {
    const { vm, backend, hooks } = setup();
    const order: string[] = [];
    const named = (name: string) => (): HookAction => {
      order.push(name);
      return ALLOW;
    };
    hooks.add(5, HVI_W, named("a"));
    hooks.add(5, HVI_W, named("high"), { priority: 10 });
    hooks.add(5, HVI_W, named("b"));
    hooks.add(5, HVI_W, named("low"), { priority: -1 });
    hooks.add(5, HVI_W, named("high too"), { priority: 10 });
    hooks.commit();
    hooks.dispatch(violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 }));
    expect(order).toEqual(["high", "high too", "a", "b", "low"]);
  });

  test("a hook added from a handler is asked at the next access", () => {
    const { vm, backend, hooks } = setup();
    let second = 0;
    let added = false;
    hooks.add(5, HVI_W, () => {
      if (!added) {
        hooks.add(
          5,
          HVI_W,
          () => {
            second++;
            return ALLOW;
          },
          { priority: 1 },
        );
      }
      added = true;
      return ALLOW;
    });
    hooks.commit();
    const once = (): void => {
      hooks.dispatch(violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 }));
    };
    once();
    expect(second).toBe(0);
    once();
    expect(second).toBe(1);
  });

  test.each([
    [ALLOW, 1],
    [DENY, 0],
  ] as const)("what waits for the outcome runs when all hooks allow (%p)", (other, runs) => {
    const { vm, backend, hooks } = setup();
    let ran = 0;
    hooks.add(5, HVI_W, () => {
      hooks.ifAllowed({ run: () => ran++ });
      return ALLOW;
    });
    hooks.add(5, HVI_W, () => other);
    hooks.commit();
    hooks.dispatch(violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 }));
    expect(ran).toBe(runs);
  });

  test("a hook may remove itself and its neighbour while it runs", () => {
    const { vm, backend, hooks } = setup();
    let second = 0;
    const first = hooks.add(5, HVI_W, () => {
      hooks.remove(first);
      hooks.remove(other);
      return DENY;
    });
    const other = hooks.add(5, HVI_W, () => {
      second++;
      return ALLOW;
    });
    hooks.commit();
    hooks.dispatch(violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 1 }));
    expect(second).toBe(0);
    hooks.commit();
    expect(backend.rightsOf(0, 5)).toBe(HVI_RWX);
  });
});
