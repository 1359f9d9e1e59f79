// SPDX-License-Identifier: MIT
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import {
  type CpuidEntry,
  EXIT_REASON,
  GuestRam,
  HVI_ABI_VERSION,
  HVI_STATE_ALL,
  HVI_VCPU_SIZE,
  type MemorySlot,
  RAM_CHUNK as RAM_PIECE,
  VCPU_GPR,
  VCPU_VALID,
  Vcpu,
} from "../../bridge/index.ts";
import { InputError } from "../../errors.ts";
import type { DeviceState } from "../device.ts";
import { ramRanges } from "../layout.ts";

/*
 * A snapshot file:
 *
 *   0       header, 64 bytes, little-endian (below)
 *   64      metadata: JSON, UTF-8 (SnapshotMeta)
 *   ...     xxHash64 of each RAM_CHUNK bytes of RAM, 8 bytes each
 *   page    RAM: the slots one behind the other, page aligned, to the end
 *
 * Restoring maps RAM from the file and reads none of it. Header and metadata
 * have checksums that are looked at; those of RAM are for verifyRam().
 */
export const SNAPSHOT_MAGIC = "HVISNAP1";
export const SNAPSHOT_FORMAT = 1;
export const HEADER_SIZE = 64;
/** Bytes of RAM under one checksum. */
export const RAM_CHUNK = 1 << 20;
const PAGE = 4096;
const MAX_META = 64 << 20;

const AT_FORMAT = 8;
const AT_ABI = 12;
const AT_META_LENGTH = 16;
const AT_CHUNKS = 20;
const AT_RAM_OFFSET = 24;
const AT_RAM_SIZE = 32;
const AT_META_HASH = 40;
const AT_HEADER_HASH = 48;

export interface VcpuState {
  /** The state part of the vCPU page, base64. */
  page: string;
  /** XSAVE area in standard format, base64. */
  xsave: string;
  /** MSRs: [index, value in hexadecimal]. */
  msrs: [number, string][];
  mpState: number;
  interruptibility: number;
  pendingDebug: number;
  halted: boolean;
  tscOffset: number;
}

export interface SnapshotMeta {
  /** When it was taken, ISO 8601. */
  created: string;
  /** Version of hvi that took it. */
  hvi: string;
  backend: string;
  tscKhz: number;
  /** Bytes of guest RAM. */
  memory: number;
  cpus: number;
  /** Machine time, guest TSC ticks. */
  now: number;
  cpuid: readonly CpuidEntry[];
  vcpus: VcpuState[];
  devices: DeviceState;
}

/** The layout of a snapshot's file for this much metadata. */
export function snapshotLayout(
  metaLength: number,
  ramSize: number,
): { chunks: number; ramOffset: number } {
  const chunks = Math.ceil(ramSize / RAM_CHUNK);
  const ramOffset = Math.ceil((HEADER_SIZE + metaLength + 8 * chunks) / PAGE) * PAGE;
  return { chunks, ramOffset };
}

/** Header, metadata and checksums as they stand in front of RAM, padded to its offset. */
export function encodeFront(meta: SnapshotMeta, hashes: readonly bigint[]): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(meta));
  const { chunks, ramOffset } = snapshotLayout(json.length, meta.memory);
  const bytes = new Uint8Array(ramOffset);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(SNAPSHOT_MAGIC));
  view.setUint32(AT_FORMAT, SNAPSHOT_FORMAT, true);
  view.setUint32(AT_ABI, HVI_ABI_VERSION, true);
  view.setUint32(AT_META_LENGTH, json.length, true);
  view.setUint32(AT_CHUNKS, chunks, true);
  view.setBigUint64(AT_RAM_OFFSET, BigInt(ramOffset), true);
  view.setBigUint64(AT_RAM_SIZE, BigInt(meta.memory), true);
  bytes.set(json, HEADER_SIZE);
  hashes.forEach((hash, i) => {
    view.setBigUint64(HEADER_SIZE + json.length + 8 * i, hash, true);
  });
  view.setBigUint64(
    AT_META_HASH,
    Bun.hash.xxHash64(bytes.subarray(HEADER_SIZE, HEADER_SIZE + json.length + 8 * chunks)),
    true,
  );
  view.setBigUint64(AT_HEADER_HASH, Bun.hash.xxHash64(bytes.subarray(0, AT_HEADER_HASH)), true);
  return bytes;
}

/** A snapshot that was found whole, open for reading. */
export class OpenSnapshot {
  #ram: GuestRam | undefined;
  #vcpus: Vcpu[] | undefined;

  constructor(
    readonly path: string,
    readonly fd: number,
    readonly meta: SnapshotMeta,
    readonly ramOffset: number,
    /** xxHash64 of each chunk of RAM. */
    readonly hashes: readonly bigint[],
  ) {}

  /** Guest RAM, mapped from the file; what is written to it stays here. */
  get ram(): GuestRam {
    if (this.#ram === undefined) {
      const { memory } = this.meta;
      const pieces: ArrayBuffer[] = [];
      for (let at = 0; at < memory; at += RAM_PIECE) {
        const size = Math.min(RAM_PIECE, memory - at);
        pieces.push(
          Bun.mmap(this.path, { shared: false, offset: this.ramOffset + at, size })
            .buffer as ArrayBuffer,
        );
      }
      const slots: MemorySlot[] = [];
      let offset = 0;
      for (const range of ramRanges(memory)) {
        slots.push({ ...range, offset });
        offset += range.size;
      }
      this.#ram = new GuestRam(slots, pieces);
    }
    return this.#ram;
  }

  /** The vCPUs' registers. Nothing runs behind them. */
  get vcpus(): readonly Vcpu[] {
    this.#vcpus ??= this.meta.vcpus.map((state, i) => {
      const page = new Uint8Array(HVI_VCPU_SIZE);
      page.set(Buffer.from(state.page, "base64").subarray(0, EXIT_REASON - VCPU_GPR), VCPU_GPR);
      const vcpu = new Vcpu(i, page, () => {});
      vcpu.u32[VCPU_VALID >>> 2] = HVI_STATE_ALL;
      vcpu.mpState = state.mpState;
      return vcpu;
    });
    return this.#vcpus;
  }

  close(): void {
    closeSync(this.fd);
  }
}

function readAt(fd: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const n = readSync(fd, bytes, done, length - done, offset + done);
    if (n === 0) break;
    done += n;
  }
  return bytes.subarray(0, done);
}

/**
 * Opens a snapshot and checks everything but the content of RAM: magic,
 * versions, checksums, length. Throws InputError.
 */
export function openSnapshot(path: string): OpenSnapshot {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new InputError(
      `${path}: ${missing ? "no such file" : "cannot be opened"}`,
      "check the path",
    );
  }
  try {
    return check(fd, path);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function check(fd: number, path: string): OpenSnapshot {
  const bad = (why: string, hint = "take the snapshot again") =>
    new InputError(`${path}: ${why}`, hint);
  const stat = fstatSync(fd);
  if (!stat.isFile()) throw bad("not a file", "give a file made by hvi run --snapshot");
  const header = readAt(fd, 0, HEADER_SIZE);
  if (
    header.length < HEADER_SIZE ||
    new TextDecoder("latin1").decode(header.subarray(0, 8)) !== SNAPSHOT_MAGIC
  )
    throw bad("not a snapshot of hvi", "give a file made by hvi run --snapshot");
  const view = new DataView(header.buffer);
  const format = view.getUint32(AT_FORMAT, true);
  const abi = view.getUint32(AT_ABI, true);
  // Versions first: another version may have its checksums elsewhere.
  if (format !== SNAPSHOT_FORMAT)
    throw bad(
      `snapshot format ${format}, this hvi reads format ${SNAPSHOT_FORMAT}`,
      "restore it with the hvi that took it",
    );
  if (abi !== HVI_ABI_VERSION)
    throw bad(
      `a snapshot of ABI version ${abi}, this hvi has version ${HVI_ABI_VERSION}`,
      "restore it with the hvi that took it",
    );
  if (
    Bun.hash.xxHash64(header.subarray(0, AT_HEADER_HASH)) !==
    view.getBigUint64(AT_HEADER_HASH, true)
  )
    throw bad("corrupt snapshot: its header does not match its checksum");
  const metaLength = view.getUint32(AT_META_LENGTH, true);
  const chunks = view.getUint32(AT_CHUNKS, true);
  const ramOffset = Number(view.getBigUint64(AT_RAM_OFFSET, true));
  const ramSize = Number(view.getBigUint64(AT_RAM_SIZE, true));
  if (metaLength > MAX_META || snapshotLayout(metaLength, ramSize).ramOffset !== ramOffset)
    throw bad("corrupt snapshot: its header contradicts itself");
  if (stat.size !== ramOffset + ramSize)
    throw bad(
      `truncated snapshot: ${stat.size} bytes of ${ramOffset + ramSize}`,
      "copy it again, or take it again",
    );
  const front = readAt(fd, HEADER_SIZE, metaLength + 8 * chunks);
  if (Bun.hash.xxHash64(front) !== view.getBigUint64(AT_META_HASH, true))
    throw bad("corrupt snapshot: its metadata does not match its checksum");
  let meta: SnapshotMeta;
  try {
    meta = JSON.parse(new TextDecoder().decode(front.subarray(0, metaLength))) as SnapshotMeta;
  } catch {
    throw bad("corrupt snapshot: its metadata cannot be read");
  }
  if (meta.memory !== ramSize || meta.vcpus?.length !== meta.cpus)
    throw bad("corrupt snapshot: its metadata contradicts itself");
  const table = new DataView(front.buffer, front.byteOffset + metaLength);
  const hashes = Array.from({ length: chunks }, (_, i) => table.getBigUint64(8 * i, true));
  return new OpenSnapshot(path, fd, meta, ramOffset, hashes);
}

/** Compares RAM with its checksums; the guest RAM offset of the first chunk that differs, or -1. */
export function verifyRam(snapshot: OpenSnapshot): number {
  for (let i = 0; i < snapshot.hashes.length; i++) {
    const at = i * RAM_CHUNK;
    const chunk = readAt(
      snapshot.fd,
      snapshot.ramOffset + at,
      Math.min(RAM_CHUNK, snapshot.meta.memory - at),
    );
    if (Bun.hash.xxHash64(chunk) !== snapshot.hashes[i]) return at;
  }
  return -1;
}
