// SPDX-License-Identifier: MIT
/**
 * What the engine reports: violations (something looked like an attack) and events (the guest did
 * something worth knowing). One schema for both; `schema` names its version. Guest addresses are
 * hexadecimal strings, because a 64-bit number does not survive every JSON reader.
 *
 * Field and value names follow the guide's chapter on alerts; see docs/alerts.md.
 */

export const ALERT_SCHEMA = "hvi.alert/1";

/** Whether the guest's attempt had its effect. */
export type Action = "denied" | "allowed";

/** Why that action was taken: nothing allows such an access. */
export type Reason = "no-exception";

export type VictimKind =
  | "kernel-text"
  | "kernel-rodata"
  | "syscall-table"
  | "idt"
  | "kernel-page-tables";

/** Who did it. `unknown` is code outside the kernel image and outside every module. */
export interface Originator {
  kind: "kernel" | "module" | "user" | "unknown";
  /** Name of the module; absent for the kernel itself. */
  module?: string;
  /** `symbol+0x12` of the code that is responsible. */
  symbol?: string;
  /** RIP of the instruction that made the access. */
  rip: string;
  /** Symbol at RIP, when it differs from `symbol` (a helper that was called). */
  ripSymbol?: string;
  /** The instruction, Intel syntax, and its bytes in hexadecimal. */
  instruction?: string;
  bytes?: string;
  /** Return addresses, innermost first, with symbols. */
  stack?: string[];
}

export interface Victim {
  kind: VictimKind;
  /** `symbol+0x12` of the first byte touched. */
  symbol?: string;
  gva: string;
  gpa: string;
}

export interface Access {
  kind: "read" | "write" | "execute";
  /** Linear address the instruction used; differs from the victim's for an alias. */
  gva?: string;
  /** Bytes. */
  size: number;
  /** Bytes in memory before, and those it tried to write; hexadecimal, memory order. */
  old?: string;
  new?: string;
  /** How many accesses this alert stands for: of one store (REP, a copy loop), or repeats of it. */
  count: number;
}

export interface ProcessInfo {
  pid: number;
  tgid: number;
  comm: string;
  kernelThread?: boolean;
  parent?: { pid: number; comm: string };
}

interface Header {
  schema: typeof ALERT_SCHEMA;
  /** Counts from 1 in one run. */
  id: number;
  /** Host time, ISO 8601. */
  time: string;
  /** Guest TSC. */
  tsc: number;
  vcpu: number;
}

export interface Violation extends Header {
  kind: "violation";
  /**
   * `translation-violation`: a page-table entry of protected memory was about to point elsewhere;
   * the access is the write to the entry, the victim what it translates.
   */
  type: "ept-violation" | "translation-violation";
  protection: string;
  action: Action;
  reason: Reason;
  /** MITRE ATT&CK technique. */
  technique: string;
  originator: Originator;
  victim: Victim;
  access: Access;
  process?: ProcessInfo;
}

export interface GuestEvent extends Header {
  kind: "event";
  type:
    | "guest-identified"
    | "guest-unknown"
    | "protection-active"
    | "protection-failed"
    | "protection-limited"
    | "guest-died";
  /** The protection, for `protection-*`. */
  protection?: string;
  message: string;
  details?: Record<string, string | number>;
}

export type Alert = Violation | GuestEvent;

/** An alert before the queue has numbered and dated it. */
export type Draft<T extends Alert> = T extends Alert ? Omit<T, "schema" | "id" | "time"> : never;

/** Gets every alert, in order, outside the path of an exit. */
export interface AlertSink {
  write(alert: Alert): void;
  /** Everything written so far is on disk or screen when it returns. */
  close(): void;
}
