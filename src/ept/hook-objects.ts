// SPDX-License-Identifier: MIT
import { pageOffset } from "../memory/address.ts";
import { type AddressSpace, rootTable } from "../memory/space.ts";
import type { HookAction, PageAccess } from "./gpa-hooks.ts";
import type { GvaHook, GvaHooks } from "./gva-hooks.ts";

/**
 * Hook objects (the guide's "Hook objects"): what belongs together in a guest, as the hooked regions of
 * one module or one table, made, found and removed as one. The hooks of a region are its own: nobody
 * else can take them away.
 */

/** @param gva linear address of the access's first byte in the region */
export type RegionHandler = (access: PageAccess, region: HookRegion, gva: number) => HookAction;

export interface RegionOptions {
  /** As of GpaHooks. */
  priority?: number;
  owner?: string;
  /** Told after a page of the region has moved; -1 stands for no translation. */
  moved?: (region: HookRegion, oldGpa: number, newGpa: number, gva: number) => void;
}

/** Contiguous linear addresses with one right hooked: [start, end). */
export interface HookRegion {
  readonly object: HookObject;
  readonly start: number;
  readonly end: number;
  /** HVI_R, HVI_W or HVI_X. */
  readonly right: number;
  readonly removed: boolean;
  /** False when the guest's tables are too many to be watched: see TranslationWatch. */
  readonly complete: boolean;
  /** How often its handler was called. */
  readonly calls: number;
  /** Guest physical address of one of its addresses; -1 while that is absent. */
  gpaOf(gva: number): number;
}

class Region implements HookRegion {
  hook: GvaHook | undefined;

  constructor(
    readonly object: HookObject,
    readonly start: number,
    readonly end: number,
    readonly right: number,
  ) {}

  get removed(): boolean {
    return this.hook?.removed ?? false;
  }
  get complete(): boolean {
    return this.hook?.complete ?? false;
  }
  get calls(): number {
    return this.hook?.calls ?? 0;
  }
  gpaOf(gva: number): number {
    return gva >= this.start && gva < this.end ? (this.hook?.gpaOf(gva) ?? -1) : -1;
  }
}

/** Made by HookObjects.create(). */
export class HookObject {
  readonly #hooks: GvaHooks;
  readonly #objects: Set<HookObject>;
  readonly #regions: Region[] = [];

  constructor(
    hooks: GvaHooks,
    objects: Set<HookObject>,
    readonly space: AddressSpace,
    readonly type: string,
  ) {
    this.#hooks = hooks;
    this.#objects = objects;
    objects.add(this);
  }

  get destroyed(): boolean {
    return !this.#objects.has(this);
  }
  get regions(): readonly HookRegion[] {
    return this.#regions;
  }

  /**
   * Hooks `right` on [gva, gva + length), present or not. In effect after the hooks' next commit.
   * @param length bytes, at least 1
   * @returns undefined when the space cannot have these addresses, when they are more than 4 GiB, and
   *   when the object is destroyed
   * @throws RangeError for more than one right, or no length.
   */
  hook(
    gva: number,
    length: number,
    right: number,
    handler: RegionHandler,
    options: RegionOptions = {},
  ): HookRegion | undefined {
    if (!(length >= 1)) throw new RangeError(`a region of ${length} bytes`);
    if (this.destroyed) return undefined;
    const region = new Region(this, gva, gva + length, right);
    const start = pageOffset(gva);
    const { priority, owner = this.type, moved } = options;
    const hook = this.#hooks.add(
      this.space,
      gva,
      right,
      (access, _hook, at) => handler(access, region, at),
      {
        start,
        end: start + length,
        owner,
        ...(priority === undefined ? {} : { priority }),
        ...(moved === undefined
          ? {}
          : { moved: (_hook, from, to, at) => moved(region, from, to, at) }),
      },
    );
    if (hook === undefined) return undefined;
    region.hook = hook;
    this.#regions.push(region);
    return region;
  }

  /** Removes a region of this object, also from inside its own handlers. */
  unhook(region: HookRegion): void {
    const at = this.#regions.indexOf(region as Region);
    if (at < 0) return;
    const [gone] = this.#regions.splice(at, 1);
    if (gone?.hook !== undefined) this.#hooks.remove(gone.hook);
  }

  /** The first region with an address and, when one is given, a right. */
  find(gva: number, right?: number): HookRegion | undefined {
    return this.#regions.find(
      (r) => gva >= r.start && gva < r.end && (right === undefined || r.right === right),
    );
  }

  /** Removes all regions and the object itself, also from inside a handler. */
  destroy(): void {
    for (const region of this.#regions.splice(0)) {
      if (region.hook !== undefined) this.#hooks.remove(region.hook);
    }
    this.#objects.delete(this);
  }
}

export class HookObjects {
  readonly #hooks: GvaHooks;
  readonly #objects = new Set<HookObject>();

  constructor(hooks: GvaHooks) {
    this.#hooks = hooks;
  }

  get count(): number {
    return this.#objects.size;
  }

  /** @param type what it is, for those that look for it, and its regions' owner in statistics */
  create(space: AddressSpace, type: string): HookObject {
    return new HookObject(this.#hooks, this.#objects, space, type);
  }

  /** Objects of a type, the oldest first. */
  ofType(type: string): HookObject[] {
    return [...this.#objects].filter((object) => object.type === type);
  }

  /**
   * The first region of any object under a root with an address and, when given, a type.
   * @param root CR3, PCID bits allowed
   */
  find(root: number, gva: number, type?: string): HookRegion | undefined {
    for (const object of this.#objects) {
      const { mode } = object.space;
      if (rootTable(mode, object.space.root) !== rootTable(mode, root)) continue;
      if (type !== undefined && object.type !== type) continue;
      const region = object.find(gva);
      if (region !== undefined) return region;
    }
    return undefined;
  }
}
