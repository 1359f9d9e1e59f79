// SPDX-License-Identifier: MIT
import type { AlertQueue } from "../alerts/queue.ts";
import type { Vcpu, Vm } from "../bridge/index.ts";
import type { GpaHooks } from "../ept/gpa-hooks.ts";
import type { PageTables, WrittenBytes } from "../ept/page-tables.ts";
import type { LinuxGuest } from "../guest/linux/kernel.ts";
import type { Attribution } from "./attribution.ts";

/** What a protection is given to work with. */
export interface ProtectionContext {
  readonly vm: Vm;
  readonly guest: LinuxGuest;
  readonly hooks: GpaHooks;
  readonly tables: PageTables;
  readonly alerts: AlertQueue;
  readonly attribution: Attribution;
  readonly written: WrittenBytes;
  /** The vCPU at hand while the protection is activated. */
  readonly vcpu: Vcpu;
}

/** A protection that is switched on. */
export interface ActiveProtection {
  /** For people: what it covers now. */
  readonly summary: string;
  /** Removes every hook it set; in effect after the hooks' next commit. */
  deactivate(): void;
}

/** One protection feature: a folder of src/protect. */
export interface Protection {
  /** As given to `--protect`. */
  readonly name: string;
  /** One line for `hvi protections` and the docs. */
  readonly title: string;
  /** MITRE ATT&CK technique that its violations carry. */
  readonly technique: string;
  /** @throws Error naming what the guest lacks when the protection cannot work on it. */
  activate(context: ProtectionContext): ActiveProtection;
}
