// SPDX-License-Identifier: MIT
/**
 * What a scenario is. One adds a scenario by writing
 *
 *     { name: "subject.what", run: (t) => { ...; t.same("what", have, should); t.line("what happened"); } }
 *
 * in a file of scenarios/. It runs on a guest of its own, in every paging mode that it does not
 * exclude, on both backends; what it says by line() must be the same on both.
 */
import { HVI_RWX } from "../../src/bridge/index.ts";
import type { HookAction } from "../../src/ept/gpa-hooks.ts";
import { Introspection } from "../../src/introspection.ts";
import type { BackendName } from "../conformance/bench.ts";
import type { Effort } from "./effort.ts";
import { CoreGuest } from "./guest.ts";
import type { ImageSource } from "./image.ts";
import { type Mode, PAGE, RAM_SIZE } from "./layout.ts";

export interface Scenario {
  /** subject.what.variant; unique. */
  readonly name: string;
  /** All when left out. */
  readonly modes?: readonly Mode[];
  readonly run: (t: Trial) => void;
}

/** Answers every call of a hook alike, and counts them. */
export class Answer {
  calls = 0;
  readonly handler = (): HookAction => {
    this.calls++;
    return this.action;
  };
  constructor(readonly action: HookAction) {}
}

/** One run of a scenario. */
export class Trial {
  readonly guest: CoreGuest;
  readonly core: Introspection;
  readonly lines: string[] = [];
  readonly failures: string[] = [];
  readonly #turn: number;

  constructor(
    readonly backend: BackendName,
    images: ImageSource,
    readonly mode: Mode,
    readonly effort: Effort,
    name: string,
  ) {
    this.#turn = Bun.hash.crc32(`${name}.${mode}`) % effort.every;
    this.guest = new CoreGuest(backend, images, mode);
    this.core = new Introspection(this.guest.vm, this.guest.memory);
    this.guest.engine = this.core;
  }

  /** Whether the nth stub is to be run, with this effort: others than in the next scenario. */
  isTurn(n: number): boolean {
    return n % this.effort.every === this.#turn;
  }
  /** A line of the transcript: nothing in it may depend on the backend. */
  line(text: string): void {
    this.lines.push(text);
  }
  check(ok: boolean, otherwise: string): void {
    if (!ok) this.failures.push(otherwise);
  }
  same<T extends string | number | bigint | boolean | object | undefined>(
    what: string,
    have: T,
    should: T,
  ): void {
    if (have === should) return;
    const text = (v: T) => (typeof v === "number" ? `${v} (0x${v.toString(16)})` : String(v));
    this.failures.push(`${what} is ${text(have)}, should be ${text(should)}`);
  }

  /** No hook of any kind is left. */
  noHooks(): void {
    const { core } = this;
    core.hooks.commit();
    const left = {
      "pages with hooks": core.hooks.pageCount,
      "tables watched": core.tables.pageCount,
      "hooks on linear addresses": core.gva.count,
      objects: core.objects.count,
      monitors: core.monitor.count,
      "pages of the unpacker": core.unpacker.count,
      "hidden regions": core.cloaks.size,
      "hooks on registers": core.registers.count,
      "integrity regions": core.integrity.count,
      "reads that wait": core.swapped.waiting,
    };
    for (const [what, count] of Object.entries(left)) this.same(what, count, 0);
  }
  /** The same, and every page has all rights. */
  nothingLeft(): void {
    this.noHooks();
    let taken = 0;
    for (let gfn = 0; gfn < RAM_SIZE / PAGE; gfn++) {
      if (this.guest.vm.rights(0, gfn) !== HVI_RWX) taken++;
    }
    this.same("pages without all rights", taken, 0);
  }
}

/** An address for a transcript. */
export const hex = (n: number): string =>
  n < 0 ? `-0x${(-n).toString(16)}` : `0x${n.toString(16)}`;
