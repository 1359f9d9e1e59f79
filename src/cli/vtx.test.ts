// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { BackendError, type VmInfo } from "../bridge/index.ts";
import { type VtxFacts, type VtxState, vtxFinding } from "./vtx.ts";

const CPU =
  "vendor_id\t: GenuineIntel\nflags\t\t: fpu vmx ssse3\nvmx flags\t: vnmi ept vpid unrestricted_guest\n";
const INFO: VmInfo = {
  backend: "vmx",
  abiVersion: 1,
  caps: 0,
  maxVcpus: 32,
  maxViews: 64,
  maxSparePages: 1,
  xsaveSize: 832,
  xcr0Mask: 7,
  maxGfn: 1,
  tscKhz: 100_000,
};

function facts(over: Partial<VtxFacts>): VtxFacts {
  return {
    cpuinfo: CPU,
    kernelLog: [],
    modules: "",
    kvmAtLoad: false,
    device: "absent",
    open: () => INFO,
    ...over,
  };
}
function failing(message: string): Partial<VtxFacts> {
  return {
    device: "present",
    open() {
      throw new BackendError(message, "a hint");
    },
  };
}

const CASES: [VtxState, Partial<VtxFacts>][] = [
  ["ready", { device: "present" }],
  ["no-vtx", { cpuinfo: "vendor_id : GenuineIntel\nflags : fpu\n" }],
  ["not-intel", { cpuinfo: "vendor_id : AuthenticAMD\nflags : fpu svm\n" }],
  ["hidden", { cpuinfo: "vendor_id : GenuineIntel\nflags : fpu hypervisor\n" }],
  [
    "locked",
    {
      cpuinfo: "vendor_id : GenuineIntel\nflags : fpu\n",
      kernelLog: ["x86/cpu: VMX (outside TXT) disabled by BIOS"],
    },
  ],
  ["no-ept", { cpuinfo: "vendor_id : GenuineIntel\nflags : vmx\nvmx flags : vnmi vpid\n" }],
  ["module-not-loaded", {}],
  ["module-not-loaded", { kernelLog: ["hvi: ABI 1, capabilities 0xd63, 40 guest-physical bits"] }],
  [
    "module-not-loaded",
    { modules: "kvm_intel 380928 0 - Live 0x0\nkvm 1146880 1 kvm_intel, Live 0x0\n" },
  ],
  ["kvm-holds-vmx", { modules: "kvm_intel 380928 4 - Live 0x0\n" }],
  [
    "kvm-holds-vmx",
    {
      modules: "kvm_intel 380928 0 - Live 0x0\n",
      kernelLog: ["hvi: CPU 0 is in VMX operation already: another hypervisor holds VT-x"],
    },
  ],
  ["kvm-holds-vmx", { modules: "kvm_intel 380928 0 - Live 0x0\n", kvmAtLoad: true }],
  // KVM has gone since.
  [
    "module-refused",
    {
      kernelLog: ["hvi: CPU 0 is in VMX operation already: another hypervisor holds VT-x; stop it"],
    },
  ],
  ["locked", { kernelLog: ["hvi: VT-x is disabled and locked by the firmware of CPU 1; switch"] }],
  [
    "module-not-loaded",
    {
      kernelLog: [
        "hvi: loading out-of-tree module taints kernel.",
        "hvi: module verification failed: signature and/or required key missing - tainting kernel",
      ],
    },
  ],
  ["other-kernel", { kernelLog: ["hvi: version magic '6.1.0-1' should be '6.1.0-2'"] }],
  ["module-refused", { kernelLog: ["hvi: this CPU has no monitor trap flag"] }],
  ["not-root", { device: "forbidden" }],
  ["not-root", failing("/dev/hvi needs root")],
  ["abi-differs", failing("the vmx backend speaks ABI version 2, this hvi speaks version 1")],
  ["kvm-holds-vmx", failing("/dev/hvi is in use")],
  ["module-not-loaded", failing("/dev/hvi has no driver behind it")],
  ["broken", failing("/dev/hvi cannot be opened: EIO")],
];

for (const [i, [state, over]] of CASES.entries()) {
  test(`VT-x is told as ${state} (${i})`, () => {
    const finding = vtxFinding(facts(over));
    expect(finding.state).toBe(state);
    expect(finding.what).not.toBe("");
    if (state !== "ready") expect(finding.hint).not.toBe("");
  });
}
