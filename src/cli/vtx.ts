// SPDX-License-Identifier: MIT
/**
 * Whether hvi can use VT-x on this machine, and if not, what stands in the way and what to do about
 * it. What is known of the machine is gathered in one place, so that every state can be tested.
 */
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  openSync,
  readFileSync,
  readSync,
} from "node:fs";
import { BackendError, DEVICE, openVm, type VmInfo } from "../bridge/index.ts";

export const VTX_STATES = [
  "ready",
  "no-vtx",
  "not-intel",
  "hidden",
  "locked",
  "no-ept",
  "module-not-loaded",
  "kvm-holds-vmx",
  "other-kernel",
  "module-refused",
  "not-root",
  "abi-differs",
  "broken",
] as const;
export type VtxState = (typeof VTX_STATES)[number];

/** What the machine says about itself. */
export interface VtxFacts {
  /** /proc/cpuinfo. */
  readonly cpuinfo: string;
  /** Lines of the kernel's log; empty when it may not be read. */
  readonly kernelLog: readonly string[];
  /** /proc/modules. */
  readonly modules: string;
  /** KVM switches VT-x on when it is loaded, not with its first guest (kernels from 6.12 on). */
  readonly kvmAtLoad: boolean;
  readonly device: "absent" | "forbidden" | "present";
  /** What opening the device gave. */
  readonly open: () => VmInfo;
}

export interface VtxFinding {
  readonly state: VtxState;
  readonly what: string;
  /** The next step; empty when there is none. */
  readonly hint: string;
}

/** Words of a line of /proc/cpuinfo, of the first CPU. */
function words(cpuinfo: string, name: string): string[] {
  const line = new RegExp(`^${name}\\s*:(.*)$`, "m").exec(cpuinfo)?.[1];
  return line?.trim().split(/\s+/) ?? [];
}

/** How many users a loaded module has; undefined when it is not loaded. */
function moduleUsers(modules: string, name: string): number | undefined {
  for (const line of modules.split("\n")) {
    const [module, , users] = line.split(" ");
    if (module === name) return Number(users);
  }
  return undefined;
}

const LOAD = "make -C hv/vmx && sudo insmod hv/vmx/hvi.ko";
const SOFT = "the software vCPU works without: --backend soft";

/** The CPU alone: undefined when it can do what hvi needs. */
function cpu(f: VtxFacts): VtxFinding | undefined {
  const flags = words(f.cpuinfo, "flags");
  const vmx = words(f.cpuinfo, "vmx flags");
  const [vendor] = words(f.cpuinfo, "vendor_id");
  if (!flags.includes("vmx")) {
    // arch/x86/kernel/cpu/feat_ctl.c: the flag is taken away when the firmware has locked it.
    if (
      f.kernelLog.some((line) =>
        /VMX .*disabled by (?:BIOS|TXT)|VT-x is disabled and locked/.test(line),
      )
    ) {
      return LOCKED;
    }
    if (vendor !== undefined && vendor !== "GenuineIntel") {
      return {
        state: "not-intel",
        what: `the CPU is ${vendor}'s, and VT-x is Intel's`,
        hint: SOFT,
      };
    }
    if (flags.includes("hypervisor")) {
      return {
        state: "hidden",
        what: "this is a virtual machine whose hypervisor shows no VT-x",
        hint: `allow nested virtualization in the outer hypervisor; ${SOFT}`,
      };
    }
    return {
      state: "no-vtx",
      what: "the CPU has no VT-x, or the firmware has switched it off",
      hint: `look for Intel Virtualization Technology (VT-x) in the BIOS setup; ${SOFT}`,
    };
  }
  // Kernels before 5.9 have no such line.
  const lacks = ["ept", "vpid", "unrestricted_guest"].filter(
    (n) => vmx.length > 0 && !vmx.includes(n),
  );
  if (lacks.length > 0) {
    return { state: "no-ept", what: `this CPU's VT-x lacks ${lacks.join(", ")}`, hint: SOFT };
  }
  return undefined;
}

const LOCKED: VtxFinding = {
  state: "locked",
  what: "VT-x is switched off and locked by the firmware",
  hint: "switch on Intel Virtualization Technology (VT-x) in the BIOS setup, then power the machine off and on",
};

/** Why there is no device: what the module said when it was loaded last, if it was. */
function notLoaded(f: VtxFacts): VtxFinding {
  const users = moduleUsers(f.modules, "kvm_intel");
  const said = f.kernelLog.filter((line) => /\bhvi: /.test(line) && !/taint/.test(line));
  const last = said.at(-1)?.replace(/^.*?\bhvi: /, "") ?? "";
  const busy = /VMX operation already|holds VT-x/.test(last);
  if (/version magic|disagrees about version|Unknown symbol/.test(last)) {
    return {
      state: "other-kernel",
      what: `hvi.ko was built for another kernel: ${last}`,
      hint: `make -C hv/vmx clean && ${LOAD}`,
    };
  }
  if (users !== undefined && (users > 0 || busy || f.kvmAtLoad)) {
    return {
      state: "kvm-holds-vmx",
      what: "KVM holds VT-x",
      hint: `stop its guests, then: sudo rmmod kvm_intel && ${LOAD}`,
    };
  }
  if (/disabled and locked by the firmware/.test(last)) return LOCKED;
  if (busy) {
    return {
      state: "module-refused",
      what: "another hypervisor held VT-x when hvi.ko was to be loaded",
      hint: `unload it (vboxdrv, vmmon) where it is still there, then: ${LOAD}`,
    };
  }
  // What it says at a good start, or of a CPU that came later, is no reason.
  if (last !== "" && !/^ABI \d|^CPU \d+ cannot run guests/.test(last)) {
    return { state: "module-refused", what: `hvi.ko did not load: ${last}`, hint: "see dmesg" };
  }
  return { state: "module-not-loaded", what: "hvi.ko is not loaded", hint: LOAD };
}

/** The state of VT-x, worst obstacle first. */
export function vtxFinding(f: VtxFacts): VtxFinding {
  if (f.device === "forbidden") {
    return { state: "not-root", what: `${DEVICE} is for root`, hint: "sudo hvi …" };
  }
  if (f.device === "absent") return cpu(f) ?? notLoaded(f);
  try {
    const info = f.open();
    const what = `hvi.ko, ABI ${info.abiVersion}, up to ${info.maxVcpus} vCPUs, guest TSC ${info.tscKhz / 1000} MHz`;
    return { state: "ready", what, hint: "" };
  } catch (error) {
    if (!(error instanceof BackendError)) throw error;
    const state: VtxState = /\bABI\b/.test(error.message)
      ? "abi-differs"
      : /needs root/.test(error.message)
        ? "not-root"
        : /in use/.test(error.message)
          ? "kvm-holds-vmx"
          : /no driver/.test(error.message)
            ? "module-not-loaded"
            : "broken";
    return { state, what: error.message, hint: error.hint };
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** The kernel's log from its ring buffer (Documentation/ABI/testing/dev-kmsg): a record a read. */
function readKernelLog(): string[] {
  let fd: number;
  try {
    fd = openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return [];
  }
  const lines: string[] = [];
  const buffer = new Uint8Array(8192);
  const decoder = new TextDecoder();
  // The buffer of the largest kernels holds fewer records than this.
  for (let n = 0; n < 1 << 20; n++) {
    try {
      const size = readSync(fd, buffer, 0, buffer.length, null);
      if (size === 0) break;
      const record = decoder.decode(buffer.subarray(0, size));
      lines.push(record.slice(record.indexOf(";") + 1).split("\n")[0] ?? "");
    } catch (error) {
      // EPIPE: a record was overwritten before it was read; the next one is there.
      if ((error as NodeJS.ErrnoException).code !== "EPIPE") break;
    }
  }
  closeSync(fd);
  return lines;
}

function deviceState(): VtxFacts["device"] {
  if (!existsSync(DEVICE)) return "absent";
  try {
    accessSync(DEVICE, constants.R_OK | constants.W_OK);
    return "present";
  } catch {
    return "forbidden";
  }
}

/** The facts of this machine. */
export function vtxFacts(): VtxFacts {
  return {
    cpuinfo: readText("/proc/cpuinfo"),
    kernelLog: readKernelLog(),
    modules: readText("/proc/modules"),
    kvmAtLoad: readText("/sys/module/kvm/parameters/enable_virt_at_load").startsWith("Y"),
    device: deviceState(),
    open() {
      const vm = openVm({ backend: "vmx" });
      const { info } = vm;
      vm.close();
      return info;
    },
  };
}
