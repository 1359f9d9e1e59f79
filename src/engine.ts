// SPDX-License-Identifier: MIT
import type { GuestEvent } from "./alerts/alert.ts";
import type { AlertQueue } from "./alerts/queue.ts";
import { HVI_W, type Vcpu, type Vm } from "./bridge/index.ts";
import { ALLOW, type GpaHook } from "./ept/gpa-hooks.ts";
import { identify } from "./guest/identify.ts";
import type { LinuxGuest } from "./guest/linux/kernel.ts";
import { Introspection } from "./introspection.ts";
import { asGva } from "./memory/address.ts";
import type { PhysicalMemory } from "./memory/physical.ts";
import { Attribution } from "./protect/attribution.ts";
import type { ActiveProtection, Protection } from "./protect/protection.ts";
import type { RegisterHook } from "./registers/register-hooks.ts";

/** IA32_LSTAR: Linux writes it once per CPU, when its text stands where it will stay. */
const MSR_LSTAR = 0xc0000082;

/** Guest ticks between two tries to identify a guest that is not recognised yet. */
const RETRY_TICKS = 50_000_000;
/** Tries before the guest is given up as unknown. */
const MAX_TRIES = 40;

export type Stage =
  /** The guest has not set up system calls yet. */
  | "waiting"
  /** It has, but is not recognised (yet). */
  | "identifying"
  /** Linux, still booting. */
  | "booting"
  | "active"
  /** Not a guest we know: nothing is touched. */
  | "unknown"
  | "stopped";

export interface EngineOptions {
  vm: Vm;
  memory: PhysicalMemory;
  alerts: AlertQueue;
  protections: readonly Protection[];
}

/**
 * Puts the parts together: sees each exit first, finds out who the guest is, switches protections on
 * when its kernel has finished patching itself, and off again.
 *
 *     waiting --LSTAR written--> identifying --> booting --SYSTEM_RUNNING--> active
 *                                     \--> unknown (with the reason)
 */
export class Engine {
  readonly core: Introspection;
  readonly #vm: Vm;
  readonly #memory: PhysicalMemory;
  readonly #alerts: AlertQueue;
  readonly #protections: readonly Protection[];
  #active: ActiveProtection[] = [];
  #stage: Stage = "waiting";
  #guest: LinuxGuest | undefined;
  #stateHook: GpaHook | undefined;
  #entryHook: RegisterHook | undefined;
  #running = Number.NaN;
  #tries = 0;
  #reason = "";
  /** Guest TSC at which identification or activation goes on. */
  #due = Number.POSITIVE_INFINITY;

  constructor(options: EngineOptions) {
    this.#vm = options.vm;
    this.#memory = options.memory;
    this.#alerts = options.alerts;
    this.#protections = options.protections;
    this.core = new Introspection(options.vm, options.memory);
  }

  get stage(): Stage {
    return this.#stage;
  }

  /** The guest, once it is identified. */
  get guest(): LinuxGuest | undefined {
    return this.#guest;
  }

  /** Why the guest is not identified (yet). */
  get reason(): string {
    return this.#reason;
  }

  /** Call once, before the guest runs: from its first instruction or restored from a snapshot. */
  attach(vcpu: Vcpu): void {
    if (vcpu.lstar !== 0) {
      this.#identify(vcpu);
      return;
    }
    this.#entryHook = this.core.registers.addMsr(
      MSR_LSTAR,
      (access, hook) => {
        this.core.registers.remove(hook);
        this.#stage = "identifying";
        // The write takes effect when the guest goes on; identify right after it.
        this.#due = access.vcpu.exitTsc + 1;
        return ALLOW;
      },
      { owner: "engine" },
    );
    this.#reason = "the guest has not set up its system call entry";
  }

  /**
   * First refusal of an exit.
   * @returns true when it was the engine's and the reply is set
   */
  handle(vcpu: Vcpu): boolean {
    return this.core.handle(vcpu);
  }

  /** What devices ask before they go past the EPT. */
  get guard(): Introspection {
    return this.core;
  }

  /** Guest TSC at which `poll` is due; Infinity when nothing waits. */
  get deadline(): number {
    return Math.min(this.#due, this.core.deadline);
  }
  get eager(): boolean {
    return this.core.eager;
  }

  /** Work that waits for guest time: identification, activation, checks. Between exits. */
  poll(vcpu: Vcpu): void {
    this.core.poll(vcpu);
    if (vcpu.exitTsc < this.#due) return;
    this.#due = Number.POSITIVE_INFINITY;
    if (this.#stage === "identifying") this.#identify(vcpu);
    else if (this.#stage === "booting") this.#activateWhenRunning(vcpu);
  }

  /** Takes every hook out of the guest. */
  stop(): void {
    for (const protection of this.#active) protection.deactivate();
    this.#active = [];
    if (this.#stateHook !== undefined) this.core.hooks.remove(this.#stateHook);
    this.#stateHook = undefined;
    if (this.#entryHook !== undefined) this.core.registers.remove(this.#entryHook);
    this.#entryHook = undefined;
    this.core.stop();
    this.#stage = "stopped";
    this.#due = Number.POSITIVE_INFINITY;
  }

  #identify(vcpu: Vcpu): void {
    const result = identify(this.#memory, vcpu);
    if (!result.ok) {
      this.#reason = result.reason;
      this.#tries++;
      if (this.#tries < MAX_TRIES) {
        this.#stage = "identifying";
        this.#due = vcpu.tsc + RETRY_TICKS;
        return;
      }
      this.#stage = "unknown";
      this.#event(
        vcpu,
        "guest-unknown",
        `guest not recognised: ${result.reason}; nothing is protected`,
      );
      return;
    }
    const guest = result.guest;
    this.#guest = guest;
    this.#reason = "";
    this.#event(vcpu, "guest-identified", `guest is Linux ${guest.version}`, {
      version: guest.version,
      symbols: guest.symbols.count,
      slide: `0x${guest.slide.toString(16)}`,
    });
    this.#stage = "booting";
    this.#activateWhenRunning(vcpu);
  }

  /** Activates if the kernel is up, else waits for its write to `system_state`. */
  #activateWhenRunning(vcpu: Vcpu): void {
    const guest = this.#guest as LinuxGuest;
    const state = guest.symbols.lookup("system_state");
    if (Number.isNaN(this.#running)) {
      this.#running = guest.btf?.enumerator("SYSTEM_RUNNING") ?? Number.NaN;
    }
    if (state === undefined || Number.isNaN(this.#running)) {
      const missing =
        state === undefined ? "symbol system_state" : "enumerator SYSTEM_RUNNING in BTF";
      this.#stage = "unknown";
      this.#reason = `the guest's kernel has no ${missing}`;
      this.#event(vcpu, "guest-unknown", `${this.#reason}; nothing is protected`);
      return;
    }
    const value = guest.vm.read32(state);
    if (value >= this.#running) {
      if (this.#stateHook !== undefined) this.core.hooks.remove(this.#stateHook);
      this.#stateHook = undefined;
      this.#activate(vcpu);
      return;
    }
    if (this.#stateHook === undefined) this.#watchState(state);
    this.core.hooks.commit();
  }

  #watchState(state: number): void {
    const gpa = (this.#guest as LinuxGuest).vm.gpaOf(asGva(state));
    if (gpa < 0) return;
    const offset = gpa % 4096;
    this.#stateHook = this.core.hooks.add(
      Math.floor(gpa / 4096),
      HVI_W,
      (access) => {
        this.#due = access.vcpu.exitTsc + 1;
        return ALLOW;
      },
      { start: offset, end: offset + 4, owner: "engine" },
    );
  }

  #activate(vcpu: Vcpu): void {
    const guest = this.#guest as LinuxGuest;
    this.#stage = "active";
    const context = {
      vm: this.#vm,
      guest,
      hooks: this.core.hooks,
      tables: this.core.tables,
      alerts: this.#alerts,
      attribution: new Attribution(guest),
      written: this.core.written,
      vcpu,
    };
    if (!context.attribution.tellsCallers) {
      const why = guest.missing.get("unwind");
      this.#event(
        vcpu,
        "protection-limited",
        `stacks cannot be unwound (${why}): a module that calls text_poke is not told from the kernel`,
      );
    }
    for (const protection of this.#protections) {
      try {
        const active = protection.activate(context);
        this.#active.push(active);
        const message = `${protection.name} is on: ${active.summary}`;
        this.#event(vcpu, "protection-active", message, undefined, protection.name);
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        this.#event(
          vcpu,
          "protection-failed",
          `${protection.name} cannot be switched on: ${why}`,
          undefined,
          protection.name,
        );
      }
    }
    this.core.hooks.commit();
  }

  #event(
    vcpu: Vcpu,
    type: Exclude<GuestEvent["type"], "guest-died">,
    message: string,
    details?: Record<string, string | number>,
    protection?: string,
  ): void {
    this.#alerts.push({
      kind: "event",
      type,
      tsc: vcpu.tsc,
      vcpu: vcpu.index,
      message,
      ...(details === undefined ? {} : { details }),
      ...(protection === undefined ? {} : { protection }),
    });
  }
}
