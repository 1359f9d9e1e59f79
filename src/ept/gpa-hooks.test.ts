// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../bridge/fake.fixture.ts";
import {
  HVI_ACCESS_EVENT,
  HVI_ACCESS_EXEC,
  HVI_ACCESS_READ,
  HVI_ACCESS_WRITE,
  HVI_R,
  HVI_REPLY_RESUME,
  HVI_REPLY_RETRY,
  HVI_REPLY_SCRATCH,
  HVI_RWX,
  HVI_W,
  HVI_X,
  REPLY_ACTION,
} from "../bridge/index.ts";
import { ALLOW, DENY, GpaHooks, type HookAction, REPLIED, RETRY } from "./gpa-hooks.ts";
import { noInstructions, violate } from "./violation.fixture.ts";

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

  /** What an instruction accesses: linear address, bytes, HVI_ACCESS_READ | HVI_ACCESS_WRITE. */
  type Operand = readonly [gva: number, size: number, flags: number];

  /** A page at 0x7000, GFN 5, and the next one, GFN 9; the exit is at its byte 8. */
  function operands(
    list: readonly Operand[] | undefined,
    access: number,
    right: number,
    start = 0,
  ) {
    const { vm, backend } = fakeVm();
    const hooks = new GpaHooks(vm, {
      accesses: () =>
        list && {
          count: list.length,
          gva: Float64Array.from(list, (o) => o[0]),
          size: Uint32Array.from(list, (o) => o[1]),
          flags: Uint8Array.from(list, (o) => o[2]),
        },
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
  });

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
