// SPDX-License-Identifier: MIT
import { ALERT_SCHEMA, type Alert, type AlertSink, type Draft } from "./alert.ts";

/**
 * Takes alerts from inside an exit and gives them to the sinks between exits. A write that goes on
 * from where the last one ended, by the same instruction (a REP, or a copy loop), becomes part of
 * the same alert.
 */
export class AlertQueue {
  readonly #sinks: AlertSink[];
  #pending: Draft<Alert>[] = [];
  #nextId = 1;
  /** Violations so far by protection and action: "kernel-image denied" -> 3. */
  readonly counts = new Map<string, number>();
  violations = 0;

  constructor(sinks: AlertSink[]) {
    this.#sinks = sinks;
  }

  /** How many alerts wait for `drain`. */
  get length(): number {
    return this.#pending.length;
  }

  push(draft: Draft<Alert>): void {
    const last = this.#pending[this.#pending.length - 1];
    if (last !== undefined && merge(last, draft)) return;
    if (draft.kind === "violation") {
      this.violations++;
      const key = `${draft.protection} ${draft.action}`;
      this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
    }
    this.#pending.push(draft);
  }

  /** Sends what waits. Call it between exits, never from a handler. */
  drain(): void {
    if (this.#pending.length === 0) return;
    const batch = this.#pending;
    this.#pending = [];
    const time = new Date().toISOString();
    for (const draft of batch) {
      const alert = { schema: ALERT_SCHEMA, id: this.#nextId++, time, ...draft } as Alert;
      for (const sink of this.#sinks) sink.write(alert);
    }
  }

  close(): void {
    this.drain();
    for (const sink of this.#sinks) sink.close();
  }
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
