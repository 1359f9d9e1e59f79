// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import { fakeVm } from "../../bridge/fake.fixture.ts";
import {
  HVI_CS,
  HVI_EXIT_EPT,
  HVI_GS,
  HVI_STATE_ALL,
  VCPU_VALID,
  Vcpu,
} from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import {
  AT,
  DIRECT,
  HEAP,
  type SyntheticGuest,
  syntheticGuest,
} from "../../guest/synthetic.fixture.ts";
import { hex } from "../../memory/index.ts";
import { Statistics } from "../../statistics.ts";
import { Subject } from "./subject.ts";
import { VERBS } from "./views.ts";

/** A CPU of the made-up guest, as a snapshot gives one. */
function cpuOf(g: SyntheticGuest): Vcpu {
  const page = new Uint8Array(4096);
  new Uint32Array(page.buffer)[VCPU_VALID >>> 2] = HVI_STATE_ALL;
  const cpu = new Vcpu(0, page, () => {});
  cpu.rip = g.base + 0x1010;
  cpu.cr0 = g.cpu.cr0;
  cpu.cr3 = g.cpu.cr3;
  cpu.cr4 = g.cpu.cr4;
  cpu.efer = g.cpu.efer;
  cpu.setSeg(HVI_CS, 0x10, 0, 0xffffffff, 0xa09b);
  cpu.setSeg(HVI_GS, 0, DIRECT + HEAP, 0xffffffff, 0xc093);
  return cpu;
}

const guest = syntheticGuest();
guest.memory.write(guest.gpa(guest.base + 0x1010), Uint8Array.of(0x90, 0x0f, 0xa2, 0xc3, 0x06));

function show(
  verb: string,
  args: string[] = [],
  o: { physical?: boolean; pid?: number; root?: number; from?: SyntheticGuest } = {},
) {
  const g = o.from ?? guest;
  const subject = new Subject("g.hvi", g.memory, [cpuOf(g)], { cpu: 0, pid: o.pid, root: o.root });
  return VERBS[verb].show(subject, args, { physical: o.physical === true });
}

function complaint(...args: Parameters<typeof show>): string {
  try {
    show(...args);
  } catch (error) {
    if (error instanceof InputError) return error.message;
    throw error;
  }
  throw new Error("no complaint");
}

describe("hvi inspect", () => {
  test("ps", () => {
    const view = show("ps");
    expect(view.lines[0]).toMatch(/PID +PPID +STATE/);
    expect(view.lines[1]).toContain("[swapper]");
    expect(view.json).toMatchObject({
      problem: null,
      processes: [{ pid: 0, comm: "swapper", parent: null }],
    });
  });

  test("modules of a guest that has none", () => {
    expect(show("modules").json).toEqual({ modules: [], problem: null });
  });

  test("symbols by name, pattern and address", () => {
    expect(show("symbols", ["linux_banner"]).lines).toEqual([
      `${hex(guest.base + AT.banner).slice(2)} R linux_banner`,
    ]);
    expect(show("symbols", ["fn_49?"]).lines).toHaveLength(10);
    expect(show("symbols", [hex(guest.base + 0x1234)]).lines).toEqual(["fn_2+0x34"]);
    expect(complaint("symbols", ["nothing:*"])).toBe("nothing: no such module");
    expect(complaint("symbols", ["nothing"])).toBe("nothing: no such symbol in Linux 6.9.1-test");
    expect(complaint("symbols", ["0x1234"])).toContain("belongs to no symbol");
  });

  test("translate, with the entries of the walk", () => {
    const view = show("translate", ["linux_banner+0x10"]);
    expect(view.lines).toHaveLength(4);
    expect(view.json).toMatchObject({
      gpa: hex(guest.gpa(guest.base + AT.banner + 16)),
      pageSize: 0x20_0000,
      mode: "4level",
      writable: true,
    });
    expect(complaint("translate", ["0x1000"])).toMatch(
      /^0x1000: not present \(NotPresent at \w+\)$/,
    );
    expect(complaint("translate", ["0x1234567812345678"])).toContain(
      "not a 48-bit canonical address",
    );
  });

  test("read, virtual and physical", () => {
    const text = "Linux version 6.9.1-test";
    expect(show("read", ["linux_banner", "24"]).json).toEqual({
      address: hex(guest.base + AT.banner),
      physical: false,
      bytes: Buffer.from(text).toString("hex"),
    });
    const at = hex(guest.gpa(guest.base + AT.banner));
    expect(show("read", [at, "0x18"], { physical: true }).lines[0]).toContain("Linux version 6.");
    expect(complaint("read", ["0xfffffffff000"], { physical: true })).toContain("not all RAM");
    expect(complaint("read", ["0xffffffff00000000"])).toContain("not present");
    expect(complaint("read", ["linux_banner", "0"])).toContain("not a number from 1");
    expect(complaint("read", ["linux_banner+zz"])).toContain("no such symbol");
  });

  test("disasm from RIP, with an invalid instruction", () => {
    const view = show("disasm", []);
    expect(view.lines[0]).toBe("fn_0+0x10:");
    expect(view.lines.slice(1, 5).map((l) => l.slice(44).trim())).toEqual([
      "nop",
      "cpuid",
      "ret",
      "db 0x06",
    ]);
    expect(show("disasm", ["fn_0+0x11", "1"]).json).toMatchObject([
      { bytes: "0fa2", text: "cpuid" },
    ]);
  });

  test("regs", () => {
    const view = show("regs");
    expect(view.json).toMatchObject([{ cpu: 0, mode: "long", cpl: 0, symbol: "fn_0+0x10" }]);
    expect(view.lines.join("\n")).toContain(`rip       ${hex(guest.base + 0x1010)}`);
  });

  test("stats of a running machine; a snapshot has none", () => {
    const statistics = new Statistics(fakeVm().vm);
    statistics.count(HVI_EXIT_EPT);
    statistics.add({ name: "hooks", read: () => ({ pages: 3, "owner x": "2 hooks, 1 calls" }) });
    const options = { cpu: 0, pid: undefined, root: undefined };
    const known = { guest: undefined, statistics };
    const subject = new Subject("--live", guest.memory, [cpuOf(guest)], options, known);
    const view = VERBS.stats.show(subject, [], { physical: false });
    expect(view.json).toMatchObject({ exits: { EPT: 1 } });
    expect(view.lines.slice(0, 2)).toEqual(["EXIT  COUNT", "EPT       1"]);
    expect(view.lines.slice(-3)).toEqual(["HOOKS", "pages    3", "owner x  2 hooks, 1 calls"]);
    expect(complaint("stats")).toBe("g.hvi: a snapshot has no statistics");
  });

  test("options that name what is not there", () => {
    expect(complaint("read", ["0x400000"], { pid: 7 })).toBe("--pid 7: no such process");
    expect(complaint("read", ["0x400000"], { pid: 0 })).toContain("no address space of its own");
    expect(complaint("translate", ["0xffffffff83400000"], { root: 0x100_0000 })).toContain(
      "not present",
    );
    expect(
      () =>
        new Subject("g.hvi", guest.memory, [cpuOf(guest)], {
          cpu: 3,
          pid: undefined,
          root: undefined,
        }),
    ).toThrow("--cpu 3: g.hvi has 1 CPU(s)");
  });

  test("an unknown guest: a reason for what needs symbols, the rest works", () => {
    const from = syntheticGuest({ kallsyms: false });
    expect(complaint("ps", [], { from })).toMatch(/^g.hvi: guest not identified: no kallsyms/);
    expect(complaint("read", ["vfs_read"], { from })).toContain("guest not identified");
    expect(show("read", [hex(from.base), "4"], { from }).lines).toHaveLength(1);
    expect(show("regs", [], { from }).lines.length).toBeGreaterThan(5);
  });
});
