// SPDX-License-Identifier: MIT
/** A stock kernel in memory as the loader leaves it, seen through the mapping that it makes first. */
import { kernel as fixture, type Series } from "../../../fixtures/kernels/kernels.ts";
import { GuestRam, type Vcpu } from "../../bridge/index.ts";
import { loadImage } from "../../machine/load/index.ts";
import { PhysicalMemory } from "../../memory/index.ts";
import type { GuestCpu } from "../cpu.ts";

const MEMORY = 192 * 1024 * 1024;
/** Where the loader puts the kernel, and its text with no slide. */
export const LOADED = 0x100_0000;
const TABLES = MEMORY - 0x1_0000;

/** The mapping that startup_64 makes: the whole image, 2 MiB pages. */
function mapImage(memory: PhysicalMemory, slide: number): void {
  memory.writeU64(TABLES + 511 * 8, (TABLES + 0x1000) | 0x23, 0);
  memory.writeU64(TABLES + 0x1000 + 510 * 8, (TABLES + 0x2000) | 0x23, 0);
  const first = (LOADED + slide) / 0x20_0000;
  for (let i = 0; i < 40; i++) {
    memory.writeU64(TABLES + 0x2000 + (first + i) * 8, (LOADED + i * 0x20_0000) | 0xe3, 0);
  }
}

export interface LoadedKernel {
  memory: PhysicalMemory;
  cpu: GuestCpu;
  /** Bytes by which the loader moved the kernel. */
  slide: number;
  /** As `uname -r` has it. */
  release: string;
}

/** Debian's kernel of a series with `append` as its command line. */
export async function loadKernel(series: Series, append: string): Promise<LoadedKernel> {
  const files = await fixture(series);
  const image = await loadImage({
    kernel: new Uint8Array(await Bun.file(files.vmlinuz).arrayBuffer()),
    kernelName: files.vmlinuz,
    initrd: undefined,
    initrdName: "",
    append,
    memory: MEMORY,
    cpus: 1,
    random: () => 0.4,
  });
  const ram = GuestRam.allocate(MEMORY);
  // The entry registers are not looked at.
  image.place(ram, new Proxy({}, { get: () => () => undefined, set: () => true }) as Vcpu);
  const slide = Number(/slide (0x[0-9a-f]+)/.exec(image.notes.join("\n"))?.[1] ?? 0);
  const memory = new PhysicalMemory(ram);
  mapImage(memory, slide);
  const cpu: GuestCpu = {
    rip: 0,
    cpl: 0,
    cr0: 0x8005_0033,
    cr3: TABLES,
    cr4: 0x20,
    efer: 0xd01,
    lstar: 0,
    kernelGsBase: 0,
    idtBase: 0,
    gpr: () => 0,
    segBase: () => 0,
  };
  return { memory, cpu, slide, release: files.release };
}
