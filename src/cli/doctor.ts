// SPDX-License-Identifier: MIT
import { existsSync } from "node:fs";
import { freemem, release } from "node:os";
import type { CAC } from "cac";
import { assetPath, BackendError, openVm } from "../bridge/index.ts";
import { EXIT_FAILURE, EXIT_OK } from "./output.ts";
import { type VtxFinding, vtxFacts, vtxFinding } from "./vtx.ts";

type State = "ok" | "missing" | "note";

interface Finding {
  state: State;
  what: string;
  /** What it is, or what to do about it. */
  detail: string;
}

function soft(): Finding {
  const what = "software vCPU";
  try {
    const vm = openVm({ backend: "soft" });
    const { info } = vm;
    vm.close();
    const detail = `ABI ${info.abiVersion}, up to ${info.maxVcpus} vCPUs, guest TSC ${info.tscKhz / 1000} MHz`;
    return { state: "ok", what, detail };
  } catch (error) {
    if (!(error instanceof BackendError)) throw error;
    return { state: "missing", what, detail: `${error.message} -> ${error.hint}` };
  }
}

function vtx(found: VtxFinding): Finding {
  return {
    state: found.state === "ready" ? "ok" : "note",
    what: "VT-x backend",
    detail: found.hint === "" ? found.what : `${found.what} -> ${found.hint}`,
  };
}

function headers(): Finding {
  const path = `/lib/modules/${release()}/build`;
  const what = "kernel headers (to build hvi.ko)";
  return existsSync(path)
    ? { state: "ok", what, detail: path }
    : {
        state: "note",
        what,
        detail: `none for ${release()} -> sudo apt-get install linux-headers-${release()}`,
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
export function examine(vt: VtxFinding): Finding[] {
  const findings = [
    asset("libhvi-soft.so", "software vCPU library"),
    asset("zydis.wasm", "instruction decoder"),
    soft(),
    memory(),
    vtx(vt),
  ];
  // Headers are for building the module; who has it loaded needs none.
  return vt.state === "ready" ? findings : [...findings, headers()];
}

const MARK: Record<State, string> = { ok: "ok     ", missing: "MISSING", note: "-      " };

export function registerDoctor(cli: CAC): void {
  cli
    .command("doctor", "Tell what this machine has for hvi, what is missing, and how to get it")
    .option("--json", "as one JSON object, for programs")
    .example("  hvi doctor")
    .action((flags: { json?: boolean }) => {
      const vt = vtxFinding(vtxFacts());
      const findings = examine(vt);
      const usable = findings.every((f) => f.state !== "missing");
      if (flags.json === true) {
        process.stdout.write(`${JSON.stringify({ usable, vtx: vt, findings }, null, 2)}\n`);
        return usable ? EXIT_OK : EXIT_FAILURE;
      }
      for (const f of findings) process.stdout.write(`${MARK[f.state]}  ${f.what}: ${f.detail}\n`);
      const bad = findings.filter((f) => f.state === "missing").length;
      process.stdout.write(
        usable ? "hvi can run here.\n" : `hvi cannot run here yet: ${bad} missing.\n`,
      );
      return usable ? EXIT_OK : EXIT_FAILURE;
    });
}
