// SPDX-License-Identifier: MIT
import type { GuestEvent } from "./alerts/alert.ts";
import type { AlertQueue } from "./alerts/queue.ts";
import {
  HVI_ACCESS_GVA,
  HVI_ACCESS_WRITE,
  HVI_EXIT_EPT,
  HVI_EXIT_MSR_WRITE,
  HVI_EXIT_STEP,
  HVI_INTERCEPT_MSR_WRITE,
  HVI_W,
  type Vcpu,
  type Vm,
} from "./bridge/index.ts";
import { ALLOW, type GpaHook, GpaHooks } from "./ept/gpa-hooks.ts";
import { ExitInstructions } from "./ept/instructions.ts";
import { PageTables, type WrittenBytes } from "./ept/page-tables.ts";
import { identify } from "./guest/identify.ts";
import type { LinuxGuest } from "./guest/linux/kernel.ts";
import { asGva } from "./memory/address.ts";
import type { PhysicalMemory } from "./memory/physical.ts";
import { Attribution } from "./protect/attribution.ts";
import type { ActiveProtection, Protection } from "./protect/protection.ts";

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
  readonly #vm: Vm;
  readonly #memory: PhysicalMemory;
  readonly #alerts: AlertQueue;
  readonly #protections: readonly Protection[];
  readonly #hooks: GpaHooks;
  readonly #tables: PageTables;
  readonly #written: WrittenBytes;
  #active: ActiveProtection[] = [];
  #stage: Stage = "waiting";
  #guest: LinuxGuest | undefined;
  #stateHook: GpaHook | undefined;
  #running = Number.NaN;
  #tries = 0;
  #reason = "";
  /** Guest TSC at which `poll` is due; Infinity when nothing waits. */
  deadline = Number.POSITIVE_INFINITY;

  constructor(options: EngineOptions) {
    this.#vm = options.vm;
    this.#memory = options.memory;
    this.#alerts = options.alerts;
    this.#protections = options.protections;
    const instructions = new ExitInstructions(options.vm, options.memory);
    this.#hooks = new GpaHooks(options.vm, instructions);
    this.#written = (access, out) => instructions.bytes(access, out);
    this.#tables = new PageTables(this.#hooks, options.memory, this.#written);
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
    this.#vm.intercept(HVI_INTERCEPT_MSR_WRITE, MSR_LSTAR, 1);
    this.#reason = "the guest has not set up its system call entry";
  }

  /**
   * First refusal of an exit.
   * @returns true when it was the engine's and the reply is set
   */
  handle(vcpu: Vcpu): boolean {
    this.#hooks.settle(vcpu);
    const ours = this.#dispatch(vcpu);
    this.#hooks.commit();
    return ours;
  }

  #dispatch(vcpu: Vcpu): boolean {
    switch (vcpu.exitReason) {
      case HVI_EXIT_EPT:
        return this.#hooks.dispatch(vcpu);
      case HVI_EXIT_STEP:
        // Asked for by a hook, and answered above.
        vcpu.resume();
        return true;
      case HVI_EXIT_MSR_WRITE:
        if (vcpu.exitNumber !== MSR_LSTAR || this.#stage !== "waiting") return false;
        this.#vm.intercept(HVI_INTERCEPT_MSR_WRITE, MSR_LSTAR, 0);
        vcpu.resume();
        this.#stage = "identifying";
        // The write takes effect when the guest goes on; identify right after it.
        this.deadline = vcpu.exitTsc + 1;
        return true;
      default:
        return false;
    }
  }

  /**
   * Whether a device may write guest memory for the instruction at hand (INS), which no EPT sees.
   * @param gva linear address of the first byte; the range does not leave its page
   */
  mayWrite(vcpu: Vcpu, gva: number, gpa: number, size: number): boolean {
    const action = this.#hooks.ask(vcpu, gpa, size, gva, HVI_ACCESS_WRITE | HVI_ACCESS_GVA);
    this.#hooks.commit();
    return action === ALLOW;
  }

  /** Work that waits for guest time: identification, activation. Between exits, when `deadline` has passed. */
  poll(vcpu: Vcpu): void {
    this.deadline = Number.POSITIVE_INFINITY;
    if (this.#stage === "identifying") this.#identify(vcpu);
    else if (this.#stage === "booting") this.#activateWhenRunning(vcpu);
  }

  /** Takes every hook out of the guest. */
  stop(): void {
    for (const protection of this.#active) protection.deactivate();
    this.#active = [];
    if (this.#stateHook !== undefined) this.#hooks.remove(this.#stateHook);
    this.#stateHook = undefined;
    this.#hooks.commit();
    this.#stage = "stopped";
    this.deadline = Number.POSITIVE_INFINITY;
  }

  #identify(vcpu: Vcpu): void {
    const result = identify(this.#memory, vcpu);
    if (!result.ok) {
      this.#reason = result.reason;
      this.#tries++;
      if (this.#tries < MAX_TRIES) {
        this.#stage = "identifying";
        this.deadline = vcpu.tsc + RETRY_TICKS;
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
      if (this.#stateHook !== undefined) this.#hooks.remove(this.#stateHook);
      this.#stateHook = undefined;
      this.#activate(vcpu);
      return;
    }
    if (this.#stateHook === undefined) this.#watchState(state);
    this.#hooks.commit();
  }

  #watchState(state: number): void {
    const gpa = (this.#guest as LinuxGuest).vm.gpaOf(asGva(state));
    if (gpa < 0) return;
    const offset = gpa % 4096;
    this.#stateHook = this.#hooks.add(
      Math.floor(gpa / 4096),
      HVI_W,
      (access) => {
        this.deadline = access.vcpu.exitTsc + 1;
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
      hooks: this.#hooks,
      tables: this.#tables,
      alerts: this.#alerts,
      attribution: new Attribution(guest),
      written: this.#written,
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
    this.#hooks.commit();
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
