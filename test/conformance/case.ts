// SPDX-License-Identifier: MIT
/** What a case is, and the words it is written in. */

import * as abi from "../../src/bridge/abi.ts";
import type { Vcpu } from "../../src/bridge/index.ts";
import { type Bench, fromHex } from "./bench.ts";
import type { Regs } from "./cpu.ts";
import type { Mode } from "./layout.ts";

/** What an exit must be. A field left out is not looked at (but stands in the transcript). */
export interface Want {
  reason: number;
  gpa?: number;
  gva?: number | bigint;
  access?: number | number[];
  rights?: number;
  size?: number;
  number?: number;
  value?: number | bigint;
  old?: number | bigint;
  flags?: number;
  insnLen?: number;
  rip?: number | bigint | string;
  view?: number;
  regs?: Regs;
  /**
   * An access of several parts whose order the architecture leaves open (a
   * frame, a save area): only its page counts, here and in the transcript.
   */
  page?: boolean;
  /** The exception frame that a handler found: what the handler's exit shows. */
  frame?: { vector: number; error?: number; rip?: number | bigint | string; cr2?: number | bigint };
  eventStatus?: number;
}
type Reply = (v: Vcpu, t: Bench) => void;

export class Step {
  reply: Reply | undefined;
  constructor(readonly want: (t: Bench) => Want) {}

  /** The reply, and whatever else is to be done at this exit. */
  do(f: Reply): this {
    const before = this.reply;
    this.reply = before
      ? (v, t) => {
          before(v, t);
          f(v, t);
        }
      : f;
    return this;
  }
  resume(notify = false): this {
    return this.do((v) => v.resume(notify));
  }
  skip(): this {
    return this.do((v) => v.skip());
  }
  retry(): this {
    return this.do((v) => v.retry());
  }
  /** RETRY with other rights of the violated page. */
  retryWith(rights: number): this {
    return this.do((v, t) => {
      t.vm.setRights(v.view, Math.floor(v.exitGpa / 4096), 1, rights);
      v.retry();
    });
  }
  scratch(notify = false): this {
    return this.do((v) => v.scratch(notify));
  }
  /** EMULATE with ranges of supplied bytes (hex), each inside one page. */
  emulate(ranges: When<[number, string][]>, o: EmulateFlags = {}): this {
    return this.do((v, t) => {
      v.beginEmulate();
      for (const [gpa, hex] of at(ranges, t)) {
        if (!v.emulateBytes(gpa, fromHex(hex))) throw new Error("no room for a range");
      }
      v.endEmulate(o.write === true, o.notify === true);
    });
  }
  /** EMULATE with ranges [gpa, length, spare page]. */
  emulateSpare(ranges: When<[number, number, number][]>, o: EmulateFlags = {}): this {
    return this.do((v, t) => {
      v.beginEmulate();
      for (const [gpa, length, spare] of at(ranges, t)) {
        if (!v.emulateSpare(gpa, length, spare)) throw new Error("no room for a range");
      }
      v.endEmulate(o.write === true, o.notify === true);
    });
  }
  step(view: number, notify = false): this {
    return this.do((v) => v.step(view, notify));
  }
  inject(e: Event): this {
    return this.do((v) => {
      event(v, e);
      v.injectReply();
    });
  }
}

export interface EmulateFlags {
  write?: boolean;
  notify?: boolean;
}

export interface Event {
  type: number;
  vector: number;
  error?: number;
  cr2?: bigint;
  insnLen?: number;
  notify?: boolean;
}
/** Puts an event in the vCPU page; it is delivered at the next entry. */
export function event(v: Vcpu, e: Event): void {
  const d = new DataView(v.page.buffer, v.page.byteOffset, v.page.byteLength);
  let flags = abi.HVI_EVENT_VALID;
  if (e.error !== undefined) flags |= abi.HVI_EVENT_ERROR_CODE;
  if (e.cr2 !== undefined) flags |= abi.HVI_EVENT_CR2;
  if (e.notify) flags |= abi.HVI_EVENT_NOTIFY;
  d.setUint32(abi.EVENT_FLAGS, flags, true);
  d.setUint32(abi.EVENT_TYPE, e.type, true);
  d.setUint32(abi.EVENT_VECTOR, e.vector, true);
  d.setUint32(abi.EVENT_ERROR_CODE, e.error ?? 0, true);
  d.setBigUint64(abi.EVENT_CR2, BigInt.asUintN(64, e.cr2 ?? 0n), true);
  d.setUint32(abi.EVENT_INSN_LEN, e.insnLen ?? 0, true);
}

/** What a case may need of hvi_info.caps. */
export const NEEDED_CAPS = {
  "exec-only": abi.HVI_CAP_EXEC_ONLY,
  spp: abi.HVI_CAP_SPP,
  ve: abi.HVI_CAP_VE,
  "eptp-switch": abi.HVI_CAP_EPTP_SWITCH,
} as const;

export type When<T> = T | ((t: Bench) => T);
export function at<T>(w: When<T>, t: Bench): T {
  return typeof w === "function" ? (w as (t: Bench) => T)(t) : w;
}

export interface Case {
  /** area.subject.variant; unique. */
  name: string;
  mode?: Mode;
  /** Symbol at which it starts; "nothing" when absent. */
  entry?: string;
  vcpus?: number;
  /** A second memory slot of 64 KiB at 4 GiB. */
  high?: boolean;
  regs?: When<Regs>;
  /** Rights, views, intercepts, memory: before the first run. */
  setup?: (t: Bench) => void;
  /** Exits in order, without the DONE at the end. */
  script: When<Step[]>;
  /** With several vCPUs: a script each; `script` is not used then. */
  scripts?: When<Step[][]>;
  /** False: the last exit of the script is the end. */
  done?: boolean;
  /** Registers at the end. */
  end?: When<Regs>;
  /** Memory at the end: [gpa, hex]. */
  memory?: When<[number, string][]>;
  /** Anything else; a returned string is the failure. */
  check?: (t: Bench) => string | undefined;
  /** Page walks wrote accessed and dirty bits to pages without W, and counters.ad_writes says so. */
  adWrites?: boolean;
  /** Leave registers out of the DONE line (undefined flags, addresses that a backend chooses). */
  brief?: boolean;
  /** What the backend must have; else the case says so in the transcript. */
  needs?: "avx" | "avx2" | keyof typeof NEEDED_CAPS;
  /** Guest time of a run in TSC ticks, or of each run in turn; 0: no deadline. */
  budget?: number | (number | undefined)[];
}

/** Access bits from letters: r w x, e (event), k (walk), u (user), n (no RAM), - (no GVA). */
export function access(s: string): number {
  let bits = s.includes("-") ? 0 : abi.HVI_ACCESS_GVA;
  for (const c of s) {
    bits |=
      {
        r: abi.HVI_R,
        w: abi.HVI_W,
        x: abi.HVI_X,
        e: abi.HVI_ACCESS_EVENT,
        k: abi.HVI_ACCESS_WALK,
        u: abi.HVI_ACCESS_USER,
        n: abi.HVI_ACCESS_NO_RAM,
        "-": 0,
      }[c] ?? 0;
  }
  return bits;
}

/** An EPT violation. `kind` is letters of access(), with | between alternatives. */
export function ept(kind: string, gpa: When<number>, more: When<Partial<Want>> = {}): Step {
  return new Step((t) => {
    const g = at(gpa, t);
    return {
      reason: abi.HVI_EXIT_EPT,
      gpa: g,
      gva: t.gva(g),
      access: kind.split("|").map(access),
      insnLen: undefined,
      ...at(more, t),
    };
  });
}
export function exit(reason: number, more: When<Partial<Want>> = {}): Step {
  return new Step((t) => ({ reason, ...at(more, t) }));
}
/** A guest handler was reached. Its exit is skipped, so that the handler returns. */
export function trap(
  vector: number,
  frame: When<Omit<NonNullable<Want["frame"]>, "vector">> = {},
  more: When<Partial<Want>> = {},
): Step {
  return new Step((t) => ({
    reason: abi.HVI_EXIT_IO,
    number: 0x80 + vector,
    rip: t.symbol("handlers") + 16 * vector,
    frame: { vector, ...at(frame, t) },
    ...at(more, t),
  })).skip();
}
/** The instruction of a reply with `notify` is over; RIP stands at `rip`. */
export function over(rip: When<number | bigint>, more: When<Partial<Want>> = {}): Step {
  return new Step((t) => ({ reason: abi.HVI_EXIT_STEP, rip: at(rip, t), ...at(more, t) }));
}
export const none: Step[] = [];
