// SPDX-License-Identifier: MIT
/** Cloaked memory: every stub that reads or writes a part of it, pages that go and come, code. */
import { ABSORB, BLOCK, type Cloak, type CloakOptions } from "../../../src/ept/cloak.ts";
import { KERNEL_BASE, PAGE, SOURCE, TARGET } from "../layout.ts";
import type { Scenario, Trial } from "../scenario.ts";
import type { Space } from "../space.ts";
import { changed, type Place, StubBench } from "../stub-bench.ts";
import { STUBS, type Stub } from "../stubs.ts";

/** What stands in a region instead of what was there: every byte another one. */
const patchOf = (bytes: Uint8Array): Uint8Array =>
  bytes.map((byte, i) => byte ^ (0x80 | (i & 0x7f)));

/** Cloaks what stands there under a patch of other bytes. */
function cloak(t: Trial, space: Space, gva: number, length: number, o: CloakOptions = {}): Cloak {
  const now = space.memory.read(gva, length);
  if (now === undefined) throw new Error("a region that is not present");
  const made = t.core.cloaks.cloak(space.memory, gva, length, {
    patched: patchOf(now),
    apply: true,
    ...o,
  });
  if (!made.ok) throw new Error(made.reason);
  t.core.hooks.commit();
  return made.cloak;
}

function uncloakAll(t: Trial): void {
  t.core.cloaks.uncloakAll();
  t.core.hooks.commit();
  t.same("regions left", t.core.cloaks.size, 0);
}

/** Ranges of offsets that meet [first, last] in different ways: all of it, its ends, its middle. */
function regions(
  bytes: ReadonlySet<number>,
  within: readonly [number, number],
): [number, number][] {
  const mine = [...bytes].filter((b) => b >= within[0] && b < within[1]);
  if (mine.length === 0) return [];
  const first = Math.min(...mine);
  const last = Math.max(...mine);
  const found: [number, number][] = [
    [first, last + 1],
    [first - 5, first + 1],
    [last, last + 9],
    [first - 16, last + 17],
  ];
  if (last - first > 1) found.push([first + 1, last]);
  return found.filter(([from, to]) => from >= within[0] && to <= within[1]);
}

/** A stub reads and writes around and over regions: as if there were none, but that they stay. */
function underStubs(place: Place, ring: 0 | 3): Scenario {
  return {
    name: `cloak.stubs.ring${ring}.${place}`,
    run: (t) => {
      const bench = new StubBench(t);
      const all = STUBS.filter(
        (s, i) =>
          t.isTurn(i) &&
          (s.modes?.includes(t.mode) ?? true) &&
          !(s.ring0 && ring === 3) &&
          !(s.avx && !t.guest.avx) &&
          !s.readsBack &&
          (place === "inside" || bench.crosses(s)),
      );
      for (const stub of all) oneStub(t, bench, stub, place, ring);
    },
  };
}

function oneStub(t: Trial, bench: StubBench, stub: Stub, place: Place, ring: 0 | 3): void {
  bench.fill(stub, place, ring);
  const plain = bench.run(stub, place, ring);
  t.same(`${stub.name}: exception`, plain.outcome.fault, -1);
  const reads = bench.bytesOf(stub, place, "r");
  const touched = new Set([...reads, ...bench.bytesOf(stub, place, "w")]);
  const ranges = [...regions(touched, [0, 2 * PAGE]), ...regions(touched, [2 * PAGE, 4 * PAGE])];
  for (const [from, to] of ranges) {
    const what = `${stub.name} [${from}, ${to})`;
    const base = from < 2 * PAGE ? SOURCE[t.mode] + from : TARGET[t.mode] + from - 2 * PAGE;
    bench.fill(stub, place, ring);
    const made = cloak(t, bench.space, base, to - from);
    const ran = bench.run(stub, place, ring);
    const text = (o: typeof ran.outcome): string =>
      `${o.fault} ${o.registers.map((v) => v.toString(16)).join(" ")} ${
        stub.undefinedFlags ? "" : o.flags.toString(16)
      } ${o.vectors}`;
    t.same(`${what}: outcome`, text(ran.outcome), text(plain.outcome));
    // Outside the region all is written, inside the patch stands.
    const should = plain.memory.map((page) => page.slice());
    for (let b = from; b < to; b++) {
      const page = should[Math.floor(b / PAGE)] as Uint8Array;
      page[b % PAGE] = made.patched[b - from] as number;
    }
    const wrong = changed(should, ran.memory).filter((b) => b !== bench.resumeFlag(stub, place));
    t.check(wrong.length === 0, `${what}: ${wrong.length} bytes differ, from ${wrong[0]} on`);
    uncloakAll(t);
  }
}

/** Two regions and a hook of another owner on one page; the guest reads it whole. */
const severalOnAPage: Scenario = {
  name: "cloak.several-on-a-page",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    for (let i = 0; i < PAGE; i++) t.guest.ram[frame + i] = (i * 31) & 0xff;
    const before = t.guest.bytes(frame, PAGE);
    space.enter();
    const sum = (): number => t.guest.call("checksum", va, PAGE);
    const plain = sum();
    for (let i = 0; i < 16; i++) cloak(t, space, va + 256 * i + 3 * i, 5 + i);
    t.check(changed([before], [t.guest.bytes(frame, PAGE)]).length > 100, "no patch stands there");
    t.same("checksum with 16 regions", sum(), plain);
    const more = t.core.cloaks.cloak(space.memory, va + 4090, 1);
    t.same("a 17th", more.ok, false);
    const over = t.core.cloaks.cloak(space.memory, va + 2, 4);
    t.same("one that overlaps", over.ok, false);
    uncloakAll(t);
    t.same("bytes that stay changed", changed([before], [t.guest.bytes(frame, PAGE)]).length, 0);
    t.same("checksum after", sum(), plain);
  },
};

/** The pager takes the page out and brings it in at another frame. */
const swapped: Scenario = {
  name: "cloak.swapped",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const frames = space.mapNew(va, 2);
    for (const pa of frames) t.guest.ram.fill(0x5a, pa, pa + PAGE);
    const region = cloak(t, space, va + PAGE - 8, 16);
    const disk = (): boolean =>
      t.guest.ram.includes(region.patched[3] as number) && holds(t, region.patched);
    t.same("the patch stands", holds(t, region.patched), true);
    space.swapOut(va);
    space.swapOut(va + PAGE);
    t.same("the patch is anywhere while it is out", disk(), false);
    t.same("contents while it is out", t.core.cloaks.contents(region) === undefined, true);
    // The second page comes in first, by a fault of ring 3, at a frame of its own.
    for (const page of [va + PAGE, va]) {
      const load = t.guest.run("mov4_ld", { ring: 3, space, registers: { si: page + 64 } });
      t.same("exception", load.fault, -1);
    }
    t.same("what stands there", hexOf(t.core.cloaks.contents(region)), hexOf(region.patched));
    t.same("what is seen", seen(t, space, va + PAGE - 8, 16), "5a".repeat(16));
    uncloakAll(t);
    t.same("the patch is anywhere at the end", holds(t, region.patched), false);
  },
};

const hexOf = (bytes: Uint8Array | undefined): string =>
  bytes === undefined ? "absent" : Buffer.from(bytes).toString("hex");

/** Bytes as ring 3 reads them, one at a time. */
function seen(t: Trial, space: Space, va: number, length: number): string {
  const bytes = Array.from({ length }, (_, i) => {
    const load = t.guest.run("mov1_ld", { ring: 3, space, registers: { si: va + i } });
    return Number((load.registers[0] as bigint) & 0xffn);
  });
  return hexOf(Uint8Array.from(bytes));
}

/** Whether either half of a region's patch stands anywhere in the guest's RAM. */
function holds(t: Trial, patched: Uint8Array): boolean {
  const ram = Buffer.from(t.guest.ram.buffer, t.guest.ram.byteOffset, t.guest.ram.length);
  const half = patched.length / 2;
  return ram.includes(patched.subarray(0, half)) || ram.includes(patched.subarray(half));
}

/** The guest moves the page: copies it to another frame and changes the entry. */
const moved: Scenario = {
  name: "cloak.moved",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [first] = space.mapNew(va, 1) as [number];
    t.guest.ram.fill(0x33, first, first + PAGE);
    const foreign: number[] = [];
    const region = cloak(t, space, va + 100, 8, { onForeign: (_c, gva) => foreign.push(gva) });
    const second = t.guest.frame();
    t.guest.ram.fill(0x33, second, second + PAGE);
    space.map(va, second);
    t.same("the old frame", hexOf(t.guest.bytes(first + 100, 8)), "33".repeat(8));
    t.same("the new frame", hexOf(t.guest.bytes(second + 100, 8)), hexOf(region.patched));
    // A page of somebody else's comes to stand there.
    const third = t.guest.frame();
    t.guest.ram.fill(0x44, third, third + PAGE);
    space.map(va, third);
    t.same("a frame of other content", hexOf(t.guest.bytes(third + 100, 8)), "44".repeat(8));
    t.same("told of it", foreign.join(), String(va + 100));
    space.map(va, second);
    t.same("back again", hexOf(t.guest.bytes(second + 100, 8)), hexOf(region.patched));
    uncloakAll(t);
    t.same("the last frame", hexOf(t.guest.bytes(second + 100, 8)), "33".repeat(8));
  },
};

/** A write handler; what it absorbs is what the guest reads from then on. */
const writes: Scenario = {
  name: "cloak.writes",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    const told: string[] = [];
    let wish: typeof BLOCK | typeof ABSORB = BLOCK;
    const region = cloak(t, space, va + 16, 8, {
      onWrite: (access) => {
        told.push(`${access.gpa % PAGE}+${access.size}`);
        return wish;
      },
    });
    const store = (at: number, ax: number): void => {
      t.guest.run("mov4_st", { ring: 3, space, registers: { di: va + at, ax } });
    };
    const load = (at: number): string => seen(t, space, va + at, 16);
    store(14, 0x44332211);
    t.same("half of it blocked", load(8), "00000000000011220000000000000000");
    wish = ABSORB;
    store(22, 0x0d0c0b0a);
    t.same("half of it absorbed", load(8), "00000000000011220000000000000a0b");
    t.same("the other half written", hexOf(t.guest.bytes(frame + 24, 2)), "0c0d");
    t.same("the patch", hexOf(t.core.cloaks.contents(region)), hexOf(region.patched));
    t.line(told.join(" "));
    t.core.cloaks.modifyOriginal(region, Uint8Array.of(0x77), 3);
    t.core.cloaks.modifyPatched(region, Uint8Array.of(0x99), 0);
    t.same("changed original", load(19).slice(0, 2), "77");
    t.same("changed patch", t.guest.ram[frame + 16], 0x99);
    t.same("hash", t.core.cloaks.hash(region), Bun.hash.crc32(t.guest.bytes(frame + 16, 8)));
    t.same("is in it", t.core.cloaks.at(space.memory, va + 23) === region, true);
    t.same("is not in it", t.core.cloaks.at(space.memory, va + 24) === undefined, true);
    uncloakAll(t);
    t.same("after", hexOf(t.guest.bytes(frame + 16, 8)), "0000007700000a0b");
  },
};

/** Code in a region runs; the guest reads what was there before. Its own reads are those it asks for. */
const code: Scenario = {
  name: "cloak.code",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    // mov cl, [esi]; mov dl, [edi]; ret
    const patched = Uint8Array.of(0x8a, 0x0e, 0x8a, 0x17, 0xc3);
    for (const allowInternal of [false, true]) {
      const made = t.core.cloaks.cloak(space.memory, va + 64, 16, {
        patched: Uint8Array.from({ length: 16 }, (_, i) => patched[i] ?? 0xee),
        apply: true,
        allowInternal,
      });
      if (!made.ok) throw new Error(made.reason);
      const other = cloak(t, space, va + 128, 4, { allowInternal });
      t.core.hooks.commit();
      const ran = t.guest.run("call_ax", {
        ring: 3,
        space,
        registers: { ax: va + 64, si: va + 64, di: va + 128 },
      });
      const [, cl, dl] = ran.registers.map((r) => Number(r & 0xffn));
      // The region that runs is as it stands; another one is hidden from it, unless it may look.
      t.same("exception", ran.fault, -1);
      t.same("its own first byte", cl, 0x8a);
      t.same("a byte of another region", dl, allowInternal ? other.patched[0] : 0);
      t.same("what others see", seen(t, space, va + 64, 4), "00000000");
      t.same("what stands there", t.guest.ram[frame + 64], 0x8a);
      uncloakAll(t);
    }
  },
};

/** The CPU's own reads: a gate of the IDT, and an entry of a page table. */
const implicit: Scenario = {
  name: "cloak.implicit",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    const [frame] = space.mapNew(va, 1) as [number];
    const stranger = t.guest.frame();
    t.guest.ram.fill(0x11, frame, frame + PAGE);
    t.guest.ram.fill(0x22, stranger, stranger + PAGE);
    space.enter();
    // The entry in memory maps the other frame; what the walk reads is the original.
    const entry = KERNEL_BASE[t.mode] + space.entryAt(va);
    const size = t.mode === "p32" ? 4 : 8;
    const patched = new Uint8Array(size);
    new DataView(patched.buffer).setUint32(0, stranger | 7, true);
    const table = t.core.cloaks.cloak(space.memory, entry, size, { patched, apply: true });
    if (!table.ok) throw new Error(table.reason);
    t.core.hooks.commit();
    const load = t.guest.run("mov1_ld", { ring: 3, space, registers: { si: va } });
    t.same(
      "byte through the entry that is shown",
      Number((load.registers[0] as bigint) & 0xffn),
      0x11,
    );
    uncloakAll(t);
    // Breakpoints go through gate 3.
    const gate = t.guest.vcpu.idtBase + 3 * (t.mode === "long" ? 16 : 8);
    const made = t.core.cloaks.cloak(space.memory, gate, 8, {
      patched: new Uint8Array(8),
      apply: true,
    });
    if (!made.ok) throw new Error(made.reason);
    t.core.hooks.commit();
    t.same("vector", t.guest.run("breakpoint", { ring: 3, space }).fault, 3);
    uncloakAll(t);
    t.same("vector without", t.guest.run("breakpoint", { ring: 3, space }).fault, 3);
  },
};

/** What cannot be cloaked is refused with a reason, and nothing is left of it. */
const refused: Scenario = {
  name: "cloak.refused",
  run: (t) => {
    const space = t.guest.space();
    const va = TARGET[t.mode];
    space.mapNew(va, 1);
    const why = (gva: number, length: number, o: CloakOptions = {}): string => {
      const made = t.core.cloaks.cloak(space.memory, gva, length, o);
      return made.ok ? "cloaked" : made.reason;
    };
    t.line(why(va, 0));
    t.line(why(va + 1, 2 * PAGE));
    t.line(why(va, 8, { patched: new Uint8Array(7) }));
    t.line(why(va + PAGE, 8));
    t.line(why(Number.NaN, 8));
    t.line(why(0.5, 8));
    t.core.hooks.commit();
    t.same("pages with hooks", t.core.hooks.pageCount, 0);
    // Not present, with everything given: it waits.
    const bytes = Uint8Array.of(1, 2, 3, 4);
    t.line(why(va + PAGE, 4, { original: new Uint8Array(4), patched: bytes, apply: true }));
    t.core.hooks.commit();
    const [frame] = space.mapNew(va + PAGE, 1) as [number];
    t.same("applied when it came", hexOf(t.guest.bytes(frame, 4)), "01020304");
    uncloakAll(t);
    t.same("given back", hexOf(t.guest.bytes(frame, 4)), "00000000");
  },
};

export const cloaks: readonly Scenario[] = [
  ...(["inside", "edge"] as const).flatMap((place) => [underStubs(place, 0), underStubs(place, 3)]),
  severalOnAPage,
  swapped,
  moved,
  writes,
  code,
  implicit,
  refused,
];
