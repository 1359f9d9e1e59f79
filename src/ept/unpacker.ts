// SPDX-License-Identifier: MIT
import { HVI_W, HVI_X, type Vcpu } from "../bridge/index.ts";
import { pageOf } from "../memory/address.ts";
import { type AddressSpace, rootTable } from "../memory/space.ts";
import { ALLOW, type PageAccess } from "./gpa-hooks.ts";
import type { GvaHook, GvaHooks } from "./gva-hooks.ts";

/**
 * Detection of unpacked or decrypted code (the guide's "The Unpacker"): code runs from a page that was
 * written before. A page's writes are watched; from the first one that matters on its executions are
 * too, and after 32 the writes are not watched any more. Nothing is ever blocked.
 */

/** Writes that matter until a page counts as written for good. */
const WRITES_MAX = 32;

export interface UnpackerEvents {
  /** Code runs at `gva` in a page that was written: called once, unless the page is armed again. */
  unpacked: (page: UnpackerPage, gva: number, vcpu: Vcpu) => void;
  /** Whether a write is no unpacking, as a loader's to an import table; none is when left out. */
  isLegitimate?: (page: UnpackerPage, gva: number, access: PageAccess) => boolean;
  /** Writes that matter before executions do: 1 when left out, at most 32. */
  minWrites?: number;
}

/** A page being watched. Made by Unpacker.watch(). */
export class UnpackerPage {
  /** Writes that mattered since the page was armed; not counted beyond 32. */
  writes = 0;
  /** Code has run from it after it was written, and it is not armed again. */
  unpacked = false;
  writeHook: GvaHook | undefined;
  execHook: GvaHook | undefined;

  constructor(
    readonly space: AddressSpace,
    /** First byte of the page. */
    readonly gva: number,
    readonly events: UnpackerEvents,
  ) {}
}

export class Unpacker {
  readonly #hooks: GvaHooks;
  readonly #pages = new Set<UnpackerPage>();

  constructor(hooks: GvaHooks) {
    this.#hooks = hooks;
  }

  /** Pages watched, with those whose code has run. */
  get count(): number {
    return this.#pages.size;
  }

  /**
   * Watches the page of a linear address, present or not. In effect after the hooks' next commit.
   * @returns undefined when the space cannot have the address
   */
  watch(space: AddressSpace, gva: number, events: UnpackerEvents): UnpackerPage | undefined {
    const page = new UnpackerPage(space, pageOf(gva), events);
    this.#pages.add(page);
    this.rearm(page);
    if (page.writeHook !== undefined) return page;
    this.#pages.delete(page);
    return undefined;
  }

  /** Starts again: only writes from now on count. Also from inside `unpacked`. */
  rearm(page: UnpackerPage): void {
    if (!this.#pages.has(page)) return;
    this.#disarm(page);
    page.writes = 0;
    page.unpacked = false;
    page.writeHook = this.#hooks.add(
      page.space,
      page.gva,
      HVI_W,
      (access, _hook, gva) => {
        this.#onWrite(page, access, gva);
        return ALLOW;
      },
      { owner: "unpacker" },
    );
  }

  unwatch(page: UnpackerPage): void {
    if (this.#pages.delete(page)) this.#disarm(page);
  }

  /** Ends the watch of all pages under a root, as when the process is over. */
  unwatchSpace(space: AddressSpace): void {
    const root = rootTable(space.mode, space.root);
    for (const page of this.#pages) {
      if (rootTable(page.space.mode, page.space.root) === root) this.unwatch(page);
    }
  }

  #disarm(page: UnpackerPage): void {
    if (page.writeHook !== undefined) this.#hooks.remove(page.writeHook);
    if (page.execHook !== undefined) this.#hooks.remove(page.execHook);
    page.writeHook = undefined;
    page.execHook = undefined;
  }

  #onWrite(page: UnpackerPage, access: PageAccess, gva: number): void {
    if (page.events.isLegitimate?.(page, gva, access) === true) return;
    // The question may have ended the watch.
    if (page.writeHook === undefined) return;
    page.writes++;
    const enough = Math.min(page.events.minWrites ?? 1, WRITES_MAX);
    if (page.execHook === undefined && page.writes >= enough) {
      page.execHook = this.#hooks.add(
        page.space,
        page.gva,
        HVI_X,
        (execution, _hook, at) => {
          this.#onExecution(page, at, execution.vcpu);
          return ALLOW;
        },
        { owner: "unpacker" },
      );
    }
    if (page.writes < WRITES_MAX) return;
    this.#hooks.remove(page.writeHook);
    page.writeHook = undefined;
  }

  #onExecution(page: UnpackerPage, gva: number, vcpu: Vcpu): void {
    if (page.unpacked) return;
    this.#disarm(page);
    page.unpacked = true;
    page.events.unpacked(page, gva, vcpu);
  }
}
