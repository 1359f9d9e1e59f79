// SPDX-License-Identifier: MIT
/** Requests the backend must refuse, each leaving everything as it was. */

import * as abi from "../../../src/bridge/abi.ts";
import { type Backend, Block } from "../../../src/bridge/backend.ts";
import { EptRanges, HviError } from "../../../src/bridge/index.ts";
import { openSoft, openVmx } from "../../../src/bridge/native.ts";
import type { Bench } from "../bench.ts";
import { type Case, ept } from "../case.ts";
import { RAM_SIZE } from "../layout.ts";
import { R, RW, RWX, RX, W, X } from "./words.ts";

const E = {
  INVAL: 22,
  BUSY: 16,
  FAULT: 14,
  NOTTY: 25,
  OPNOTSUPP: 95,
  NOSPC: 28,
  NOMEM: 12,
  TOOBIG: 7,
  NOENT: 2,
  EXIST: 17,
};

/** The errno of a refused request; 0 when it was taken. */
function errno(f: () => void): number {
  try {
    f();
    return 0;
  } catch (e) {
    if (e instanceof HviError) return e.errno;
    throw e;
  }
}
function refused(what: string, f: () => void, ...allowed: number[]): string | undefined {
  const have = errno(f);
  if (have === 0) return `${what} was accepted`;
  return allowed.length === 0 || allowed.includes(have)
    ? undefined
    : `${what} gave errno ${have}, should be ${allowed.join(" or ")}`;
}

/** A request through Vm on a machine that stands. */
function request(name: string, f: (t: Bench) => string | undefined): Case {
  return { name: `error.${name}`, script: [], check: f };
}

/** Requests as raw structures, on a machine of its own. */
function raw(name: string, f: (b: Backend, ready: () => void) => string | undefined): Case {
  return {
    name: `error.raw.${name}`,
    script: [],
    check: (t) => {
      const b = t.backend === "soft" ? openSoft() : openVmx();
      try {
        return f(b, () => {
          const create = new Block(abi.SIZEOF_CREATE);
          create.set32(abi.CREATE_VCPUS, 1);
          if (b.ioctl(abi.HVI_CREATE, create) !== 0) throw new Error("HVI_CREATE failed");
          if (b.ioctl(abi.HVI_ADD_MEMORY, memory(0, 0x10000)) !== 0)
            throw new Error("HVI_ADD_MEMORY failed");
        });
      } finally {
        b.close();
      }
    },
  };
}
function memory(gpa: number, size: number, fd = -1, flags = 0): Block {
  const m = new Block(abi.SIZEOF_MEMORY);
  m.set64(abi.MEMORY_GPA, gpa);
  m.set64(abi.MEMORY_SIZE, size);
  m.set32(abi.MEMORY_FD, fd);
  m.set32(abi.MEMORY_FLAGS, flags);
  return m;
}
function fields(size: number, values: [number, number][]): Block {
  const b = new Block(size);
  for (const [offset, value] of values) b.set32(offset, value);
  return b;
}
function expect(
  b: Backend,
  what: string,
  number: number,
  block: Block,
  ...allowed: number[]
): string | undefined {
  const r = b.ioctl(number, block);
  if (r >= 0) return `${what} was accepted`;
  return allowed.length === 0 || allowed.includes(-r)
    ? undefined
    : `${what} gave errno ${-r}, should be ${allowed.join(" or ")}`;
}

export const errors: Case[] = [
  request(
    "ept.write-without-read",
    (t) =>
      refused("W", () => t.rights(t.p(0), W), E.INVAL) ??
      refused("WX", () => t.rights(t.p(0), W | X), E.INVAL) ??
      (t.vm.rights(0, t.gfn(0)) === RWX ? undefined : "the rights changed"),
  ),
  request(
    "ept.unknown-bits",
    (t) =>
      refused("rights 8", () => t.rights(t.p(0), 8), E.INVAL) ??
      refused("rights 0x17", () => t.rights(t.p(0), 0x17), E.INVAL),
  ),
  request("ept.outside-ram", (t) =>
    refused("a GFN behind RAM", () => t.rights(RAM_SIZE, R), E.INVAL, E.FAULT),
  ),
  request(
    "ept.runs-out-of-ram",
    (t) =>
      refused(
        "a range over the end",
        () => t.vm.setRights(0, RAM_SIZE / 4096 - 1, 2, R),
        E.INVAL,
        E.FAULT,
      ) ??
      (t.vm.rights(0, RAM_SIZE / 4096 - 1) === RWX
        ? undefined
        : "the rights of the last page changed"),
  ),
  request("ept.huge-count", (t) =>
    refused("count 2^32-1", () => t.vm.setRights(0, 0, 0xffffffff, R), E.INVAL, E.FAULT),
  ),
  request("ept.gfn-overflow", (t) =>
    refused("GFN 2^52-1", () => t.vm.setRights(0, 2 ** 52 - 1, 2, R), E.INVAL, E.FAULT),
  ),
  request(
    "ept.bad-view",
    (t) =>
      refused("view 5", () => t.rights(t.p(0), R, 5), E.INVAL, E.NOENT) ??
      refused("view 2^32-1", () => t.rights(t.p(0), R, 0xffffffff), E.INVAL, E.NOENT),
  ),
  request("ept.batch-is-atomic", (t) => {
    const r = new EptRanges();
    r.add(t.gfn(0), 1, R);
    r.add(t.gfn(2), 1, RX);
    r.add(RAM_SIZE / 4096 + 10, 1, R);
    r.add(t.gfn(4), 1, R);
    return (
      refused("a batch with a bad range", () => t.vm.setRightsBatch(0, r), E.INVAL, E.FAULT) ??
      ([0, 2, 4].every((n) => t.vm.rights(0, t.gfn(n)) === RWX)
        ? undefined
        : "some of the batch was done")
    );
  }),
  request("ept.batch", (t) => {
    const r = new EptRanges();
    r.add(t.gfn(0), 3, R);
    r.add(t.gfn(5), 1, RX);
    r.add(t.gfn(7), 2, 0);
    r.add(t.gfn(1), 1, RW);
    t.vm.setRightsBatch(0, r);
    const have = [0, 1, 2, 3, 5, 7, 8, 9].map((n) => t.vm.rights(0, t.gfn(n))).join("");
    return have === "13175007" ? undefined : `rights are ${have}, should be 13175007`;
  }),
  request("ept.get-outside-ram-is-0", (t) =>
    t.vm.rights(0, RAM_SIZE / 4096) === 0 ? undefined : "rights outside RAM",
  ),
  request("view.too-many", (t) => {
    for (let i = 1; i < t.vm.info.maxViews; i++) t.vm.createView(0);
    return refused(
      "one view too many",
      () => t.vm.createView(0),
      E.NOSPC,
      E.BUSY,
      E.INVAL,
      E.NOMEM,
    );
  }),
  request("view.from-nowhere", (t) =>
    refused("a copy of view 9", () => t.vm.createView(9), E.INVAL, E.NOENT),
  ),
  request("view.destroy-0", (t) => refused("view 0", () => t.vm.destroyView(0), E.INVAL, E.BUSY)),
  request("view.destroy-unknown", (t) =>
    refused("view 9", () => t.vm.destroyView(9), E.INVAL, E.NOENT),
  ),
  request("view.destroy-in-use", (t) => {
    t.vcpu().view = t.vm.createView(0);
    return refused("the view in use", () => t.vm.destroyView(1), E.BUSY);
  }),
  request("remap.bad-spare", (t) =>
    refused("spare 0 of none", () => t.vm.remap(0, t.gfn(0), 0), E.INVAL, E.NOENT),
  ),
  request("remap.bad-gfn", (t) => {
    const s = t.vm.addSpare(1);
    return refused("a GFN without RAM", () => t.vm.remap(0, RAM_SIZE / 4096, s), E.INVAL, E.FAULT);
  }),
  request("remap.bad-view", (t) =>
    refused("view 9", () => t.vm.remap(9, t.gfn(0), -1), E.INVAL, E.NOENT),
  ),
  request(
    "spare.too-many",
    (t) =>
      refused("2^31 pages", () => t.vm.addSpare(0x80000000), E.INVAL, E.NOMEM, E.NOSPC) ??
      refused("0 pages", () => t.vm.addSpare(0), E.INVAL),
  ),
  request(
    "intercept.bad-kind",
    (t) =>
      refused("kind 0", () => t.vm.intercept(0, 0, 1), E.INVAL) ??
      refused("kind 99", () => t.vm.intercept(99, 0, 1), E.INVAL),
  ),
  request(
    "intercept.bad-mask",
    (t) =>
      refused(
        "mask 2 of an MSR",
        () => t.vm.intercept(abi.HVI_INTERCEPT_MSR_READ, 0x10, 2),
        E.INVAL,
      ) ??
      refused(
        "vector 32",
        () => t.vm.intercept(abi.HVI_INTERCEPT_EXCEPTION, 0, 2 ** 32),
        E.INVAL,
      ) ??
      refused("DTR bit 8", () => t.vm.intercept(abi.HVI_INTERCEPT_DTR, 0, 0x100), E.INVAL),
  ),
  request("intercept.io-range-backwards", (t) =>
    refused(
      "ports 0x80 to 0x70",
      () => t.vm.intercept(abi.HVI_INTERCEPT_IO, 0x80 | (0x70 << 16), 1),
      E.INVAL,
    ),
  ),
  request(
    "vcpu.bad-index",
    (t) =>
      refused("pause 7", () => t.vm.pause(7), E.INVAL) ??
      refused("resume 7", () => t.vm.resume(7), E.INVAL) ??
      refused("fetch 7", () => t.vm.fetch(7, 1), E.INVAL) ??
      refused("reset 7", () => t.vm.reset(7), E.INVAL),
  ),
  request("msr.bad-vcpu", (t) => refused("vCPU 7", () => void t.vm.getMsrs(7, [0x10]), E.INVAL)),
  request(
    "msr.unknown",
    (t) =>
      refused("reading MSR 0x1fff", () => void t.vm.getMsrs(0, [0xc0000082, 0x1fff]), E.INVAL) ??
      refused(
        "writing MSR 0x1fff",
        () =>
          t.vm.setMsrs(0, [
            { index: 0xc0000082, value: 5n },
            { index: 0x1fff, value: 0n },
          ]),
        E.INVAL,
      ) ??
      (t.vm.getMsrs(0, [0xc0000082])[0] === 0n
        ? undefined
        : "the MSR before the bad one was written"),
  ),
  request("msr.bad-value", (t) =>
    refused(
      "a LSTAR that is not canonical",
      () => t.vm.setMsrs(0, [{ index: 0xc0000082, value: 0x0000900000000000n }]),
      E.INVAL,
    ),
  ),
  request("xsave.bad-vcpu", (t) => refused("vCPU 7", () => void t.vm.getXsave(7), E.INVAL)),
  request("xsave.bad-size", (t) =>
    refused("3 bytes", () => t.vm.setXsave(0, new Uint8Array(3)), E.INVAL),
  ),
  request("xsave.bad-header", (t) => {
    const a = t.vm.getXsave(0).slice();
    a[519] = 0x40;
    return refused("XSTATE_BV with an unknown bit", () => t.vm.setXsave(0, a), E.INVAL);
  }),
  request("xsave.bad-mxcsr", (t) => {
    const a = t.vm.getXsave(0).slice();
    a[27] = 0xff;
    a[512]! |= 2;
    return refused("reserved bits of MXCSR", () => t.vm.setXsave(0, a), E.INVAL);
  }),
  request("cpuid.too-many", (t) =>
    refused(
      "129 entries",
      () =>
        t.vm.setCpuid(
          Array.from({ length: 129 }, (_, leaf) => ({
            leaf,
            index: 0,
            flags: 0,
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
          })),
        ),
      E.INVAL,
      E.TOOBIG,
    ),
  ),
  request("spp", (t) => {
    if (!t.vm.has(abi.HVI_CAP_SPP))
      return refused("HVI_SPP_SET", () => t.vm.setSubPage(0, t.gfn(0), 1), E.OPNOTSUPP);
    return (
      refused("view 3", () => t.vm.setSubPage(3, t.gfn(0), 1), E.INVAL) ??
      refused("view 2^32 - 1", () => t.vm.setSubPage(0xffffffff, t.gfn(0), 1), E.INVAL) ??
      refused("behind RAM", () => t.vm.setSubPage(0, RAM_SIZE / 4096, 1), E.FAULT) ??
      refused("far behind RAM", () => t.vm.setSubPage(0, 2 ** 52, 1), E.FAULT)
    );
  }),
  request("ve.information-page", (t) => {
    if (!t.vm.has(abi.HVI_CAP_VE))
      return refused("HVI_VE_SET", () => t.vm.setVe(0, true, 0x5000, []), E.OPNOTSUPP);
    return (
      refused("vCPU 7", () => t.vm.setVe(7, true, 0x5000, []), E.INVAL) ??
      refused("a crooked address", () => t.vm.setVe(0, true, 0x5008, []), E.INVAL) ??
      refused("behind RAM", () => t.vm.setVe(0, true, RAM_SIZE, []), E.FAULT) ??
      refused("far behind RAM", () => t.vm.setVe(0, true, 2 ** 52, []), E.FAULT)
    );
  }),
  request("ve.views", (t) => {
    if (!t.vm.has(abi.HVI_CAP_EPTP_SWITCH))
      return refused("HVI_VE_SET", () => t.vm.setVe(0, false, 0, [0]), E.OPNOTSUPP);
    const all = Array.from({ length: abi.HVI_MAX_VIEWS + 1 }, (_, i) => i);
    return (
      refused("a view that is not", () => t.vm.setVe(0, false, 0, [0, 3]), E.INVAL) ??
      refused("view 2^32 - 1", () => t.vm.setVe(0, false, 0, [0xffffffff]), E.INVAL) ??
      refused("a view twice", () => t.vm.setVe(0, false, 0, [0, 0]), E.INVAL) ??
      refused("too many views", () => t.vm.setVe(0, false, 0, all), E.INVAL)
    );
  }),
  request("ve.pages", (t) => {
    if (!t.vm.has(abi.HVI_CAP_VE))
      return refused("HVI_VE_PAGES", () => t.vm.setVePages(0, t.gfn(0), 1, true), E.OPNOTSUPP);
    return (
      refused("view 3", () => t.vm.setVePages(3, t.gfn(0), 1, true), E.INVAL) ??
      refused("no page", () => t.vm.setVePages(0, t.gfn(0), 0, true), E.INVAL) ??
      refused("behind RAM", () => t.vm.setVePages(0, RAM_SIZE / 4096, 1, true), E.FAULT) ??
      refused("over RAM's end", () => t.vm.setVePages(0, 0, RAM_SIZE / 4096 + 1, true), E.FAULT) ??
      refused("more than there can be", () => t.vm.setVePages(0, 1, 2 ** 53 - 1, true), E.FAULT)
    );
  }),
  raw("ve.bad-fields", (b, ready) => {
    ready();
    const ve = new Block(abi.SIZEOF_VE);
    const pages = new Block(abi.SIZEOF_VE_PAGES);
    pages.set64(abi.VE_PAGES_COUNT, 1);
    const wrong = (what: string, request: number, block: Block, offset: number) => {
      block.set32(offset, 2);
      const r = b.ioctl(request, block);
      block.set32(offset, 0);
      // Without the capability the request is refused whatever it says.
      return r === -E.INVAL || r === -E.OPNOTSUPP ? undefined : `${what} 2 gave ${r}`;
    };
    return (
      wrong("enable", abi.HVI_VE_SET, ve, abi.VE_ENABLE) ??
      wrong("reserved", abi.HVI_VE_SET, ve, abi.VE_VIEW_COUNT + 4) ??
      wrong("convertible", abi.HVI_VE_PAGES, pages, abi.VE_PAGES_CONVERTIBLE)
    );
  }),
  {
    name: "error.run.bad-view",
    setup: (t) => {
      t.vcpu().view = 9;
    },
    script: [],
    done: false,
    check: (t) => refused("a run in view 9", () => void t.vm.run(1e6), E.INVAL),
  },
  {
    name: "error.run.bad-reply",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0))],
    done: false,
    check: (t) => {
      t.cpu.put32(abi.REPLY_ACTION, 77);
      return refused("action 77", () => void t.vm.run(1e9), E.INVAL);
    },
  },
  {
    // There is no instruction yet to go past; the refused reply can be given anew.
    name: "error.run.skip-of-fetch",
    regs: (t) => ({ rip: t.d(7) }),
    setup: (t) => {
      t.poke(t.p(7), "90 90 e6ee");
      t.rights(t.p(7), RW);
    },
    script: (t) => [ept("x", t.p(7), { rip: t.d(7), rights: RW })],
    done: false,
    check: (t) => {
      t.vcpu().skip();
      const bad = refused("SKIP of a fetch", () => void t.vm.run(1e9), E.INVAL);
      if (bad) return bad;
      t.rights(t.p(7), RWX);
      t.vcpu().retry();
      return t.vm.run(1e9).exitReason === abi.HVI_EXIT_IO ? undefined : "RETRY did not go on";
    },
  },
  {
    name: "error.run.bad-step-view",
    entry: "st8",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), R),
    script: (t) => [ept("w", t.p(0))],
    done: false,
    check: (t) => {
      t.vcpu().step(9);
      return refused("a step in view 9", () => void t.vm.run(1e9), E.INVAL);
    },
  },
  {
    name: "error.run.bad-emulate-range",
    entry: "ld8",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.rights(t.p(0), 0),
    script: (t) => [ept("r", t.p(0))],
    done: false,
    check: (t) => {
      const c = t.cpu;
      t.vcpu().emulate(t.p(0), new Uint8Array(8));
      c.put32(abi.REPLY_RANGE + abi.EMULATE_RANGE_OFFSET, 252);
      const over = refused("bytes behind the buffer", () => void t.vm.run(1e9), E.INVAL);
      if (over) return over;
      t.vcpu().emulate(t.p(0), new Uint8Array(8));
      c.put64(abi.REPLY_RANGE, t.p(0, 0xffc));
      return refused("a range over the page's end", () => void t.vm.run(1e9), E.INVAL);
    },
  },
  {
    name: "error.run.bad-event",
    script: [],
    done: false,
    check: (t) => {
      t.vcpu().inject(1, 0x30);
      const type = refused("event type 1", () => void t.vm.run(1e9), E.INVAL);
      if (type) return type;
      t.vcpu().inject(abi.HVI_EVENT_EXCEPTION, 32);
      const vector = refused("exception 32", () => void t.vm.run(1e9), E.INVAL);
      if (vector) return vector;
      t.vcpu().inject(abi.HVI_EVENT_EXTERNAL, 256);
      return refused("vector 256", () => void t.vm.run(1e9), E.INVAL);
    },
  },
  {
    name: "error.memory-after-run",
    script: [],
    check: (t) => {
      let have = 0;
      try {
        t.vm.addMemory({ gpa: 0x10000000, size: 0x1000 });
      } catch (e) {
        have = e instanceof Error ? 1 : 0;
      }
      return have ? undefined : "memory was added to a machine that runs";
    },
  },
  raw("unknown-number", (b) => expect(b, "ioctl 0x7f", 0x4008b17f, new Block(64), E.NOTTY)),
  raw("wrong-magic", (b) => expect(b, "another magic", 0x40084101, new Block(64), E.NOTTY)),
  raw("wrong-size", (b) =>
    expect(b, "HVI_CREATE of 16 bytes", 0x4010b101, new Block(64), E.NOTTY, E.INVAL),
  ),
  raw("info.wrong-size", (b) => {
    const i = fields(abi.SIZEOF_INFO, [[abi.INFO_SIZE, 8]]);
    return (
      expect(b, "a hvi_info of 8 bytes", abi.HVI_GET_INFO, i, E.INVAL) ??
      (i.get32(abi.INFO_ABI_VERSION) === abi.HVI_ABI_VERSION
        ? undefined
        : "the version is not told")
    );
  }),
  raw(
    "before-create",
    (b) =>
      expect(b, "HVI_RUN", abi.HVI_RUN, new Block(abi.SIZEOF_RUN)) ??
      expect(b, "HVI_EPT_SET", abi.HVI_EPT_SET, new Block(abi.SIZEOF_EPT)) ??
      expect(b, "HVI_GET_XSAVE", abi.HVI_GET_XSAVE, new Block(abi.SIZEOF_XSAVE)) ??
      expect(b, "HVI_PAUSE", abi.HVI_PAUSE, new Block(abi.SIZEOF_VCPU_OP)) ??
      expect(b, "HVI_ADD_SPARE", abi.HVI_ADD_SPARE, fields(8, [[0, 1]])),
  ),
  raw(
    "create.counts",
    (b) =>
      expect(b, "0 vCPUs", abi.HVI_CREATE, fields(8, [[abi.CREATE_VCPUS, 0]]), E.INVAL) ??
      expect(b, "33 vCPUs", abi.HVI_CREATE, fields(8, [[abi.CREATE_VCPUS, 33]]), E.INVAL) ??
      expect(
        b,
        "flags",
        abi.HVI_CREATE,
        fields(8, [
          [abi.CREATE_VCPUS, 1],
          [abi.CREATE_FLAGS, 1],
        ]),
        E.INVAL,
      ),
  ),
  raw("create.twice", (b, ready) => {
    ready();
    return expect(
      b,
      "a second HVI_CREATE",
      abi.HVI_CREATE,
      fields(8, [[abi.CREATE_VCPUS, 1]]),
      E.BUSY,
      E.INVAL,
      E.EXIST,
    );
  }),
  raw("memory", (b, ready) => {
    ready();
    return (
      expect(b, "an overlap", abi.HVI_ADD_MEMORY, memory(0x8000, 0x10000), E.INVAL, E.EXIST) ??
      expect(b, "size 0", abi.HVI_ADD_MEMORY, memory(0x100000, 0), E.INVAL) ??
      expect(b, "an odd size", abi.HVI_ADD_MEMORY, memory(0x100000, 0x1001), E.INVAL) ??
      expect(b, "an odd address", abi.HVI_ADD_MEMORY, memory(0x100010, 0x1000), E.INVAL) ??
      expect(b, "flags", abi.HVI_ADD_MEMORY, memory(0x100000, 0x1000, -1, 1), E.INVAL) ??
      expect(
        b,
        "an end beyond 2^64",
        abi.HVI_ADD_MEMORY,
        (() => {
          const m = memory(0, 0x2000);
          m.set32(abi.MEMORY_GPA, 0xfffff000);
          m.set32(abi.MEMORY_GPA + 4, 0xffffffff);
          return m;
        })(),
        E.INVAL,
      ) ??
      expect(b, "a file that is not open", abi.HVI_ADD_MEMORY, memory(0x100000, 0x1000, 9999))
    );
  }),
  raw("memory.too-many-slots", (b, ready) => {
    ready();
    for (let i = 1; i < abi.HVI_MAX_MEMORY_SLOTS; i++) {
      if (b.ioctl(abi.HVI_ADD_MEMORY, memory(i * 0x100000, 0x1000)) !== 0)
        return `slot ${i} was refused`;
    }
    return expect(
      b,
      "one slot too many",
      abi.HVI_ADD_MEMORY,
      memory(0x1000000, 0x1000),
      E.NOSPC,
      E.INVAL,
      E.BUSY,
    );
  }),
  raw("null-pointers", (b, ready) => {
    ready();
    return (
      expect(
        b,
        "HVI_EPT_SET",
        abi.HVI_EPT_SET,
        fields(abi.SIZEOF_EPT, [[abi.EPT_COUNT, 1]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_EPT_GET",
        abi.HVI_EPT_GET,
        fields(abi.SIZEOF_EPT, [[abi.EPT_COUNT, 1]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_GET_CPUID",
        abi.HVI_GET_CPUID,
        fields(abi.SIZEOF_CPUID, [[abi.CPUID_COUNT, 128]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_SET_CPUID",
        abi.HVI_SET_CPUID,
        fields(abi.SIZEOF_CPUID, [[abi.CPUID_COUNT, 1]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_GET_XSAVE",
        abi.HVI_GET_XSAVE,
        fields(abi.SIZEOF_XSAVE, [[abi.XSAVE_SIZE, 4096]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_SET_XSAVE",
        abi.HVI_SET_XSAVE,
        fields(abi.SIZEOF_XSAVE, [[abi.XSAVE_SIZE, 4096]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_GET_MSRS",
        abi.HVI_GET_MSRS,
        fields(abi.SIZEOF_MSRS, [[abi.MSRS_COUNT, 1]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_SET_MSRS",
        abi.HVI_SET_MSRS,
        fields(abi.SIZEOF_MSRS, [[abi.MSRS_COUNT, 1]]),
        E.FAULT,
        E.INVAL,
      ) ??
      expect(
        b,
        "HVI_LIST_MSRS",
        abi.HVI_LIST_MSRS,
        fields(abi.SIZEOF_MSRS, [[abi.MSRS_COUNT, 64]]),
        E.FAULT,
        E.INVAL,
      )
    );
  }),
  raw("ept.too-many-ranges", (b, ready) => {
    ready();
    const list = new Block(abi.SIZEOF_EPT_RANGE);
    const e = fields(abi.SIZEOF_EPT, [[abi.EPT_COUNT, 65537]]);
    e.attach(abi.EPT_RANGES, list);
    return expect(b, "65537 ranges", abi.HVI_EPT_SET, e, E.INVAL, E.TOOBIG);
  }),
  raw("run.flags", (b, ready) => {
    ready();
    return expect(
      b,
      "run flags 0x80",
      abi.HVI_RUN,
      fields(abi.SIZEOF_RUN, [[abi.RUN_FLAGS, 0x80]]),
      E.INVAL,
    );
  }),
  raw("mmap.refused", (b, ready) => {
    ready();
    const bad: [string, number, number][] = [
      ["behind RAM", abi.HVI_MMAP_RAM, 0x20000],
      ["vCPU page 1 of 1", abi.HVI_MMAP_VCPU + abi.HVI_VCPU_SIZE, abi.HVI_VCPU_SIZE],
      ["spare page 0 of none", abi.HVI_MMAP_SPARE, 4096],
      ["nowhere", 0x300000000000, 4096],
      ["an odd offset", 0x10, 4096],
    ];
    for (const [what, offset, size] of bad) {
      if (typeof b.map(offset, size, size) !== "number") return `mmap of ${what} was accepted`;
    }
    return undefined;
  }),
];
