// SPDX-License-Identifier: MIT
import { closeSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import {
  EXIT_REASON,
  HVI_STATE_ALL,
  VCPU_GPR,
  VCPU_PENDING_DEBUG,
  type Vcpu,
} from "../../bridge/index.ts";
import { InputError, OutputError } from "../../errors.ts";
import { VERSION } from "../../version.ts";
import type { Machine } from "../machine.ts";
import { encodeFront, RAM_CHUNK, type SnapshotMeta, type VcpuState } from "./format.ts";

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");

/**
 * Writes a snapshot of a machine that stands between two exits (see
 * Machine.settle). The file appears under its name only when it is whole.
 * Throws InputError when it cannot be created, OutputError when it cannot be written.
 */
export function saveSnapshot(machine: Machine, path: string): void {
  const temporary = `${path}.${process.pid}.tmp`;
  let fd: number;
  try {
    fd = openSync(temporary, "wx");
  } catch (error) {
    throw new InputError(
      `--snapshot ${path}: ${(error as Error).message}`,
      "give a path that can be written",
    );
  }
  try {
    write(machine, fd);
    closeSync(fd);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new OutputError(
      `--snapshot ${path}: ${(error as Error).message}`,
      "make room, or give another path",
    );
  }
}

function write(machine: Machine, fd: number): void {
  const { ram } = machine.vm;
  // Hash first: the checksums stand in front of RAM.
  const hashes: bigint[] = [];
  const chunks: Uint8Array[] = [];
  for (const piece of ram.bytes)
    for (let at = 0; at < piece.length; at += RAM_CHUNK)
      chunks.push(piece.subarray(at, Math.min(piece.length, at + RAM_CHUNK)));
  for (const chunk of chunks) hashes.push(Bun.hash.xxHash64(chunk));
  const front = encodeFront(metadata(machine), hashes);
  writeSync(fd, front, 0, front.length, 0);
  const zero = Bun.hash.xxHash64(new Uint8Array(RAM_CHUNK));
  chunks.forEach((chunk, i) => {
    // Memory never touched becomes a hole of the file.
    if (chunk.length === RAM_CHUNK && hashes[i] === zero) return;
    let done = 0;
    while (done < chunk.length)
      done += writeSync(fd, chunk, done, chunk.length - done, front.length + i * RAM_CHUNK + done);
  });
  ftruncateSync(fd, front.length + ram.size);
}

function metadata(machine: Machine): SnapshotMeta {
  const { vm } = machine;
  const msrs = vm.listMsrs();
  return {
    created: new Date().toISOString(),
    hvi: VERSION,
    backend: vm.info.backend,
    tscKhz: vm.info.tscKhz,
    memory: vm.ram.size,
    cpus: vm.vcpus.length,
    now: machine.clock.now,
    cpuid: machine.cpuid,
    vcpus: vm.vcpus.map((vcpu) => vcpuState(machine, vcpu, msrs)),
    devices: machine.platform.save(),
  };
}

function vcpuState(machine: Machine, vcpu: Vcpu, msrs: number[]): VcpuState {
  const { vm } = machine;
  vm.fetch(vcpu.index, HVI_STATE_ALL);
  const values = vm.getMsrs(vcpu.index, msrs);
  return {
    page: base64(vcpu.page.subarray(VCPU_GPR, EXIT_REASON)),
    xsave: base64(vm.getXsave(vcpu.index)),
    msrs: msrs.map((index, i) => [index, values[i].toString(16)]),
    mpState: vcpu.mpState,
    interruptibility: vcpu.interruptibility,
    pendingDebug: vcpu.u32[VCPU_PENDING_DEBUG >>> 2],
    ...machine.vcpuExtra(vcpu.index),
  };
}
