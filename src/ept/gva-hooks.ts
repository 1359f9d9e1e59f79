// SPDX-License-Identifier: MIT
import { HVI_R, HVI_W, HVI_X } from "../bridge/index.ts";
import { PAGE_SIZE, pageOf } from "../memory/address.ts";
import type { PhysicalMemory } from "../memory/physical.ts";
import type { AddressSpace } from "../memory/space.ts";
import {
  ALLOW,
  type GpaHook,
  type GpaHooks,
  type HookAction,
  type PageAccess,
} from "./gpa-hooks.ts";
import type { MappingChange, PageTables, TranslationWatch } from "./page-tables.ts";

/**
 * Hooks on linear addresses (the guide's "Guest virtual memory hooks"): a hook on the frame behind each
 * page, which goes with the page when the guest remaps it, waits while it is not present, and is set
 * before the guest runs with a new translation. Any alias of the frame is covered too.
 */

/** @param gva linear address of the access's first byte in the hooked range, whatever alias was used */
export type GvaHandler = (access: PageAccess, hook: GvaHook, gva: number) => HookAction;
/** Told after the hook has moved; -1 stands for no translation. `gva` is that of the page. */
export type MovedHandler = (hook: GvaHook, oldGpa: number, newGpa: number, gva: number) => void;

export interface GvaHookOptions {
  /**
   * Bytes meant, counted from the start of the page: [start, end). The whole page when left out; an
   * `end` beyond 4096 goes on into the pages that follow.
   */
  start?: number;
  end?: number;
  /** As of GpaHooks. */
  priority?: number;
  owner?: string;
  moved?: MovedHandler;
}

/** Pages that one hook may have: 4 GiB. */
const MAX_PAGES = 2 ** 20;

/** Made by GvaHooks.add(). */
export class GvaHook {
  removed = false;
  /** How often its handler was called. */
  calls = 0;
  /** Frame of each page, -1 while it is absent. */
  readonly #frames: Float64Array;
  readonly #hooks: (GpaHook | undefined)[] = [];
  #watch: TranslationWatch | undefined;

  /** @param gva first byte of the first page */
  constructor(
    readonly space: AddressSpace,
    readonly gva: number,
    readonly right: number,
    readonly start: number,
    readonly end: number,
    readonly priority: number,
    readonly owner: string,
    readonly handler: GvaHandler,
    readonly moved: MovedHandler | undefined,
  ) {
    this.#frames = new Float64Array(Math.ceil(end / PAGE_SIZE)).fill(-1);
  }

  get pageCount(): number {
    return this.#frames.length;
  }
  /** Guest physical address of the first page; -1 while it is absent. */
  get gpa(): number {
    return this.#frames[0] as number;
  }
  /** That of any address of the hook's pages; -1 while it is absent, or is none of them. */
  gpaOf(gva: number): number {
    const page = Math.floor((gva - this.gva) / PAGE_SIZE);
    const frame = this.#frames[page] ?? -1;
    return frame < 0 ? -1 : frame + (gva - this.gva - page * PAGE_SIZE);
  }
  /** False when the tables on the way are too many to be watched: see TranslationWatch. */
  get complete(): boolean {
    return this.#watch?.complete ?? false;
  }

  /** Sets the hook on the frames behind the range. For GvaHooks. */
  attach(hooks: GpaHooks, tables: PageTables, memory: PhysicalMemory): boolean {
    const end = this.gva + this.#frames.length * PAGE_SIZE;
    const follow = (from: number, to: number): void => {
      for (let gva = from; gva < to && !this.removed; gva += PAGE_SIZE) {
        this.#follow(hooks, tables, memory, gva);
      }
    };
    this.#watch = tables.watch(this.space, this.gva, end, {
      owner: this.owner,
      after: (change: MappingChange) => {
        if (this.#watch !== undefined) follow(change.start, change.end);
      },
    });
    if (this.#watch === undefined) return false;
    for (let page = 0; page < this.#frames.length; page++) {
      const frame = this.#watch.gpaOf(this.gva + page * PAGE_SIZE);
      this.#frames[page] = frame;
      this.#hooks.push(this.#hookFrame(hooks, memory, page, frame));
    }
    return true;
  }

  /** For GvaHooks. */
  detach(hooks: GpaHooks, tables: PageTables): void {
    this.removed = true;
    if (this.#watch !== undefined) tables.unwatch(this.#watch);
    for (const hook of this.#hooks) if (hook !== undefined) hooks.remove(hook);
    this.#hooks.length = 0;
    this.#frames.fill(-1);
  }

  #follow(hooks: GpaHooks, tables: PageTables, memory: PhysicalMemory, gva: number): void {
    const page = (gva - this.gva) / PAGE_SIZE;
    const before = this.#frames[page] as number;
    const frame = (this.#watch as TranslationWatch).gpaOf(gva);
    if (frame === before) return;
    const old = this.#hooks[page];
    this.#frames[page] = frame;
    this.#hooks[page] = this.#hookFrame(hooks, memory, page, frame);
    if (old !== undefined) tables.retire(old);
    this.moved?.(this, before, frame, gva);
  }

  #hookFrame(
    hooks: GpaHooks,
    memory: PhysicalMemory,
    page: number,
    frame: number,
  ): GpaHook | undefined {
    // Device space has no rights to take: all accesses to it exit.
    if (frame < 0 || memory.read8(frame) < 0) return undefined;
    const base = this.gva + page * PAGE_SIZE;
    return hooks.add(
      frame / PAGE_SIZE,
      this.right,
      (access) => {
        // A frame left behind keeps its hook until memory shows the move.
        if (this.removed) return ALLOW;
        this.calls++;
        return this.handler(access, this, base + (access.gpa % PAGE_SIZE));
      },
      {
        start: page === 0 ? this.start : 0,
        end: Math.min(PAGE_SIZE, this.end - page * PAGE_SIZE),
        priority: this.priority,
        owner: this.owner,
      },
    );
  }
}

export class GvaHooks {
  readonly #hooks: GpaHooks;
  readonly #tables: PageTables;
  readonly #memory: PhysicalMemory;
  #count = 0;

  constructor(hooks: GpaHooks, tables: PageTables, memory: PhysicalMemory) {
    this.#hooks = hooks;
    this.#tables = tables;
    this.#memory = memory;
  }

  get count(): number {
    return this.#count;
  }

  /**
   * Hooks `right` (HVI_R, HVI_W or HVI_X) on the page of a linear address, or a part of it, or several
   * pages. In effect after the hooks' next commit.
   * @returns undefined when the space cannot have these addresses, or they are more than 4 GiB
   * @throws RangeError for more than one right, or an empty range.
   */
  add(
    space: AddressSpace,
    gva: number,
    right: number,
    handler: GvaHandler,
    options: GvaHookOptions = {},
  ): GvaHook | undefined {
    const { start = 0, end = PAGE_SIZE, priority = 0, owner = "", moved } = options;
    if (right !== HVI_R && right !== HVI_W && right !== HVI_X) {
      throw new RangeError(`a hook takes one right, not ${right}`);
    }
    if (!(start >= 0 && start < PAGE_SIZE && start < end)) {
      throw new RangeError(`[${start}, ${end}) does not begin in the page`);
    }
    const base = pageOf(gva);
    if (!(end <= MAX_PAGES * PAGE_SIZE) || !Number.isFinite(base)) return undefined;
    const hook = new GvaHook(space, base, right, start, end, priority, owner, handler, moved);
    if (!hook.attach(this.#hooks, this.#tables, this.#memory)) return undefined;
    this.#count++;
    return hook;
  }

  /** Removes a hook, also from inside its own handlers; in effect after the hooks' next commit. */
  remove(hook: GvaHook): void {
    if (hook.removed) return;
    this.#count--;
    hook.detach(this.#hooks, this.#tables);
  }
}
