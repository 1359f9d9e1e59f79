// SPDX-License-Identifier: MIT
/** What the engine reads and sets of the guest at an exit: registers, vector registers, memory under any root. */
import {
  HVI_CS,
  HVI_EXIT_PAUSED,
  HVI_RAX,
  HVI_RCX,
  HVI_W,
  HVI_X,
  openVm,
  type Vcpu,
} from "../../../src/bridge/index.ts";
import { ALLOW, DENY } from "../../../src/ept/gpa-hooks.ts";
import { Gprs, Registers, Segments } from "../../../src/guest/state.ts";
import { Introspection } from "../../../src/introspection.ts";
import { PhysicalMemory } from "../../../src/memory/physical.ts";
import { safeWrite, WriteAccess, WriteOutcome, WriteStop } from "../../../src/memory/safe-write.ts";
import { setVectorOf, vectorOf } from "../../../src/x86/index.ts";
import { Cpu } from "../../conformance/cpu.ts";
import { KERNEL_BASE, P, PAGE, RW, TARGET, US, USER_PAGE, WORD } from "../layout.ts";
import { hex, type Scenario } from "../scenario.ts";

/** RFLAGS.RF. */
const RFLAGS_RF = 1 << 16;

/** Registers of ring 3 at a store that violates, and others in their place. */
const registers: Scenario = {
  name: "state.registers",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    const { state } = t.core;
    const all = new Registers();
    const segments = new Segments();
    const hook = t.core.hooks.add(frame / PAGE, HVI_W, (access) => {
      state.readRegisters(all);
      state.readSegments(segments);
      t.same("RDI", all.lo[7], va % 2 ** 32);
      t.same("RAX", all.lo[HVI_RAX], 0x11223344);
      t.same("ring", state.ring(), 3);
      t.same("bits", state.mode(), t.mode === "long" ? 64 : 32);
      t.same("root", state.cr3(), space.root);
      t.same("the same root in the record", all.cr3, space.root);
      t.same("RIP", all.rip, access.vcpu.rip);
      t.same("CS", (segments.selector[HVI_CS] as number) & 3, 3);
      const gate = state.idtEntry(3);
      t.same("gate 3 is there", gate?.present, true);
      t.same("gate 3 for ring 3", gate?.dpl, 3);
      t.same("a gate beyond the limit", state.idtEntry(0x1000), undefined);
      t.line(`cs limit ${hex(segments.limit[HVI_CS] as number)} idt limit ${hex(all.idtLimit)}`);
      // VT-x sets RF at an EPT violation (SDM 27.3.3), so that going on does not meet a breakpoint again.
      const rflags = all.rflags & ~RFLAGS_RF;
      t.line(`cr0 ${hex(all.cr0)} gdt limit ${hex(all.gdtLimit)} rflags ${hex(rflags)}`);
      const next = new Gprs();
      state.readGprs(next);
      next.lo[HVI_RAX] = 0x55667788;
      t.same("set", state.setGprs(next), true);
      next.rip = t.mode === "long" ? 2 ** 52 : 2 ** 33;
      t.same("set to a RIP that is none", state.setGprs(next), false);
      return ALLOW;
    });
    t.core.hooks.commit();
    const ran = t.guest.run("mov4_st", {
      ring: 3,
      space,
      registers: { di: va, ax: 0x11223344 },
    });
    t.same("exception", ran.fault, -1);
    t.same("stored", t.guest.memory.read32(frame), 0x55667788);
    t.same("RAX after", Number((ran.registers[0] as bigint) & 0xffffffffn), 0x55667788);
    t.core.hooks.remove(hook);
  },
};

/** A vector register at a store of it, and another value in its place. */
const vectors: Scenario = {
  name: "state.vectors",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    const given = Uint8Array.from({ length: 32 }, (_, i) => i + 1);
    const other = given.map((b) => b ^ 0xff);
    const seen = new Uint8Array(16);
    const hook = t.core.hooks.add(frame / PAGE, HVI_W, () => {
      t.same("read", vectorOf(t.guest.vm, 0, 0, seen), true);
      t.same("set", setVectorOf(t.guest.vm, 0, 0, other.slice(0, 16)), true);
      t.same("size", t.core.state.readXsave().length, t.core.state.xsaveSize);
      return ALLOW;
    });
    t.core.hooks.commit();
    t.guest.run("movups_st", { ring: 3, space, registers: { di: va }, vectors: [given] });
    const text = (b: Uint8Array) => Buffer.from(b).toString("hex");
    t.same("XMM0", text(seen), text(given.slice(0, 16)));
    t.same("stored", text(t.guest.bytes(frame, 16)), text(other.slice(0, 16)));
    t.core.hooks.remove(hook);
  },
};

/** Reads and writes under the current root, a named one, and the kernel's. */
const memory: Scenario = {
  name: "state.memory",
  run: (t) => {
    const [a, b] = [t.guest.space(), t.guest.space()];
    const va = TARGET[t.mode];
    const { memory } = t.core;
    const frames = [a, b].map((space) => space.mapNew(va, 2));
    a.enter();
    const { vcpu } = t.guest;
    const word = (n: number): number => (WORD[t.mode] === 8 ? n : n >>> 0);
    t.same("write", memory.of(0, vcpu).writePtr(va + PAGE - 4, 0x1234), true);
    t.same("under its root", memory.of(b.root, vcpu).writePtr(va + PAGE - 4, 0x5678), true);
    t.same("current", memory.current(vcpu).readPtr(va + PAGE - 4), word(0x1234));
    b.enter();
    t.same("the other is current", memory.of(0, vcpu).readPtr(va + PAGE - 4), word(0x5678));
    for (const [space, value] of [
      [a, 0x1234],
      [b, 0x5678],
    ] as const) {
      const load = t.guest.run("mov4_ld", {
        ring: 3,
        space,
        registers: { si: va + PAGE - 4 },
      });
      t.same("as the guest sees it", Number((load.registers[0] as bigint) & 0xffffffffn), value);
    }
    memory.setKernel(a.memory);
    const first = (frames[0] as number[])[0] as number;
    const kernel = KERNEL_BASE[t.mode] + first;
    t.same("text", memory.kernel?.write(kernel, new TextEncoder().encode("engine\0rest")), true);
    t.same("string", memory.current(vcpu).readString(kernel, 64), "engine");
    t.same("cut", memory.kernel?.readString(kernel, 3), "eng");
    t.same("set", memory.kernel?.fill(kernel + PAGE - 8, 8, 0x41), true);
    t.same("patched", memory.kernel?.write32(kernel + PAGE - 4, 0x42424242), true);
    t.same("fetched", memory.of(a.root, vcpu).read32(va + PAGE - 4), 0x42424242);
    t.same("a page that is absent", memory.of(a.root, vcpu).read32(va + 2 * PAGE), -1);
    t.same("over its edge", memory.of(a.root, vcpu).readU64(va + 2 * PAGE - 4), undefined);
    // Through the GPA cache it is the same memory.
    const bytes = new Uint8Array(4);
    t.same("by the cache", t.core.pages.fetch(first + PAGE - 4, bytes), true);
    t.same("its bytes", Buffer.from(bytes).toString(), "BBBB");
  },
};

/** Safe writes end as the guest's own stores at the same place do. */
const safeWrites: Scenario = {
  name: "state.safe-write",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const frames = space.mapNew(va, 2);
    const outcome = new WriteOutcome();
    const access = new WriteAccess();
    const bytes = Uint8Array.of(1, 2, 3, 4);
    space.enter();
    for (const flags of [USER_PAGE, P | US, P | RW, P, 0]) {
      space.map(va + PAGE, frames[1] as number, flags);
      for (const ring of [0, 3] as const) {
        for (const at of [PAGE, PAGE - 2, PAGE - 4]) {
          for (const pa of frames) t.guest.ram.fill(0, pa, pa + PAGE);
          const store = t.guest.run("mov4_st", {
            ring,
            space,
            registers: { di: va + at, ax: 0x04030201 },
          });
          const stored = store.fault === -1;
          for (const pa of frames) t.guest.ram.fill(0, pa, pa + PAGE);
          access.from(t.guest.vcpu, ring);
          const rights = (gfn: number) => t.guest.vm.rights(0, gfn);
          const done = safeWrite(space.memory, va + at, bytes, access, rights, outcome);
          const what = `flags ${flags} ring ${ring} at ${at}`;
          t.same(`${what}: written`, done, stored);
          t.same(`${what}: #PF`, outcome.stop === WriteStop.PageFault, store.fault === 14);
          if (store.fault === 14) t.same(`${what}: error code`, outcome.errorCode, store.error);
          t.line(`${what}: ${done ? "written" : WriteStop[outcome.stop]}`);
        }
      }
    }
    space.map(va + PAGE, frames[1] as number);
    for (const pa of frames) t.guest.ram.fill(0, pa, pa + PAGE);
    const hook = t.core.hooks.add((frames[1] as number) / PAGE, HVI_W, () => DENY);
    t.core.hooks.commit();
    access.from(t.guest.vcpu, 3);
    const rights = (gfn: number) => t.guest.vm.rights(0, gfn);
    const over = safeWrite(space.memory, va + PAGE - 2, bytes, access, rights, outcome);
    t.same("over a page that the EPT protects", over, false);
    t.same("why", WriteStop[outcome.stop], "Ept");
    t.same("nothing of it", t.guest.memory.read16((frames[0] as number) + PAGE - 2), 0);
    t.core.hooks.remove(hook);
  },
};

/** Code in a page whose fetches are denied raises the #PF of a page that is not executable. */
const denied: Scenario = {
  name: "state.fetch-denied",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    t.guest.ram[frame + 16] = 0xc3;
    let wish: typeof ALLOW | typeof DENY = DENY;
    const hook = t.core.hooks.add(frame / PAGE, HVI_X, () => wish);
    t.core.hooks.commit();
    const call = () => t.guest.run("call_ax", { ring: 3, space, registers: { ax: va + 16 } });
    const stopped = call();
    t.same("exception", stopped.fault, 14);
    t.same("error code", stopped.error, 0x15);
    t.same("address", stopped.address, BigInt(va + 16));
    wish = ALLOW;
    t.same("allowed", call().fault, -1);
    t.core.hooks.remove(hook);
    t.core.hooks.commit();
    t.same("without", call().fault, -1);
  },
};

/** At exits of one vCPU the other, which counts in ECX and in memory, is looked at and goes on. */
const otherVcpu: Scenario = {
  name: "state.other-vcpu",
  modes: ["long"],
  run: (t) => {
    const [COUNTER, HOOKED, FIRST, SECOND] = [0x3000, 0x4000, 0x5000, 0x6000] as const;
    const vm = openVm({ backend: t.backend });
    try {
      vm.create({ vcpus: 2 });
      vm.addMemory({ gpa: 0, size: 0x10000 });
      vm.setCpuid(vm.supportedCpuid());
      vm.mapMemory();
      const ram = vm.ram.view(0, 0x10000) as Uint8Array;
      // mov edx, 20000; dec edx; jnz back; mov [HOOKED], al; jmp back
      ram.set([0xba, 0x20, 0x4e, 0, 0, 0x4a, 0x75, 0xfd, 0xa2, 0, 0x40, 0, 0, 0xeb, 0xf1], FIRST);
      // inc ecx; mov [COUNTER], ecx; jmp back
      ram.set([0x41, 0x89, 0x0d, 0, 0x30, 0, 0, 0xeb, 0xf7], SECOND);
      for (const [i, entry] of [FIRST, SECOND].entries()) {
        const cpu = new Cpu(vm.vcpus[i] as Vcpu);
        cpu.init("prot", false);
        cpu.set("rip", entry);
      }
      const memory = new PhysicalMemory(vm.ram);
      const core = new Introspection(vm, memory);
      const seen = new Registers();
      const again = new Registers();
      const counts = new Set<number>();
      core.hooks.add(HOOKED / PAGE, HVI_W, ({ vcpu }) => {
        t.same("the current one", core.state.look(), vcpu);
        core.state.pause(1);
        core.state.readRegisters(seen, 1);
        const stored = memory.read32(COUNTER);
        core.state.readRegisters(again, 1);
        t.same("counts while it is paused", again.lo[HVI_RCX], seen.lo[HVI_RCX]);
        t.same("stores while it is paused", memory.read32(COUNTER), stored);
        core.state.resume(1);
        const at = seen.rip - SECOND;
        // Before the store, or after it.
        t.same("its ECX", seen.lo[HVI_RCX], stored + (at === 1 ? 1 : 0));
        t.check([0, 1, 7].includes(at), `the other stands ${at} bytes after its start`);
        counts.add(stored);
        return ALLOW;
      });
      core.hooks.commit();
      for (let exits = 0; counts.size < 4 && exits < 10_000; exits++) {
        const vcpu = vm.run();
        if (core.handle(vcpu)) continue;
        t.same("an exit of nobody", vcpu.exitReason, HVI_EXIT_PAUSED);
        vcpu.resume();
      }
      t.same("different counts", counts.size, 4);
    } finally {
      vm.close();
    }
  },
};

export const state: readonly Scenario[] = [
  registers,
  vectors,
  memory,
  safeWrites,
  denied,
  otherVcpu,
];
