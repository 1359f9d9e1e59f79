// SPDX-License-Identifier: MIT
/** A1, A2, A11: what the backend says of itself, and state that goes both ways. */
import { closeSync, openSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as abi from "../../../src/bridge/abi.ts";
import { openVm } from "../../../src/bridge/index.ts";
import { pattern } from "../bench.ts";
import { type Case, exit, trap } from "../case.ts";
import type { Cpu } from "../cpu.ts";
import { RAM_SIZE, SEL } from "../layout.ts";
import { setYmm0, VALUE, ymm0 } from "./words.ts";

function must(condition: boolean, what: string): string | undefined {
  return condition ? undefined : what;
}

/** A state that cannot be entered, and the field that says why. */
function refused(name: string, field: number, spoil: (c: Cpu) => void): Case {
  return {
    name: `state.invalid-entry.${name}`,
    setup: (t) => spoil(t.cpu),
    script: [exit(abi.HVI_EXIT_ENTRY_FAILED, { number: abi.HVI_ENTRY_BAD_GUEST, value: field })],
    done: false,
  };
}

export const state: Case[] = [
  {
    name: "info.sane",
    script: [],
    check: (t) => {
      const i = t.vm.info;
      return (
        must(i.backend === t.backend, `backend is ${i.backend}`) ??
        must(i.abiVersion === abi.HVI_ABI_VERSION, "ABI version") ??
        must(i.maxVcpus >= 2 && i.maxVcpus <= abi.HVI_MAX_VCPUS, `max_vcpus is ${i.maxVcpus}`) ??
        must(i.maxViews >= 4 && i.maxViews <= abi.HVI_MAX_VIEWS, `max_views is ${i.maxViews}`) ??
        must(i.xsaveSize >= 576, `xsave_size is ${i.xsaveSize}`) ??
        must((i.xcr0Mask & 3) === 3, `xcr0_mask is ${i.xcr0Mask}`) ??
        must(i.maxGfn >= 0xfffff, `max_gfn is ${i.maxGfn}`) ??
        must(i.tscKhz > 0, "tsc_khz is 0")
      );
    },
  },
  {
    name: "info.mtrr",
    script: [],
    check: (t) =>
      must([0, 1, 4, 5, 6].includes(t.vm.mtrrType(0x100000)), `type ${t.vm.mtrrType(0x100000)}`),
  },
  {
    name: "state.page-header",
    script: [],
    check: (t) =>
      must(
        t.cpu.u32(abi.VCPU_SIZE) === abi.SIZEOF_VCPU && t.cpu.u32(abi.VCPU_INDEX) === 0,
        "size or index of the vCPU page",
      ),
  },
  {
    name: "state.gprs-both-ways",
    entry: "vmcall",
    regs: {
      rax: 1n << 63n,
      rbx: VALUE,
      rcx: 3,
      rdx: 4,
      rbp: 5,
      rsi: 6,
      rdi: 7,
      r8: 8,
      r9: 9,
      r10: 10,
      r11: 11,
      r12: 12,
      r13: 13,
      r14: 14,
      r15: 0xffffffffffffffffn,
    },
    setup: (t) => t.vm.intercept(abi.HVI_INTERCEPT_VMCALL, 0, 1),
    script: [
      exit(abi.HVI_EXIT_VMCALL, {
        regs: {
          rax: 1n << 63n,
          rbx: VALUE,
          rcx: 3,
          rdx: 4,
          rbp: 5,
          rsi: 6,
          rdi: 7,
          r8: 8,
          r9: 9,
          r10: 10,
          r11: 11,
          r12: 12,
          r13: 13,
          r14: 14,
          r15: 0xffffffffffffffffn,
        },
      })
        .do((_, t) => t.cpu.setAll({ r8: VALUE, rax: 0 }))
        .skip(),
    ],
    end: { r8: VALUE, rax: 0, r15: 0xffffffffffffffffn },
  },
  {
    name: "state.crs-seen-by-guest",
    entry: "get_crs",
    regs: { cr2: 0xdead000 },
    script: [],
    end: { rax: 0x80010033, rbx: 0xdead000, rcx: 0x10000, rdx: 0x40620 },
  },
  {
    name: "state.cr8-seen-by-guest",
    entry: "get_cr8",
    regs: { cr8: 9 },
    script: [],
    end: { rax: 9 },
  },
  {
    name: "state.dr-seen-by-guest",
    entry: "get_dr",
    regs: { dr0: 0x1234, dr7: 0x400 },
    script: [],
    end: { rax: 0x1234, rbx: 0x400 },
  },
  {
    name: "state.dr7-written-by-guest",
    entry: "mov_dr7",
    regs: { rax: 0x402 },
    script: [],
    end: { dr7: 0x402 },
  },
  {
    name: "state.breakpoint-data",
    entry: "st8",
    // DR7: L0, write, 8 bytes.
    regs: (t) => ({ rdi: t.d(0), dr0: t.d(0), dr7: 0x90401 }),
    script: [trap(1, (t) => ({ rip: t.symbol("st8") + 3 }), { regs: { dr6: 0xffff0ff1 } })],
  },
  {
    name: "state.breakpoint-code",
    entry: "nops",
    regs: { dr7: 0x401 },
    setup: (t) => t.cpu.set("dr0", t.symbol("nops") + 1),
    // The CPU leaves RF clear for this one fault (SDM 17.3.1.1); the handler sets it, and the instruction runs.
    script: [
      trap(1, (t) => ({ rip: t.symbol("nops") + 1 })).do((_, t) => {
        const frame = t.phys(t.reg("rsp"));
        t.put64(frame + 16, t.get64(frame + 16) | 0x10000n);
      }),
    ],
  },
  {
    name: "state.fs-base-used",
    setup: (t) => {
      t.code(3, 0, "64488b042500000000 e6ee");
      t.cpu.segment("fs", SEL.data, t.d(0), 0xffffffff, 0xc093);
      t.put64(t.p(0), VALUE);
    },
    script: [],
    end: (t) => ({ rax: VALUE, fsBase: t.d(0) }),
  },
  {
    name: "state.swapgs",
    entry: "swapgs",
    regs: { kernelGsBase: 0x123000 },
    script: [],
    end: { gsBase: 0x123000, kernelGsBase: 0 },
  },
  {
    name: "state.syscall",
    entry: "syscall",
    mode: "user",
    regs: { star: 0x0018000800000000n, fmask: 0x200, rflags: 0x3202 },
    setup: (t) => t.cpu.set("lstar", t.symbol("nops")),
    script: [],
    end: { cs: SEL.code64, ss: SEL.data, r11: 0x3202, rflags: 0x3002 },
    check: (t) => must(t.reg("rcx") === BigInt(t.symbol("syscall") + 2), "RCX"),
  },
  {
    name: "state.sysret",
    entry: "sysret",
    regs: { star: 0x0018000800000000n, r11: 0x3202 },
    setup: (t) => t.cpu.set("rcx", t.symbol("nops")),
    script: [],
    end: { cs: SEL.userCode64, ss: SEL.userData, rflags: 0x3202 },
  },
  {
    name: "state.xsave-to-guest",
    entry: "st16",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => setYmm0(t, pattern(16)),
    script: [],
    memory: (t) => [[t.p(0), pattern(16)]],
  },
  {
    name: "state.xsave-to-guest.ymm",
    entry: "st32",
    needs: "avx",
    regs: (t) => ({ rdi: t.d(0) }),
    setup: (t) => setYmm0(t, pattern(32)),
    script: [],
    memory: (t) => [[t.p(0), pattern(32)]],
  },
  {
    name: "state.xsave-from-guest",
    entry: "ld16",
    regs: (t) => ({ rsi: t.d(0) }),
    setup: (t) => t.poke(t.p(0), pattern(16)),
    script: [],
    check: (t) => must(ymm0(t, 16) === pattern(16), `XMM0 is ${ymm0(t, 16)}`),
  },
  {
    name: "state.xsave-round-trip",
    setup: (t) => {
      setYmm0(t, pattern(16, 0x80));
      const a = t.vm.getXsave(0).slice();
      t.vm.setXsave(0, a);
      const b = t.vm.getXsave(0);
      if (Buffer.compare(Buffer.from(a), Buffer.from(b)) !== 0) throw new Error("the area changed");
    },
    script: [],
  },
  {
    name: "state.msrs-listed",
    script: [],
    check: (t) => {
      const list = t.vm.listMsrs();
      const missing = [
        0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000102, 0x174, 0x175, 0x176, 0x277,
      ].filter((m) => !list.includes(m));
      return must(
        missing.length === 0,
        `not listed: ${missing.map((m) => m.toString(16)).join(" ")}`,
      );
    },
  },
  {
    name: "state.msrs-set-and-read-by-guest",
    entry: "rdmsr",
    regs: { rcx: 0xc0000081 },
    setup: (t) => t.vm.setMsrs(0, [{ index: 0xc0000081, value: 0x0023001000000000n }]),
    script: [],
    end: { rdx: 0x230010, rax: 0 },
  },
  {
    name: "state.msrs-written-by-guest",
    entry: "wrmsr",
    regs: { rcx: 0x277, rax: 0x00070406, rdx: 0x00070406 },
    script: [],
    check: (t) =>
      must(
        t.vm.getMsrs(0, [0x277])[0] === 0x0007040600070406n,
        `IA32_PAT is ${t.vm.getMsrs(0, [0x277])[0]?.toString(16)}`,
      ),
  },
  {
    name: "state.msrs-round-trip",
    setup: (t) => {
      const list = t.vm.listMsrs();
      const before = t.vm.getMsrs(0, list);
      t.vm.setMsrs(
        0,
        list.map((index, i) => ({ index, value: before[i]! })),
      );
      const after = t.vm.getMsrs(0, list);
      // Time goes on.
      const changed = list.filter((m, i) => m !== 0x10 && after[i] !== before[i]);
      if (changed.length > 0)
        throw new Error(`changed: ${changed.map((m) => m.toString(16)).join(" ")}`);
    },
    script: [],
  },
  {
    name: "state.tsc-set",
    entry: "rdtsc",
    regs: { tsc: 0x100000000 },
    script: [],
    check: (t) =>
      must(
        t.reg("rdx") === 1n && t.reg("rax") < 0x10000000n,
        `RDTSC gave ${t.reg("rdx")}:${t.reg("rax")}`,
      ),
    brief: true,
  },
  {
    name: "state.counters-grow",
    entry: "nops",
    script: [],
    check: (t) => {
      const v = t.vcpu();
      if (v.exits !== 1) return `counters.exits is ${v.exits}`;
      const exact = (t.vm.info.caps & abi.HVI_CAP_ICOUNT) !== 0;
      return must(
        !exact || v.instructions === 3,
        `counters.instructions is ${v.instructions}, should be 3`,
      );
    },
  },
  {
    name: "state.icount-is-the-tsc",
    entry: "nops",
    regs: { tsc: 5000 },
    script: [],
    check: (t) => {
      if ((t.vm.info.caps & abi.HVI_CAP_ICOUNT) === 0) return undefined;
      return must(t.vcpu().tsc === 5003, `tsc is ${t.vcpu().tsc}, should be 5003`);
    },
  },
  {
    name: "state.dirty-is-cleared",
    entry: "out1",
    regs: { rdx: 0x60 },
    script: [
      exit(abi.HVI_EXIT_IO, { number: 0x60 })
        .do((v) => {
          if (v.dirty !== 0) throw new Error(`dirty is ${v.dirty}`);
        })
        .skip(),
    ],
  },
  {
    name: "state.engine-write-without-dirty-is-ignored",
    entry: "out1",
    regs: { rdx: 0x60, rbx: 1 },
    script: [
      exit(abi.HVI_EXIT_IO, { number: 0x60 })
        .do((v, t) => {
          t.cpu.put64(abi.VCPU_GPR + 8 * abi.HVI_RBX, 99);
          if (v.dirty !== 0) throw new Error("dirty");
        })
        .skip(),
    ],
    end: { rbx: 1 },
  },
  {
    name: "state.reply-resets-to-resume",
    entry: "st8x2",
    regs: (t) => ({ rdi: t.d(0), rax: VALUE }),
    setup: (t) => t.rights(t.p(0), abi.HVI_R),
    script: [
      exit(abi.HVI_EXIT_EPT).scratch(),
      exit(abi.HVI_EXIT_EPT).do((v) => {
        if (v.replyAction !== abi.HVI_REPLY_RESUME)
          throw new Error(`the action is ${v.replyAction}`);
      }),
    ],
    memory: (t) => [[t.p(0), `${"00".repeat(8)}1122334455667788`]],
  },
  {
    name: "state.moved-to-another-machine",
    entry: "out1",
    regs: { rdx: 0x60, rbx: VALUE, lstar: 0xffffffff81000000n, cr2: 0x1234 },
    setup: (t) => setYmm0(t, pattern(16)),
    // A snapshot: RAM, the vCPU page, XSAVE area and MSRs go to a second machine, which goes on.
    script: [exit(abi.HVI_EXIT_IO, { number: 0x60 }).skip()],
    check: (t) => {
      const other = t.sibling();
      try {
        other.vm.setCpuid(t.vm.supportedCpuid());
        other.poke(0, t.vm.ram.view(0, RAM_SIZE)!);
        other.vcpu().page.set(t.vcpu().page.subarray(abi.VCPU_GPR, abi.VCPU_EXIT), abi.VCPU_GPR);
        other.cpu.set("mpState", t.reg("mpState"));
        other.vm.setXsave(0, t.vm.getXsave(0).slice());
        const list = t.vm.listMsrs();
        const values = t.vm.getMsrs(0, list);
        other.vm.setMsrs(
          0,
          list.map((index, i) => ({ index, value: values[i]! })),
        );
        other.cpu.set("rip", t.symbol("st16"));
        other.cpu.set("rdi", t.d(0));
        other.vcpu().markDirty(abi.HVI_STATE_ALL);
        const v = other.vm.run(other.vcpu().tsc + 1_000_000);
        return (
          must(
            v.exitReason === abi.HVI_EXIT_IO && v.exitNumber === 0xee,
            `exit ${v.exitName} at ${v.rip}`,
          ) ??
          must(other.peek(t.p(0), 16) === pattern(16), "XMM0 did not come along") ??
          must(other.reg("rbx") === VALUE, "RBX did not come along") ??
          must(other.reg("lstar") === 0xffffffff81000000n, "LSTAR did not come along") ??
          must(other.reg("cr2") === 0x1234n, "CR2 did not come along")
        );
      } finally {
        other.close();
      }
    },
  },
  {
    name: "state.memory-from-file.copy-on-write",
    script: [],
    check: (t) => {
      if ((t.vm.info.caps & abi.HVI_CAP_COW_MEMORY) === 0) return undefined;
      const path = join(tmpdir(), `hvi-conformance-${process.pid}`);
      writeFileSync(path, Buffer.alloc(0x3000, 0x5a));
      const fd = openSync(path, "r");
      const vms = [0, 1].map(() => {
        const vm = openVm({ backend: t.backend });
        vm.create({ vcpus: 1 });
        vm.addMemory({ gpa: 0x100000, size: 0x2000, fd, fdOffset: 0x1000 });
        vm.mapMemory();
        return vm;
      });
      try {
        const [a, b] = vms.map((vm) => vm.ram.view(0x100000, 0x2000)!);
        if (a![0] !== 0x5a || b![0x1fff] !== 0x5a) return "the file's bytes are not in memory";
        a!.fill(1);
        if (b![0] !== 0x5a) return "a write in one machine is seen in another";
        return must(
          readFileSync(path).every((x) => x === 0x5a),
          "a write in a machine reached the file",
        );
      } finally {
        for (const vm of vms) vm.close();
        closeSync(fd);
        unlinkSync(path);
      }
    },
  },
  {
    name: "state.reset",
    script: [],
    check: (t) => {
      t.vm.reset(0);
      t.vm.fetch(0, abi.HVI_STATE_ALL);
      const c = t.cpu;
      return (
        must(c.get("rip") === 0xfff0n, `RIP is ${c.get("rip").toString(16)}`) ??
        must(c.get("cs") === 0xf000n, "CS") ??
        must((c.get("cr0") & 0x80000001n) === 0n, "CR0") ??
        must(c.get("rflags") === 2n, "RFLAGS") ??
        must(c.get("efer") === 0n, "EFER")
      );
    },
  },
  // All rules of VM entry are in test/vmx/entry.c; these stand for their kinds.
  refused("pae", abi.HVI_FIELD_GUEST_CR4, (c) => c.set("cr4", 0x600)),
  refused("paging-without-protection", abi.HVI_FIELD_GUEST_CR0, (c) => c.set("cr0", 0x80000010)),
  refused("rip", abi.HVI_FIELD_GUEST_RIP, (c) => c.set("rip", 0x0000800000000000n)),
  refused("lma-without-lme", abi.HVI_FIELD_GUEST_EFER, (c) => c.set("efer", 0xc01)),
  refused("cr3", abi.HVI_FIELD_GUEST_CR3, (c) => c.set("cr3", 1n << 60n)),
  refused("cr8", abi.HVI_FIELD_GUEST_CR8, (c) => c.set("cr8", 16)),
  refused("xcr0", abi.HVI_FIELD_GUEST_XCR0, (c) => c.set("xcr0", 5)),
  refused("pat", abi.HVI_FIELD_GUEST_PAT, (c) => c.set("pat", 0x0007040600070402n)),
  refused("lstar", abi.HVI_FIELD_GUEST_LSTAR, (c) => c.set("lstar", 1n << 63n)),
  refused("gs-base", abi.HVI_FIELD_GUEST_GS_BASE, (c) => c.set("gsBase", 1n << 47n)),
  refused("gdt-base", abi.HVI_FIELD_GUEST_GDTR_BASE, (c) => c.set("gdtBase", 1n << 47n)),
  refused("ds-type", abi.HVI_FIELD_GUEST_DS_ACCESS, (c) =>
    c.segment("ds", SEL.data, 0, 0xffffffff, 0xc092),
  ),
  refused("tr-not-busy", abi.HVI_FIELD_GUEST_TR_ACCESS, (c) =>
    c.segment("tr", SEL.tss, 0, 0x67, 0x89),
  ),
  refused("mp-state", abi.HVI_FIELD_MP_STATE, (c) => c.set("mpState", 5)),
];
