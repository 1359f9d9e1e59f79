// SPDX-License-Identifier: MIT
/** One virtual machine of a case, with its memory and registers at hand. */
import { openVm, type Vcpu, type Vm } from "../../src/bridge/index.ts";
import { Cpu, type RegName } from "./cpu.ts";
import type { Image, ImageSource } from "./guests.ts";
import {
  buildTables,
  DATA_OF,
  HIGH,
  HIGH_SIZE,
  IMAGE,
  type Mode,
  RAM_SIZE,
  WINDOW,
} from "./layout.ts";

export type BackendName = "soft" | "vmx";

export class Bench {
  readonly vm: Vm;
  readonly cpus: Cpu[] = [];
  readonly image: string;
  readonly avx: boolean;
  readonly avx2: boolean;
  private readonly guest: Image;
  private readonly view: DataView;
  private readonly ram: Uint8Array;

  constructor(
    readonly backend: BackendName,
    private readonly images: ImageSource,
    readonly mode: Mode,
    vcpus: number,
    high = false,
  ) {
    this.image = IMAGE[mode];
    this.guest = images(this.image);
    this.vm = openVm({ backend });
    this.vm.create({ vcpus });
    this.vm.addMemory({ gpa: 0, size: RAM_SIZE });
    if (high) this.vm.addMemory({ gpa: HIGH, size: HIGH_SIZE });
    this.vm.mapMemory();
    const ram = this.vm.ram.view(0, RAM_SIZE);
    if (!ram) throw new Error("the guest's RAM is not one view");
    this.ram = ram;
    this.view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength);
    this.ram.set(this.guest.bytes, this.guest.base);
    buildTables(this);
    const cpuid = this.vm.supportedCpuid();
    this.vm.setCpuid(cpuid);
    this.avx = cpuid.some((e) => e.leaf === 1 && (e.ecx & (1 << 28)) !== 0);
    this.avx2 = this.avx && cpuid.some((e) => e.leaf === 7 && (e.ebx & (1 << 5)) !== 0);
    for (const v of this.vm.vcpus) {
      const cpu = new Cpu(v);
      cpu.init(mode, this.avx);
      this.cpus.push(cpu);
    }
  }

  get cpu(): Cpu {
    return this.cpus[0]!;
  }
  vcpu(i = 0): Vcpu {
    return this.vm.vcpus[i]!;
  }
  symbol(name: string): number {
    const a = this.guest.symbols.get(name);
    if (a === undefined) throw new Error(`the guest ${this.image} has no symbol ${name}`);
    return a;
  }

  /** Linear address of a byte of data page n. */
  d(n: number, offset = 0): bigint {
    return BigInt.asUintN(64, WINDOW[this.mode] + BigInt(n * 0x1000 + offset));
  }
  /** Physical address of a byte of data page n. */
  p(n: number, offset = 0): number {
    return DATA_OF[this.mode] + n * 0x1000 + offset;
  }
  gfn(n: number): number {
    return this.p(n) >>> 12;
  }
  /** Linear address at which the guest uses a physical one: the window for data, else the same. */
  gva(gpa: number): bigint {
    const first = DATA_OF[this.mode];
    return gpa >= first && gpa < first + 0x200000 ? this.d(0) + BigInt(gpa - first) : BigInt(gpa);
  }

  /** The inverse of gva(). */
  phys(gva: bigint): number {
    const d = gva - this.d(0);
    return d >= 0n && d < 0x200000n ? DATA_OF[this.mode] + Number(d) : Number(gva);
  }

  put64(gpa: number, v: bigint): void {
    this.view.setBigUint64(gpa, BigInt.asUintN(64, v), true);
  }
  putQwords(gpa: number, values: readonly (number | bigint)[]): void {
    for (const [i, v] of values.entries()) this.put64(gpa + 8 * i, BigInt(v));
  }
  put32(gpa: number, v: number): void {
    this.view.setUint32(gpa, v, true);
  }
  get64(gpa: number): bigint {
    return this.view.getBigUint64(gpa, true);
  }
  get32(gpa: number): number {
    return this.view.getUint32(gpa, true);
  }
  /** Writes bytes given as hex digits. */
  poke(gpa: number, bytes: string | Uint8Array): void {
    this.ram.set(typeof bytes === "string" ? fromHex(bytes) : bytes, gpa);
  }
  peek(gpa: number, length: number): string {
    return toHex(this.ram.subarray(gpa, gpa + length));
  }

  /** Rights of the page of a physical address in a view. */
  rights(gpa: number, rights: number, view = 0): void {
    this.vm.setRights(view, gpa >>> 12, 1, rights);
  }
  /** RIP, with the code that a fetch of data page n runs given as hex. */
  code(n: number, offset: number, bytes: string, cpu = 0): void {
    this.poke(this.p(n, offset), bytes);
    this.cpus[cpu]!.set("rip", this.d(n, offset));
  }
  reg(name: RegName, cpu = 0): bigint {
    return this.cpus[cpu]!.get(name);
  }
  /** Another machine like this one at its start. */
  sibling(): Bench {
    return new Bench(this.backend, this.images, this.mode, this.cpus.length);
  }
  close(): void {
    this.vm.close();
  }
}

export function fromHex(s: string): Uint8Array {
  const digits = s.replace(/\s+/g, "");
  const out = new Uint8Array(digits.length / 2);
  for (let i = 0; i < out.length; i++) out[i] = Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16);
  return out;
}
export function toHex(b: Uint8Array): string {
  return Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
}
/** n bytes that count up from a first value, as hex. */
export function pattern(n: number, first = 0x11): string {
  return toHex(Uint8Array.from({ length: n }, (_, i) => (first + i) & 0xff));
}
/** A little-endian value as hex. */
export function le(v: number | bigint, size: number): string {
  const out = new Uint8Array(size);
  for (let i = 0, x = BigInt.asUintN(8 * size, BigInt(v)); i < size; i++, x >>= 8n)
    out[i] = Number(x & 0xffn);
  return toHex(out);
}
