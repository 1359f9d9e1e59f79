// SPDX-License-Identifier: MIT
import { describe, expect, test } from "bun:test";
import {
  EVENT_CR2,
  EVENT_ERROR_CODE,
  EVENT_FLAGS,
  EVENT_STATUS,
  EXIT_ACCESS,
  EXIT_REASON,
  EXIT_TSC,
  HVI_ACCESS_EVENT,
  HVI_BLOCK_STI,
  HVI_CS,
  HVI_EVENT_DELIVERED,
  HVI_EVENT_LOST,
  HVI_EVENT_NOTIFY,
  HVI_EVENT_VALID,
  HVI_EXIT_DEADLINE,
  HVI_EXIT_EPT,
  HVI_MP_HALTED,
  HVI_MP_RUNNING,
  HVI_SS,
  VCPU_TSC,
} from "../bridge/abi.ts";
import { fakeVm } from "../bridge/fake.fixture.ts";
import { FakeTables } from "./fake-tables.fixture.ts";
import { GuestMemory } from "./guest-memory.ts";
import { PhysicalMemory } from "./physical.ts";
import {
  SWAPPED_BYTES,
  SWAPPED_LENGTH,
  SWAPPED_REQUESTS,
  SwappedMemory,
  type SwappedMemoryOptions,
  type SwappedResult,
  type TranslationNotifier,
} from "./swapped.ts";
import { DEFAULT_FEATURES, PTE_P } from "./translate.ts";

const USER = 0x400000;
const KERNEL = -0x7f000000;
const KHZ = 1000;
const SECOND = KHZ * 1000;
const PF = 14;

/** A process with three user pages, the first of them present, and a vCPU that runs in it. */
function guest(options: Partial<SwappedMemoryOptions> = {}) {
  const { vm } = fakeVm({ size: 0x200000, vcpus: 2 });
  const physical = new PhysicalMemory(vm.ram);
  const tables = new FakeTables(physical, "4level", 0x10000);
  const other = new FakeTables(physical, "4level", 0x40000);
  const entries = [0, 1, 2].map((i) => tables.map(USER + i * 0x1000, 0x80000 + i * 0x1000).at(-1)!);
  const kernelEntry = tables.map(KERNEL, 0x90000).at(-1)!;
  const page = (i: number, present: boolean): void => {
    const entry = i < 0 ? kernelEntry : entries[i];
    const low = physical.read32(entry);
    physical.write32(entry, present ? low | PTE_P : low & ~PTE_P);
  };
  for (let i = 0; i < 3; i++) physical.fill(0x80000 + i * 0x1000, 0x1000, 0x10 + i);
  page(1, false);
  page(2, false);

  const vcpu = vm.vcpus[0];
  for (const v of vm.vcpus) {
    v.cr0 = 0x80010033;
    v.cr4 = 0x20;
    v.efer = 0xd00;
    v.cr3 = tables.root;
    v.rflags = 0x202;
    v.setSeg(HVI_CS, 0x33, 0, 0xffffffff, 0xa0fb);
    v.setSeg(HVI_SS, 0x2b, 0, 0xffffffff, 0xc0f3);
    v.mpState = HVI_MP_RUNNING;
    v.u32[EXIT_REASON >>> 2] = HVI_EXIT_DEADLINE;
  }
  let now = SECOND;
  const at = (tsc: number, v = vcpu): void => {
    now = tsc;
    v.u32[EXIT_TSC >>> 2] = tsc;
    v.u32[VCPU_TSC >>> 2] = tsc;
  };
  at(now);
  const memory = new GuestMemory(physical);
  const swapped = new SwappedMemory({ memory, tscKhz: KHZ, ...options });
  const space = { root: tables.root, mode: "4level" as const, features: DEFAULT_FEATURES };
  const results: SwappedResult[] = [];
  return {
    ...{ vm, physical, tables, other, entries, page, vcpu, at, memory, swapped, space, results },
    done: (r: SwappedResult): void => void results.push(r),
    /** Lets 2 ms of guest time pass and polls. */
    poll: (v = vcpu): void => {
      at(now + 2 * KHZ, v);
      swapped.poll(v);
    },
    /** The backend takes the event and tells. */
    takes: (status: number = HVI_EVENT_DELIVERED, v = vcpu): boolean => {
      v.u32[EVENT_FLAGS >>> 2] &= ~HVI_EVENT_VALID;
      v.u32[EVENT_STATUS >>> 2] = status;
      return swapped.onInjected(v);
    },
  };
}

describe("what is present, or cannot be", () => {
  test("is answered at once, without a handle", () => {
    const g = guest();
    expect(g.swapped.read(g.space, USER + 0xff0, 16, {}, g.done)).toBeUndefined();
    expect(g.results).toEqual([
      { ok: true, gva: USER + 0xff0, bytes: new Uint8Array(16).fill(0x10) },
    ]);
    expect(g.swapped.read(g.space, USER, 0, {}, g.done)).toBeUndefined();
    expect(g.results[1].ok).toBe(true);
    expect(g.swapped.deadline).toBe(Number.POSITIVE_INFINITY);
    // A copy: what the guest writes later is not in it.
    g.physical.fill(0x80000, 0x1000, 0);
    expect(g.results[0].ok && g.results[0].bytes[0]).toBe(0x10);
  });

  test("bad ranges, malformed entries, no RAM", () => {
    const g = guest();
    const reason = (gva: number, length: number, space = g.space): string => {
      g.results.length = 0;
      expect(g.swapped.read(space, gva, length, {}, g.done)).toBeUndefined();
      expect(g.results.length).toBe(1);
      return g.results[0].ok ? "ok" : g.results[0].reason;
    };
    for (const [gva, length] of [
      [0x800000000000, 1],
      [0x7fffffffffff, 2],
      [-1, 2],
      [Number.NaN, 1],
      [USER + 0.5, 1],
      [USER, SWAPPED_LENGTH + 1],
      [USER, -1],
      [USER, Number.NaN],
    ]) {
      expect(reason(gva, length)).toBe("range");
    }
    g.physical.writeU64(g.entries[1], 0x81067, 0x000f0000);
    const narrow = { ...g.space, features: { ...DEFAULT_FEATURES, physicalBits: 46 } };
    expect(reason(USER, 0x2000, narrow)).toBe("malformed");
    g.physical.writeU64(g.entries[1], 0xfee00067, 0);
    expect(reason(USER, 0x2000)).toBe("no-ram");
    expect(reason(USER, 1, { ...g.space, root: 0x80000000 })).toBe("no-ram");
  });

  test("requests and their bytes are limited, and what ends makes room", () => {
    const g = guest();
    const handles = Array.from({ length: SWAPPED_REQUESTS }, () =>
      g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done),
    );
    expect(g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done)).toBeUndefined();
    expect(g.results).toEqual([{ ok: false, gva: USER + 0x1000, reason: "limit" }]);
    // What is present needs no room.
    g.swapped.read(g.space, USER, 8, {}, g.done);
    expect(g.results[1].ok).toBe(true);
    handles[5]?.cancel();
    expect(g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done)).toBeDefined();
    for (const h of handles) h?.cancel();
    const long = (): unknown => g.swapped.read(g.space, USER, SWAPPED_LENGTH, {}, g.done);
    for (let i = 0; i < SWAPPED_BYTES / SWAPPED_LENGTH - 1; i++) expect(long()).toBeDefined();
    expect(long()).toBeUndefined();
  });
});

describe("an injected fault", () => {
  test("brings in page after page, and calls back once with all of them", () => {
    const g = guest();
    const handle = g.swapped.read(g.space, USER + 0xffe, 0x1004, {}, g.done);
    expect([handle?.waiting, g.swapped.wants]).toEqual([true, true]);
    for (const i of [1, 2]) {
      g.poll();
      expect(g.vcpu.u32[EVENT_FLAGS >>> 2] & HVI_EVENT_NOTIFY).toBe(HVI_EVENT_NOTIFY);
      expect([g.vcpu.eventVector, g.vcpu.u32[EVENT_ERROR_CODE >>> 2]]).toEqual([PF, 4]);
      expect(g.vcpu.u32[EVENT_CR2 >>> 2]).toBe(USER + i * 0x1000);
      expect(g.swapped.wants).toBe(false);
      expect(g.takes()).toBe(true);
      g.page(i, true);
    }
    g.poll();
    const bytes = new Uint8Array(0x1004).fill(0x11);
    bytes.set([0x10, 0x10], 0);
    bytes.set([0x12, 0x12], 0x1002);
    expect(g.results).toEqual([{ ok: true, gva: USER + 0xffe, bytes }]);
    expect([handle?.waiting, g.swapped.waiting, g.swapped.deadline]).toEqual([
      false,
      0,
      Number.POSITIVE_INFINITY,
    ]);
    expect([g.swapped.injected, g.swapped.delivered, g.swapped.lost]).toEqual([2, 2, 0]);
  });

  const refusals: [string, (g: ReturnType<typeof guest>) => void][] = [
    ["in another address space", (g) => (g.vcpu.cr3 = g.other.root)],
    ["in another paging mode", (g) => (g.vcpu.efer = 0)],
    ["in the kernel", (g) => g.vcpu.setSeg(HVI_SS, 0x18, 0, 0xffffffff, 0xc093)],
    ["in virtual-8086 mode", (g) => (g.vcpu.rflags = 0x20202)],
    ["with an event waiting", (g) => g.vcpu.inject(0, 0x30)],
    ["in an interrupt shadow", (g) => (g.vcpu.interruptibility = HVI_BLOCK_STI)],
    ["when halted", (g) => (g.vcpu.mpState = HVI_MP_HALTED)],
    ["before an instruction that goes on", (g) => (g.vcpu.u32[EXIT_REASON >>> 2] = HVI_EXIT_EPT)],
    [
      "during the delivery of an event",
      (g) => {
        g.vcpu.u32[EXIT_REASON >>> 2] = HVI_EXIT_EPT;
        g.vcpu.u32[EXIT_ACCESS >>> 2] = HVI_ACCESS_EVENT;
        g.vcpu.retry();
      },
    ],
  ];
  for (const [when, change] of refusals) {
    test(`is not injected ${when}`, () => {
      const g = guest();
      g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
      change(g);
      g.poll();
      expect([g.swapped.injected, g.swapped.wants, g.vcpu.eventVector === PF]).toEqual([
        0,
        true,
        false,
      ]);
    });
  }

  test("may be injected where the instruction is run again", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.vcpu.u32[EXIT_REASON >>> 2] = HVI_EXIT_EPT;
    g.vcpu.retry();
    g.poll();
    expect(g.swapped.injected).toBe(1);
  });

  test("is one at a time in the whole guest, and each request has its turn", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.swapped.read(g.space, USER + 0x2000, 8, {}, g.done);
    g.poll();
    g.poll(g.vm.vcpus[1]);
    expect(g.swapped.injected).toBe(1);
    g.takes();
    g.page(1, true);
    g.poll();
    expect([g.results.length, g.swapped.injected]).toEqual([1, 2]);
    expect(g.vcpu.u32[EVENT_CR2 >>> 2]).toBe(USER + 0x2000);
  });

  test("is tried again when lost, by the notice or by time, and not for ever", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.poll();
    expect(g.takes(HVI_EVENT_LOST)).toBe(true);
    g.poll();
    expect([g.swapped.injected, g.swapped.lost]).toEqual([2, 1]);
    g.takes();
    let tsc = 10 * SECOND;
    // Delivered, but the page does not come: after a second it counts as lost.
    g.at(tsc);
    g.swapped.poll(g.vcpu);
    expect([g.swapped.lost, g.swapped.injected]).toEqual([2, 3]);
    for (let i = 0; i < 20; i++) {
      g.vcpu.u32[EVENT_FLAGS >>> 2] = 0;
      tsc += 2 * SECOND;
      g.at(tsc);
      g.swapped.poll(g.vcpu);
    }
    expect(g.results).toEqual([{ ok: false, gva: USER + 0x1000, reason: "not-delivered" }]);
    expect(g.swapped.injected).toBe(8);
  });

  test("a TSC that goes back does not hold it up", () => {
    const g = guest();
    g.at(2 ** 31);
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.swapped.poll(g.vcpu);
    g.takes();
    g.at(5);
    g.swapped.poll(g.vcpu);
    expect(g.swapped.lost).toBe(1);
    expect(g.swapped.deadline).toBeLessThan(SECOND);
  });

  test("news of somebody else's event is not taken", () => {
    const g = guest();
    expect(g.takes()).toBe(false);
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.poll();
    expect(g.takes(HVI_EVENT_DELIVERED, g.vm.vcpus[1])).toBe(false);
    g.vcpu.u32[EVENT_CR2 >>> 2] = 0x1234;
    expect(g.takes()).toBe(false);
  });

  test("asks whether it may, page by page", () => {
    const g = guest();
    const asked: number[] = [];
    const mayInject = (gva: number): boolean => {
      asked.push(gva);
      return false;
    };
    g.swapped.read(g.space, USER + 0x1ff8, 16, { mayInject }, g.done);
    g.poll();
    expect([asked, g.swapped.injected]).toEqual([[USER + 0x1000], 0]);
  });

  test("for kernel addresses only where told, with interrupts on and CR8 0", () => {
    const linux = guest();
    const windows = guest({ kernelFaults: true });
    for (const g of [linux, windows]) {
      g.page(-1, false);
      g.swapped.read(g.space, KERNEL, 8, {}, g.done);
      g.poll();
      expect(g.swapped.injected).toBe(0);
      g.vcpu.setSeg(HVI_SS, 0x18, 0, 0xffffffff, 0xc093);
      g.vcpu.cr8 = 2;
      g.poll();
      g.vcpu.cr8 = 0;
      g.vcpu.rflags = 2;
      g.poll();
      expect(g.swapped.injected).toBe(0);
      g.vcpu.rflags = 0x202;
      g.poll();
    }
    expect([linux.swapped.injected, windows.swapped.injected]).toEqual([0, 1]);
    expect(windows.vcpu.u32[EVENT_ERROR_CODE >>> 2]).toBe(0);
  });

  test("finds a process by either root of its pair", () => {
    const g = guest();
    const pair = g.space.root + 0x1000;
    g.memory.kernelRootOf = (cr3) => (cr3 === pair ? g.space.root : cr3);
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.vcpu.cr3 = pair;
    g.poll();
    expect(g.swapped.injected).toBe(1);
    const h = guest({ sameSpace: (_, cr3) => cr3 === 0x5000 });
    h.swapped.read(h.space, USER + 0x1000, 8, {}, h.done);
    h.poll();
    expect(h.swapped.injected).toBe(0);
    h.vcpu.cr3 = 0x5000;
    h.poll();
    expect(h.swapped.injected).toBe(1);
  });
});

describe("waiting", () => {
  test("without injection: the page that comes by itself completes", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, { inject: false }, g.done);
    expect(g.swapped.wants).toBe(false);
    g.poll();
    expect([g.swapped.injected, g.results.length]).toEqual([0, 0]);
    g.page(1, true);
    g.poll();
    expect(g.results[0].ok).toBe(true);
  });

  test("a page that goes again is waited for again", () => {
    const g = guest();
    g.swapped.read(g.space, USER, 0x3000, { inject: false }, g.done);
    g.page(1, true);
    g.poll();
    g.page(0, false);
    g.page(2, true);
    g.poll();
    expect(g.results).toEqual([]);
    g.page(0, true);
    g.poll();
    expect(g.results.length).toBe(1);
    expect(g.results[0].ok && g.results[0].bytes[0x2fff]).toBe(0x12);
  });

  test("an entry that turns bad meanwhile is an answer", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, { inject: false }, g.done);
    g.physical.writeU64(g.entries[1], 0xfee00067, 0);
    g.poll();
    expect(g.results).toEqual([{ ok: false, gva: USER + 0x1000, reason: "no-ram" }]);
  });

  test("a change that is told needs no interval, and watches come and go", () => {
    const watched: number[] = [];
    let removed = 0;
    let change = (): void => {};
    const notifier: TranslationNotifier = {
      watch(_space, gva, onChange) {
        watched.push(gva);
        change = onChange;
        return { remove: () => void removed++ };
      },
    };
    const g = guest({ notifier });
    g.swapped.read(g.space, USER, 0x3000, { inject: false }, g.done);
    g.poll();
    expect(watched).toEqual([USER + 0x1000]);
    const before = g.swapped.deadline;
    // Told before the write is in memory: looked at again right after.
    change();
    expect(g.swapped.deadline).toBe(0);
    g.swapped.poll(g.vcpu);
    expect(g.swapped.deadline).toBeLessThan(before);
    g.page(1, true);
    g.at(g.swapped.deadline);
    g.swapped.poll(g.vcpu);
    expect([watched, removed]).toEqual([[USER + 0x1000, USER + 0x2000], 1]);
    g.page(2, true);
    change();
    g.swapped.poll(g.vcpu);
    expect([g.results.length, removed]).toEqual([1, 2]);
  });

  test("one is cancelled: no callback, and its fault is not waited for", () => {
    const g = guest();
    const handle = g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.poll();
    // The backend has the event: its news is still ours.
    g.vcpu.u32[EVENT_FLAGS >>> 2] &= ~HVI_EVENT_VALID;
    handle?.cancel();
    handle?.cancel();
    expect([handle?.waiting, g.swapped.waiting]).toEqual([false, 0]);
    expect(g.takes()).toBe(true);
    g.page(1, true);
    g.poll();
    expect([g.results.length, g.swapped.deadline]).toEqual([0, Number.POSITIVE_INFINITY]);
    g.swapped.read(g.space, USER + 0x2000, 8, {}, g.done);
    g.poll();
    expect(g.swapped.injected).toBe(2);
  });

  test("one is cancelled before the guest goes on: its fault is taken back", () => {
    const g = guest();
    const handle = g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.poll();
    expect(g.vcpu.eventPending).toBe(true);
    handle?.cancel();
    expect(g.vcpu.eventPending).toBe(false);
    expect(g.takes()).toBe(false);
    // Somebody else's event is left alone.
    const next = g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.poll();
    g.vcpu.inject(3, 6);
    next?.cancel();
    expect(g.vcpu.eventPending).toBe(true);
  });

  test("a vCPU whose TSC is behind another's does not end its fault", () => {
    const g = guest();
    g.at(100 * SECOND);
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.swapped.poll(g.vcpu);
    g.at(SECOND, g.vm.vcpus[1]);
    g.swapped.poll(g.vm.vcpus[1]);
    expect([g.swapped.injected, g.swapped.lost]).toEqual([1, 0]);
  });

  test("an address space is cancelled when its process dies", () => {
    const g = guest();
    g.swapped.read(g.space, USER + 0x1000, 8, {}, g.done);
    g.swapped.read(g.space, USER + 0x2000, 8, {}, g.done);
    g.swapped.read({ ...g.space, root: g.other.root }, USER, 8, {}, g.done);
    g.poll();
    g.swapped.cancelSpace(g.space.root + 0x7);
    expect(g.results.map((r) => (r.ok ? "ok" : r.reason))).toEqual(["cancelled", "cancelled"]);
    expect(g.swapped.waiting).toBe(1);
    g.takes();
    g.poll();
    expect(g.swapped.waiting).toBe(1);
  });

  test("callbacks may read and cancel", () => {
    const g = guest();
    let second: { cancel(): void } | undefined;
    g.swapped.read(g.space, USER + 0x1000, 8, { inject: false }, (r) => {
      g.done(r);
      second?.cancel();
      g.swapped.read(g.space, USER + 0x1008, 8, {}, g.done);
      g.swapped.read(g.space, USER + 0x2008, 8, {}, g.done);
    });
    second = g.swapped.read(g.space, USER + 0x1000, 16, { inject: false }, g.done);
    g.page(1, true);
    g.poll();
    g.page(2, true);
    g.poll();
    const wanted = [USER + 0x1000, USER + 0x1008, USER + 0x2008];
    const got = g.results.map((r) => r.gva);
    for (const gva of wanted) expect(got.filter((x) => x === gva).length).toBeGreaterThan(0);
    expect(g.swapped.waiting).toBe(0);
  });
});
