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
import { violate } from "./violation.fixture.ts";

function setup() {
  const { vm, backend } = fakeVm();
  return { vm, backend, hooks: new GpaHooks(vm, () => 0) };
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
    expect(() => hooks.add(1, right, () => ALLOW, start, end)).toThrow(RangeError);
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
      0x10,
      0x18,
    );
    hooks.commit();
    const vcpu = violate(vm, backend, { gpa, access: HVI_ACCESS_WRITE, size });
    expect(hooks.dispatch(vcpu)).toBe(true);
    expect(called).toBe(calls);
    expect(vcpu.u32[REPLY_ACTION >>> 2]).toBe(calls === 1 ? HVI_REPLY_SCRATCH : HVI_REPLY_RESUME);
  });

  test.each([
    ["operand ends before the part", 8, HVI_ACCESS_WRITE, 0],
    ["operand reaches into it", 9, HVI_ACCESS_WRITE, 1],
    ["operand is not known either", 0, HVI_ACCESS_WRITE, 1],
    // The stack frame of an event is no operand of the instruction it interrupted.
    ["event's delivery writes", 8, HVI_ACCESS_WRITE | HVI_ACCESS_EVENT, 1],
  ])(
    "a backend that does not tell the size: the instruction's %s",
    (_what, bytes, access, calls) => {
      const { vm, backend } = fakeVm();
      const hooks = new GpaHooks(vm, (_vcpu, gva) => (gva === 0x7008 ? bytes : Number.NaN));
      let called = 0;
      const count = (): HookAction => {
        called++;
        return ALLOW;
      };
      hooks.add(5, HVI_W, count, 0x10, 0x18);
      hooks.commit();
      hooks.dispatch(violate(vm, backend, { gpa: 0x5008, gva: 0x7008, access }));
      expect(called).toBe(calls);
    },
  );

  test("only hooks of the right that was used are called", () => {
    expect(answer([DENY], HVI_ACCESS_READ)).toBe(HVI_REPLY_RESUME);
    expect(answer([RETRY], HVI_ACCESS_EXEC, HVI_X)).toBe(HVI_REPLY_RETRY);
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
