// SPDX-License-Identifier: MIT
import { ALERT_SCHEMA, type Alert, type AlertSink, type Draft, type Violation } from "./alert.ts";

/** Times that the same violation is reported one by one before repeats are counted instead. */
const BURST = 8;
/** Milliseconds of host time: repeats are reported this often, and forgotten after as long without one. */
const REPEAT_MS = 1000;
/** Violations whose repeats are counted at a time; of more, the oldest's count is sent early. */
const MAX_REPEATED = 256;

/** A violation that was reported, and comes again. */
interface Repeated {
  reported: number;
  /** The newest that is not reported yet; its count stands for all of them. */
  held: Draft<Violation> | undefined;
  /** Host time of the last report. */
  since: number;
}

/**
 * Takes alerts from inside an exit and gives them to the sinks between exits. A write that goes on
 * from where the last one ended, by the same instruction (a REP, or a copy loop), becomes part of
 * the same alert. The same violation over and over is reported a few times and then once a second
 * with a count, so that a guest that attacks in a loop costs neither memory nor a line each.
 */
export class AlertQueue {
  readonly #sinks: AlertSink[];
  readonly #now: () => number;
  #pending: Draft<Alert>[] = [];
  /** The newest alert, which may still grow. */
  #open: Draft<Alert> | undefined;
  readonly #repeated = new Map<string, Repeated>();
  #nextId = 1;
  /** Violations so far by protection and action: "kernel-image denied" -> 3. */
  readonly counts = new Map<string, number>();
  violations = 0;

  /** @param now host time in milliseconds */
  constructor(sinks: AlertSink[], now: () => number = Date.now) {
    this.#sinks = sinks;
    this.#now = now;
  }

  push(draft: Draft<Alert>): void {
    if (this.#open !== undefined && merge(this.#open, draft)) return;
    this.#settle();
    if (draft.kind === "violation") {
      this.violations++;
      const key = `${draft.protection} ${draft.action}`;
      this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
    }
    this.#open = draft;
  }

  /** Sends what waits. Call it between exits, never from a handler. */
  drain(): void {
    this.#settle();
    for (const [key, repeated] of this.#repeated) {
      if (this.#now() - repeated.since < REPEAT_MS) continue;
      if (repeated.held === undefined) this.#repeated.delete(key);
      else this.#release(repeated);
    }
    this.#send();
  }

  close(): void {
    this.#settle();
    for (const repeated of this.#repeated.values()) this.#release(repeated);
    this.#repeated.clear();
    this.#send();
    for (const sink of this.#sinks) sink.close();
  }

  /** The newest alert is whole: it waits for `drain`, or is counted as a repeat. */
  #settle(): void {
    const draft = this.#open;
    if (draft === undefined) return;
    this.#open = undefined;
    if (draft.kind === "violation") {
      const key = identity(draft);
      const known = this.#repeated.get(key);
      if (known === undefined) this.#remember(key);
      else if (known.reported < BURST) known.reported++;
      else {
        const before = known.held?.access.count ?? 0;
        known.held = draft;
        draft.access.count += before;
        return;
      }
    }
    this.#pending.push(draft);
  }

  #remember(key: string): void {
    if (this.#repeated.size >= MAX_REPEATED) {
      const [oldest, repeated] = this.#repeated.entries().next().value as [string, Repeated];
      this.#release(repeated);
      this.#repeated.delete(oldest);
    }
    this.#repeated.set(key, { reported: 1, held: undefined, since: this.#now() });
  }

  #release(repeated: Repeated): void {
    if (repeated.held === undefined) return;
    this.#pending.push(repeated.held);
    repeated.held = undefined;
    repeated.since = this.#now();
  }

  #send(): void {
    if (this.#pending.length === 0) return;
    const batch = this.#pending;
    this.#pending = [];
    const time = new Date(this.#now()).toISOString();
    for (const draft of batch) {
      const alert = { schema: ALERT_SCHEMA, id: this.#nextId++, time, ...draft } as Alert;
      for (const sink of this.#sinks) sink.write(alert);
    }
  }
}

/** What makes two violations the same one again: who did what to whom, with which bytes. */
function identity(v: Draft<Violation>): string {
  const { originator: o, victim, access } = v;
  return [
    ...[v.type, v.vcpu, v.protection, v.action, v.reason, v.process?.pid],
    ...[o.rip, o.symbol, o.stack?.join(" "), victim.gva, victim.gpa],
    ...[access.kind, access.gva, access.size, access.old, access.new],
  ].join("|");
}

/** Longest range one alert may grow to, in bytes: beyond it the bytes themselves say no more. */
const MERGE_LIMIT = 4096;

/** Joins `next` to `last` when it is the same store going on. */
function merge(last: Draft<Alert>, next: Draft<Alert>): boolean {
  if (last.kind !== "violation" || next.kind !== "violation") return false;
  if (
    last.type !== next.type ||
    last.originator.rip !== next.originator.rip ||
    last.vcpu !== next.vcpu ||
    last.action !== next.action ||
    last.victim.kind !== next.victim.kind ||
    last.process?.pid !== next.process?.pid
  ) {
    return false;
  }
  const a = last.access;
  const b = next.access;
  const gap = BigInt(next.victim.gva) - BigInt(last.victim.gva);
  if (a.kind !== b.kind || gap !== BigInt(a.size) || a.size + b.size > MERGE_LIMIT) return false;
  a.size += b.size;
  a.count += b.count;
  a.old = a.old !== undefined && b.old !== undefined ? a.old + b.old : undefined;
  a.new = a.new !== undefined && b.new !== undefined ? a.new + b.new : undefined;
  return true;
}
