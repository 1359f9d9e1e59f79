// SPDX-License-Identifier: MIT
/**
 * Every stub under every kind of hook, in both rings, in the middle of a page and over its end. What
 * it leaves without hooks is what it must leave with them, but for what is denied.
 */
import { HVI_R, HVI_W } from "../../../src/bridge/index.ts";
import { ALLOW, DENY } from "../../../src/ept/gpa-hooks.ts";
import { PAGE } from "../layout.ts";
import { hex, type Scenario, type Trial } from "../scenario.ts";
import { changed, type Place, type Ran, StubBench } from "../stub-bench.ts";
import { STUBS, type Stub } from "../stubs.ts";

/** A stub at a place in a ring, under hooks. */
interface Round {
  readonly t: Trial;
  readonly bench: StubBench;
  readonly stub: Stub;
  readonly place: Place;
  /** What it does without hooks, and the pages before it. */
  readonly plain: Ran;
  readonly before: readonly Uint8Array[];
  /** Runs it again on fresh pages, zeros in those at SI if asked. */
  run(emptySource?: boolean): Ran;
}

const CF_OF = 0x801n;
const SOURCES = [0, 1];
const TARGETS = [2, 3];

/** Numbers as ranges. */
function bytes(list: Iterable<number>): string {
  const ranges: [number, number][] = [];
  for (const n of [...list].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last?.[1] === n) last[1]++;
    else ranges.push([n, n + 1]);
  }
  return ranges.map(([from, to]) => `${hex(from)}+${to - from}`).join(" ");
}

function sameMemory(r: Round, ran: Ran, should: readonly Uint8Array[]): void {
  const wrong = changed(should, ran.memory).filter(
    (b) => b !== r.bench.resumeFlag(r.stub, r.place),
  );
  const at = (pages: readonly Uint8Array[], b: number) => pages[Math.floor(b / PAGE)]?.[b % PAGE];
  const [first] = wrong;
  const example =
    first === undefined
      ? ""
      : `: ${hex(first)} is ${at(ran.memory, first)}, should be ${at(should, first)}`;
  r.t.check(wrong.length === 0, `${r.stub.name}: bytes that differ ${bytes(wrong)}${example}`);
}
function sameOutcome(r: Round, ran: Ran): void {
  const flags = r.stub.undefinedFlags ? CF_OF : ~0n;
  const text = (o: Ran["outcome"]): string =>
    `${o.fault} ${o.error} ${o.registers.map((v) => v.toString(16)).join(" ")} flags ${(o.flags & flags).toString(16)} ${o.vectors}`;
  r.t.same(`${r.stub.name}: outcome`, text(ran.outcome), text(r.plain.outcome));
}
/** Reports cover what the stub accesses on these pages, no more and no less. */
function reported(r: Round, kind: "r" | "w", pages: readonly number[]): void {
  const { stub, bench } = r;
  const have = bench.reported(kind === "r" ? HVI_R : HVI_W);
  const should = new Set(
    [...bench.bytesOf(stub, r.place, kind)].filter((b) => pages.includes(Math.floor(b / PAGE))),
  );
  if (stub.event) {
    r.t.same(`${stub.name}: reported`, have.size > 0, should.size > 0);
  } else if (!stub.loose) {
    r.t.same(`${stub.name}: bytes reported`, bytes(have), bytes(should));
  }
}

function allowWrites(r: Round): void {
  r.bench.hook(HVI_W, TARGETS, () => ALLOW);
  const ran = r.run();
  sameOutcome(r, ran);
  sameMemory(r, ran, r.plain.memory);
  reported(r, "w", TARGETS);
  if (!r.stub.event) {
    const unreported = changed(r.before, ran.memory).filter((b) => !r.bench.reported(HVI_W).has(b));
    r.t.same(`${r.stub.name}: written and not reported`, bytes(unreported), "");
  }
  const wrong = [...r.bench.predicted].filter(([gpa, b]) => r.t.guest.memory.read8(gpa) !== b);
  r.t.same(`${r.stub.name}: bytes not as told before`, bytes(wrong.map(([gpa]) => gpa)), "");
  const unknown = r.bench.unknown > 0 ? ` bytes unknown ${r.bench.unknown} times` : "";
  r.t.line(`${r.stub.name} ${r.bench.reportText(r.stub, false)}${unknown}`);
}

function denyWrites(r: Round): void {
  if (r.stub.readsBack) return;
  r.bench.hook(HVI_W, TARGETS, () => DENY);
  const ran = r.run();
  sameOutcome(r, ran);
  sameMemory(r, ran, r.before);
  r.t.line(`${r.stub.name} ${r.bench.reportText(r.stub, false)}`);
}

/** The first page's part has no effect, the second's has. */
function denyFirstPage(r: Round): void {
  if (r.stub.readsBack) return;
  r.bench.hook(HVI_W, TARGETS, (page) => (page === 2 ? DENY : ALLOW));
  const ran = r.run();
  sameOutcome(r, ran);
  const should = r.plain.memory.with(2, r.before[2] as Uint8Array);
  sameMemory(r, ran, should);
}

function allowReads(r: Round): void {
  r.bench.hook(HVI_R, [...SOURCES, ...TARGETS], () => ALLOW);
  const ran = r.run();
  sameOutcome(r, ran);
  sameMemory(r, ran, r.plain.memory);
  reported(r, "r", [...SOURCES, ...TARGETS]);
  r.t.line(`${r.stub.name} ${r.bench.reportText(r.stub, true)}`);
}

/** Reads that are denied see zeros: all goes as if the page were empty. */
function denyReads(r: Round): void {
  // A jump to 0 is another matter.
  if (r.stub.source === "landing" || r.bench.bytesOf(r.stub, r.place, "r").size === 0) return;
  const empty = r.run(true);
  r.bench.hook(HVI_R, SOURCES, () => DENY);
  const ran = r.run();
  sameOutcome({ ...r, plain: empty }, ran);
  sameMemory(r, ran, [...r.before.slice(0, 2), ...empty.memory.slice(2)]);
}

function scenario(
  name: string,
  places: readonly Place[],
  ring: 0 | 3,
  round: (r: Round) => void,
  kind: "frames" | "addresses" = "frames",
): Scenario[] {
  const subject = kind === "frames" ? "stubs" : "stubs.addresses";
  return places.map((place) => ({
    name: `${subject}.${name}.ring${ring}.${place}`,
    run: (t) => {
      const bench = new StubBench(t, kind);
      for (const [i, stub] of STUBS.entries()) {
        if (!t.isTurn(i)) continue;
        if (!(stub.modes?.includes(t.mode) ?? true) || (stub.ring0 && ring === 3)) continue;
        if (stub.avx && !t.guest.avx) continue;
        if (place === "edge" && !bench.crosses(stub)) continue;
        const before = bench.fill(stub, place, ring);
        const plain = bench.run(stub, place, ring);
        t.same(`${stub.name}: exception`, plain.outcome.fault, -1);
        const run = (emptySource = false) => {
          bench.fill(stub, place, ring, emptySource);
          return bench.run(stub, place, ring);
        };
        round({ t, bench, stub, place, plain, before, run });
        bench.unhook();
      }
    },
  }));
}

const BOTH: readonly Place[] = ["inside", "edge"];

export const stubs: readonly Scenario[] = ([0, 3] as const).flatMap((ring) => [
  ...scenario("allow-writes", BOTH, ring, allowWrites),
  ...scenario("deny-writes", BOTH, ring, denyWrites),
  ...scenario("deny-first-page", ["edge"], ring, denyFirstPage),
  ...scenario("allow-reads", BOTH, ring, allowReads),
  ...scenario("deny-reads", BOTH, ring, denyReads),
  ...scenario("allow-writes", BOTH, ring, allowWrites, "addresses"),
  ...scenario("deny-first-page", ["edge"], ring, denyFirstPage, "addresses"),
  ...scenario("deny-writes", ["inside"], ring, denyWrites, "addresses"),
  ...scenario("allow-reads", BOTH, ring, allowReads, "addresses"),
]);
