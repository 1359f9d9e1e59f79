// SPDX-License-Identifier: MIT
import { type AddressSpace, rootTable } from "../memory/space.ts";
import type { MappingChange, PageTables, TranslationWatch } from "./page-tables.ts";
import { addressBounds } from "./paging-entry.ts";

/**
 * Monitors of address spaces (the guide's "The Virtual Address Space Monitor"): every change of a
 * translation in a space, or in half of it, with its linear address, level, old and new entry.
 *
 * That is costly: all table pages of the space are hooked. One that is written 4096 times, with fewer
 * than 64 changes of translations among the writes, is therefore left alone until the next
 * PageTables.poll(), which tells what has changed meanwhile and hooks it again. See docs/hooks.md.
 */

export interface VasMonitorOptions {
  /**
   * What of the space is monitored, whole pages. "user" is the lower half, as in the guide's engine; a
   * 32-bit Linux gives its processes 3 GiB, so name them there. All of it when left out.
   */
  range?: "user" | { readonly start: number; readonly end: number };
  /** For statistics. */
  owner?: string;
}

export class VasMonitor {
  readonly #tables: PageTables;
  readonly #watches = new Map<TranslationWatch, AddressSpace>();

  constructor(tables: PageTables) {
    this.#tables = tables;
  }

  /** Monitors there are. */
  get count(): number {
    return this.#watches.size;
  }

  /**
   * Monitors a space. Its tables are hooked when it returns.
   * @param changed told of each entry whose translation changes; its record is used again. `vcpu` is
   *   undefined for changes that PageTables.poll() or a host's write brought to light
   * @returns what stop() takes, whose `complete` is false when the tables are too many; undefined when
   *   the space cannot have the range
   */
  start(
    space: AddressSpace,
    changed: (change: MappingChange) => void,
    options: VasMonitorOptions = {},
  ): TranslationWatch | undefined {
    const { owner = "vas-monitor", range } = options;
    const bounds = addressBounds(space);
    const { start, end } = range === "user" ? { start: 0, end: bounds.middle } : (range ?? bounds);
    const watch = this.#tables.watch(space, start, end, { after: changed, owner, relaxed: true });
    if (watch !== undefined) this.#watches.set(watch, space);
    return watch;
  }

  /** Also from inside the callback. In effect after the hooks' next commit. */
  stop(watch: TranslationWatch): void {
    if (this.#watches.delete(watch)) this.#tables.unwatch(watch);
  }

  /** Ends all monitors of a space, as when the process is over. */
  stopSpace(space: AddressSpace): void {
    const root = rootTable(space.mode, space.root);
    for (const [watch, of] of this.#watches) {
      if (rootTable(of.mode, of.root) === root) this.stop(watch);
    }
  }
}
