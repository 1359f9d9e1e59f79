// SPDX-License-Identifier: MIT
import { HVI_EXIT_REASONS, hviExitReasonNames, type Vcpu, type Vm } from "./bridge/index.ts";

/** A part of the engine that has figures. */
export interface StatisticsPart {
  readonly name: string;
  /** Figures by name, taken when somebody asks. */
  read(): Record<string, number | string>;
}

export interface StatisticsReport {
  /** Exits by reason, those that there were; all 0 where no engine counts them. */
  readonly exits: Readonly<Record<string, number>>;
  readonly parts: readonly {
    readonly name: string;
    readonly values: Readonly<Record<string, number | string>>;
  }[];
}

/**
 * Figures of a running machine. On the path of an exit only its reason is counted; all else is kept
 * by the parts and read when it is asked for.
 */
export class Statistics {
  /** By HVI_EXIT_*. */
  readonly #exits = new Float64Array(HVI_EXIT_REASONS);
  readonly #parts: StatisticsPart[] = [];

  /** Begins with the parts that every machine has: its time and its vCPUs. */
  constructor(vm: Vm) {
    const began = performance.now();
    this.add({
      name: "time",
      read: () => ({
        realSeconds: Math.round(performance.now() - began) / 1000,
        guestTicks: vm.vcpus[0]?.tsc ?? 0,
        ticksPerSecond: vm.info.tscKhz * 1000,
      }),
    });
    for (const vcpu of vm.vcpus) {
      this.add({ name: `vcpu ${vcpu.index}`, read: () => vcpuCounters(vcpu) });
    }
  }

  /** Counts an exit. */
  count(reason: number): void {
    (this.#exits[reason] as number)++;
  }

  add(part: StatisticsPart): void {
    this.#parts.push(part);
  }

  /** All figures as they are now. */
  read(): StatisticsReport {
    const exits: Record<string, number> = {};
    for (const [reason, count] of this.#exits.entries()) {
      if (count > 0) exits[hviExitReasonNames[reason] ?? String(reason)] = count;
    }
    const parts = this.#parts.map((part) => ({ name: part.name, values: part.read() }));
    return { exits, parts };
  }
}

/** What the backend counts (struct hvi_counters in hvi.h). */
function vcpuCounters(vcpu: Vcpu): Record<string, number> {
  return {
    instructions: vcpu.instructions,
    exits: vcpu.exits,
    internalExits: vcpu.internalExits,
    events: vcpu.events,
    adWrites: vcpu.adWrites,
    tlbMisses: vcpu.tlbMisses,
    blocks: vcpu.blocks,
    invepts: vcpu.invepts,
  };
}
