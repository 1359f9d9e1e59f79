// SPDX-License-Identifier: MIT
/** Hook objects: regions of several pages that belong together. */
import { HVI_R, HVI_W } from "../../../src/bridge/index.ts";
import { ALLOW, DENY, type HookAction } from "../../../src/ept/gpa-hooks.ts";
import { PAGE, TARGET } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import type { Space } from "../space.ts";

const store = (t: Trial, space: Space, va: number, stub = "mov4_st"): number =>
  t.guest.run(stub, { ring: 3, space, registers: { ax: 0x5a5a5a5a, di: va } }).fault;

const regions: Scenario = {
  name: "objects.regions",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    // The third page is not there yet.
    const frames = space.mapNew(va, 2);
    const { objects } = t.core;
    const object = objects.create(space.memory, "driver");
    const seen: string[] = [];
    const note =
      (name: string, action: typeof ALLOW | typeof DENY) =>
      (_: unknown, __: unknown, gva: number) => {
        seen.push(`${name} ${hex(gva - va)}`);
        return action;
      };
    const all = [
      object.hook(va + 0x100, 2 * PAGE, HVI_W, note("code", DENY)),
      object.hook(va + 0x100, 16, HVI_R, note("exports", ALLOW)),
      objects
        .create(space.memory, "stack")
        .hook(va + 2 * PAGE + 0x200, 8, HVI_W, note("stack", DENY)),
    ];
    t.core.hooks.commit();
    const told = (offset: number): string => {
      seen.length = 0;
      t.same("exception", store(t, space, va + offset), -1);
      return seen.join(", ");
    };
    for (const [offset, should] of [
      [0xf0, ""],
      [0xfe, "code 0xfe"],
      [0x100, "code 0x100"],
      [PAGE - 2, "code 0xffe, code 0x1000"],
      [PAGE, "code 0x1000"],
      [2 * PAGE - 4, "code 0x1ffc"],
    ] as const) {
      t.same(`told of ${hex(offset)}`, told(offset), should);
    }
    // All but the first store were denied, in whole.
    const sums = frames.map((pa) => t.guest.bytes(pa, PAGE).reduce((n, b) => n + b, 0));
    t.same("sums of the pages", sums.join(" "), `${4 * 0x5a} 0`);
    seen.length = 0;
    t.guest.run("movups_ld", { ring: 3, space, registers: { si: va + 0xf8 } });
    t.same("told of a read", seen.join(), "exports 0xf8");
    t.same("exception", store(t, space, va + 2 * PAGE), 14);
    space.map(va + 2 * PAGE, t.guest.frame());
    for (const [offset, should] of [
      [0xfc, "code 0x20fc"],
      [0x100, ""],
      [0x1fe, "stack 0x21fe"],
      [0x208, ""],
    ] as const) {
      t.same(`told of ${hex(offset)} in the third page`, told(2 * PAGE + offset), should);
    }
    t.same("region found", objects.find(space.root, va + PAGE)?.object, object);
    t.same(
      "of a type",
      objects.find(space.root, va + 2 * PAGE + 0x204, "stack")?.start,
      va + 2 * PAGE + 0x200,
    );
    t.same("outside", objects.find(space.root, va), undefined);
    object.unhook(all[0]!);
    t.core.hooks.commit();
    t.same("told of what is not hooked any more", told(PAGE), "");
    for (const type of ["driver", "stack"]) for (const o of objects.ofType(type)) o.destroy();
    t.same("objects", objects.count, 0);
  },
};

const inside: Scenario = {
  name: "objects.destroyed-inside",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const frames = space.mapNew(va, 3);
    const { objects } = t.core;
    const object = objects.create(space.memory, "module");
    let calls = 0;
    const handler = (): HookAction => {
      calls++;
      object.destroy();
      return ALLOW;
    };
    object.hook(va, 3 * PAGE, HVI_W, handler);
    object.hook(va + PAGE - 2, 4, HVI_W, handler);
    t.core.hooks.commit();
    // One instruction over two pages and two regions.
    t.same("exception", store(t, space, va + PAGE - 2), -1);
    t.same("calls", calls, 1);
    t.same("first half", t.guest.memory.read16(frames[0]! + PAGE - 2), 0x5a5a);
    t.same("second half", t.guest.memory.read16(frames[1]!), 0x5a5a);
    store(t, space, va + 2 * PAGE);
    t.same("calls afterwards", calls, 1);
    t.same("objects", objects.count, 0);
  },
};

export const objects: readonly Scenario[] = [regions, inside];
