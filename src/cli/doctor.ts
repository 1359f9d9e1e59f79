// SPDX-License-Identifier: MIT
import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { freemem } from "node:os";
import type { CAC } from "cac";
import { assetPath, BackendError, openVm } from "../bridge/index.ts";
import { EXIT_FAILURE, EXIT_OK } from "./output.ts";

type State = "ok" | "missing" | "note";

interface Finding {
  state: State;
  what: string;
  /** What it is, or what to do about it. */
  detail: string;
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function backend(kind: "soft" | "vmx"): Finding {
  const what = kind === "soft" ? "software vCPU" : "VT-x backend";
  try {
    const vm = openVm({ backend: kind });
    const { info } = vm;
    vm.close();
    const detail = `ABI ${info.abiVersion}, up to ${info.maxVcpus} vCPUs, guest TSC ${info.tscKhz / 1000} MHz`;
    return { state: "ok", what, detail };
  } catch (error) {
    if (!(error instanceof BackendError)) throw error;
    return {
      state: kind === "soft" ? "missing" : "note",
      what,
      detail: `${error.message} -> ${error.hint}`,
    };
  }
}

function vtx(): Finding {
  const flags = /^flags\s*:(.*)$/m.exec(readText("/proc/cpuinfo"))?.[1]?.trim().split(" ") ?? [];
  const vmxFlags =
    /^vmx flags\s*:(.*)$/m.exec(readText("/proc/cpuinfo"))?.[1]?.trim().split(" ") ?? [];
  const what = "CPU with VT-x and EPT";
  if (!flags.includes("vmx"))
    return {
      state: "note",
      what,
      detail:
        "not here (or switched off in the firmware, or hidden by a hypervisor); the software vCPU works without",
    };
  const ept = vmxFlags.length === 0 || vmxFlags.includes("ept");
  return ept
    ? { state: "ok", what, detail: `vmx${vmxFlags.includes("ept") ? ", ept" : ""}` }
    : { state: "note", what, detail: "vmx without EPT: only the software vCPU can be used" };
}

function device(): Finding {
  const what = "/dev/hvi";
  if (!existsSync("/dev/hvi"))
    return {
      state: "note",
      what,
      detail: "not there: this release has no VT-x module yet; the software vCPU works without",
    };
  try {
    accessSync("/dev/hvi", constants.R_OK | constants.W_OK);
    return { state: "ok", what, detail: "can be opened" };
  } catch {
    return { state: "note", what, detail: "no permission -> run hvi as root" };
  }
}

function kvm(): Finding {
  const inUse = existsSync("/sys/module/kvm_intel");
  return {
    state: inUse ? "note" : "ok",
    what: "VT-x free for hvi",
    detail: inUse
      ? "kvm_intel is loaded -> stop its guests and: sudo rmmod kvm_intel"
      : "KVM is not loaded",
  };
}

function asset(name: "libhvi-soft.so" | "zydis.wasm", what: string): Finding {
  const path = assetPath(name);
  return path === undefined
    ? { state: "missing", what, detail: `${name} was not built -> npm run setup` }
    : { state: "ok", what, detail: path };
}

function memory(): Finding {
  const free = Math.floor(freemem() / 2 ** 20);
  const enough = free > 512;
  return {
    state: enough ? "ok" : "note",
    what: "free memory",
    detail: `${free} MiB${enough ? "" : " -> close something, or use a small --memory"}`,
  };
}

/** Everything that hvi needs or can use on this machine. */
export function examine(): Finding[] {
  return [
    asset("libhvi-soft.so", "software vCPU library"),
    asset("zydis.wasm", "instruction decoder"),
    backend("soft"),
    memory(),
    vtx(),
    device(),
    backend("vmx"),
    kvm(),
  ];
}

const MARK: Record<State, string> = { ok: "ok     ", missing: "MISSING", note: "-      " };

export function registerDoctor(cli: CAC): void {
  cli
    .command("doctor", "Tell what this machine has for hvi, what is missing, and how to get it")
    .example("  hvi doctor")
    .action(() => {
      const findings = examine();
      for (const f of findings) process.stdout.write(`${MARK[f.state]}  ${f.what}: ${f.detail}\n`);
      const bad = findings.filter((f) => f.state === "missing").length;
      process.stdout.write(
        bad === 0 ? "hvi can run here.\n" : `hvi cannot run here yet: ${bad} missing.\n`,
      );
      return bad === 0 ? EXIT_OK : EXIT_FAILURE;
    });
}
