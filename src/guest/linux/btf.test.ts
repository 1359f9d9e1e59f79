// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { BtfEncoder, MODULE, syntheticBtf, TASK } from "../synthetic.fixture.ts";
import { BTF_KIND, Btf, findBtf } from "./btf.ts";

function parse(bytes: Uint8Array): Btf {
  const btf = Btf.parse(bytes);
  if (typeof btf === "string") throw new Error(btf);
  return btf;
}

describe("BTF lookups", () => {
  const btf = parse(syntheticBtf());

  test("members, of anonymous structures too", () => {
    expect(btf.offsetof("task_struct", "tasks")).toBe(TASK.tasks);
    expect(btf.offsetof("task_struct", "tgid")).toBe(TASK.tgid);
    expect(btf.offsetof("task_struct", "tasks.prev")).toBe(TASK.tasks + 8);
    expect(btf.member("task_struct", "comm")).toMatchObject({
      offset: TASK.comm,
      size: 16,
      bitSize: 0,
    });
  });

  test("bit-fields", () => {
    expect(btf.member("task_struct", "in_execve")).toMatchObject({
      offset: 8,
      bitOffset: 2,
      bitSize: 1,
    });
  });

  test("elements of arrays", () => {
    expect(btf.offsetof("module", "mem[2].size")).toBe(MODULE.mem + 40);
    expect(btf.offsetof("module", "mem[3].size")).toBeUndefined();
    expect(btf.arrayLength(btf.member("module", "mem")?.type ?? 0)).toBe(3);
  });

  test("what is missing is undefined", () => {
    expect(btf.offsetof("task_struct", "nothing")).toBeUndefined();
    expect(btf.offsetof("nothing", "tasks")).toBeUndefined();
    expect(btf.offsetof("task_struct", "pid.x")).toBeUndefined();
    expect(btf.offsetof("task_struct", "")).toBeUndefined();
    expect(btf.offsetof("task_struct", "comm[x]")).toBeUndefined();
  });

  test("sizes and enumerators", () => {
    expect(btf.sizeof("task_struct")).toBe(TASK.size);
    expect(btf.sizeof("nothing")).toBeUndefined();
    expect(btf.enumerator("SYSTEM_RUNNING")).toBe(3);
    expect(btf.enumerator("SYSTEM_NOTHING")).toBeUndefined();
    expect(btf.enumeration("module_state")).toEqual([
      ["MODULE_STATE_LIVE", 0],
      ["MODULE_STATE_COMING", 1],
    ]);
  });
});

describe("hostile BTF", () => {
  test("a structure that holds itself, many times", () => {
    const b = new BtfEncoder();
    const members = Array.from({ length: 2000 }, () => ({ name: "", type: 1, bits: 0 }));
    b.struct("loop", 8, members);
    expect(parse(b.done()).offsetof("loop", "x")).toBeUndefined();
  }, 60_000);

  test("typedefs and arrays in a circle", () => {
    const b = new BtfEncoder();
    b.typedef("a", 2);
    b.typedef("b", 1);
    b.array(3, 9);
    b.struct("s", 8, [{ name: "m", type: 1, bits: 0 }]);
    const btf = parse(b.done());
    expect(btf.sizeof(1)).toBeUndefined();
    expect(btf.sizeof(3)).toBeUndefined();
    expect(btf.member("s", "m")).toMatchObject({ offset: 0, size: 0 });
    expect(btf.member("s", "m.n")).toBeUndefined();
  });

  test("every truncation and every changed byte is an answer, not a throw", () => {
    const good = syntheticBtf();
    for (let length = 0; length < good.length; length++) {
      expect(typeof Btf.parse(good.slice(0, length))).toBe("string");
    }
    for (let at = 0; at < good.length; at++) {
      const bytes = good.slice();
      bytes[at] ^= 0xff;
      const btf = Btf.parse(bytes);
      if (typeof btf === "string") continue;
      btf.offsetof("task_struct", "tgid");
      btf.offsetof("module", "mem[1].size");
      btf.enumerator("SYSTEM_RUNNING");
      btf.enumeration("mod_mem_type");
    }
  });

  test("a length beyond the image", () => {
    const blob = syntheticBtf();
    const image = new Uint8Array(blob.length + 100);
    image.set(blob, 50);
    expect(findBtf(image, 50)).toEqual(blob);
    expect(findBtf(image.subarray(0, image.length - 60), 50)).toBe("btf-damaged");
    expect(findBtf(image, 10)).toBe("btf-damaged");
    expect(findBtf(new Uint8Array(1000), undefined)).toBe("no-btf");
  });

  test("an unknown kind of type", () => {
    const b = new BtfEncoder();
    b.struct("s", 8, [], BTF_KIND.ENUM64 + 5);
    expect(Btf.parse(b.done())).toBe("btf-damaged");
  });
});
