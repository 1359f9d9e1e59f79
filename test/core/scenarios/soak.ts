// SPDX-License-Identifier: MIT
import { heapStats } from "bun:jsc";
import type { Scenario, Trial } from "../scenario.ts";
import { KINDS, Worker } from "../soak.ts";

/** Rounds from which on the memory of the process is looked at. */
const WARM = 200;
/** Bytes by which the heap may differ, at once and a round: a hook that stays has more than these. */
const NOISE = 256 * 1024;
const BYTES_A_ROUND = 100;

function heap(): number {
  Bun.gc(true);
  return heapStats().heapSize;
}

/** Sets hooks of every kind, lets the guest work, removes all. */
function round(t: Trial, worker: Worker, n: number): void {
  const removals = KINDS.map((kind) => kind(worker.work));
  t.core.hooks.commit();
  worker.go(n);
  for (const remove of removals) remove();
  t.noHooks();
}

const soak: Scenario = {
  name: "soak.all-kinds",
  run: (t) => {
    const worker = new Worker(t);
    const { rounds } = t.effort;
    let start = 0;
    for (let n = 0; n < rounds && t.failures.length === 0; n++) {
      if (n === WARM) start = heap();
      round(t, worker, n);
      if (n % 100 === 0) t.nothingLeft();
    }
    worker.compare();
    t.check(t.guest.exits > rounds, "hooks were not met");
    if (rounds < 2 * WARM) return;
    const grown = heap() - start;
    const bound = NOISE + BYTES_A_ROUND * (rounds - WARM);
    t.check(grown < bound, `the heap has grown by ${grown} bytes in ${rounds - WARM} rounds`);
  },
};

export const soaks: readonly Scenario[] = [soak];
