// SPDX-License-Identifier: MIT
import * as abi from "./abi.ts";
import { type Backend, Block } from "./backend.ts";
import { EPT_RANGES_MAX, type EptRanges } from "./ept-ranges.ts";
import { BackendError, HviError } from "./error.ts";
import { GuestRam, type MemorySlot, RAM_CHUNK } from "./ram.ts";
import { Vcpu } from "./vcpu.ts";

const EINTR = 4;
const TWO32 = 4294967296;

/** CPUID leaf whose EAX has MAXPHYADDR in bits 7..0. */
const CPUID_ADDRESS_SIZES = 0x80000008;
const MAX_PHYSICAL_BITS = 52;

/** What a backend can do. */
export interface VmInfo {
  /** "soft" or "vmx". */
  readonly backend: string;
  readonly abiVersion: number;
  /** HVI_CAP_* */
  readonly caps: number;
  readonly maxVcpus: number;
  readonly maxViews: number;
  readonly maxSparePages: number;
  /** Bytes of the XSAVE area with all of xcr0Mask. */
  readonly xsaveSize: number;
  /** XCR0 bits a guest may set. */
  readonly xcr0Mask: number;
  /** Highest GFN that EPT can map. */
  readonly maxGfn: number;
  /** Rate of the guest's TSC. With HVI_CAP_ICOUNT a tick is an instruction. */
  readonly tscKhz: number;
}

/** One row of the CPUID table. */
export interface CpuidEntry {
  leaf: number;
  index: number;
  /** HVI_CPUID_INDEXED or 0. */
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

export interface MemoryOptions {
  /** Page aligned. */
  gpa: number;
  /** Bytes, page aligned, not 0. */
  size: number;
  /** File whose content it has, copied on write; zeros without. */
  fd?: number;
  /** Page aligned. */
  fdOffset?: number;
}

/**
 * One virtual machine. Methods throw HviError with the errno when the backend
 * refuses; nothing has changed then.
 */
export class Vm {
  readonly info: VmInfo;
  private readonly slots: MemorySlot[] = [];
  private mapped: GuestRam | undefined;
  private readonly vcpuList: Vcpu[] = [];
  private vcpuCount = 0;
  private readonly sparePages: Uint8Array[] = [];
  /** Masks of the intercepts set, by kind * 2^32 + index. */
  private readonly masks = new Map<number, number>();
  private addressBits = MAX_PHYSICAL_BITS;
  private open = true;

  // Argument structures, made once.
  private readonly runBlock = new Block(abi.SIZEOF_RUN);
  private readonly opBlock = new Block(abi.SIZEOF_VCPU_OP);
  private readonly interceptBlock = new Block(abi.SIZEOF_INTERCEPT);
  private readonly eptBlock = new Block(abi.SIZEOF_EPT);
  private readonly rangeBlock = new Block(abi.SIZEOF_EPT_RANGE);
  private readonly viewBlock = new Block(abi.SIZEOF_VIEW);
  private readonly remapBlock = new Block(abi.SIZEOF_REMAP);
  private readonly xsaveBlock = new Block(abi.SIZEOF_XSAVE);
  private xsaveData: Block | undefined;
  private xsaveBytes: Uint8Array = new Uint8Array(0);
  private readonly fetchBound = (vcpu: number, groups: number): void => {
    this.vcpuOp(abi.HVI_FETCH, vcpu, groups);
  };

  /** Asks the backend what it is. Throws BackendError when its ABI version is another. */
  constructor(private readonly backend: Backend) {
    const b = new Block(abi.SIZEOF_INFO);
    b.set32(abi.INFO_SIZE, abi.SIZEOF_INFO);
    const result = backend.ioctl(abi.HVI_GET_INFO, b);
    const version = b.get32(abi.INFO_ABI_VERSION);
    if (result < 0 || version !== abi.HVI_ABI_VERSION) {
      backend.close();
      const found = result < 0 && version === 0 ? "an unknown version" : `version ${version}`;
      throw new BackendError(
        `the ${backend.name} backend speaks ABI ${found}, this hvi speaks version ${abi.HVI_ABI_VERSION}`,
        backend.name === "vmx"
          ? "load the hvi.ko of this release: sudo rmmod hvi && sudo insmod hvi.ko"
          : "rebuild it: make -C hv/soft clean all",
      );
    }
    const name = b.bytes.subarray(abi.INFO_BACKEND, abi.INFO_BACKEND + 16);
    const end = name.indexOf(0);
    this.info = {
      backend: new TextDecoder().decode(end < 0 ? name : name.subarray(0, end)),
      abiVersion: version,
      caps: b.get64(abi.INFO_CAPS),
      maxVcpus: b.get32(abi.INFO_MAX_VCPUS),
      maxViews: b.get32(abi.INFO_MAX_VIEWS),
      maxSparePages: b.get32(abi.INFO_MAX_SPARE_PAGES),
      xsaveSize: b.get32(abi.INFO_XSAVE_SIZE),
      xcr0Mask: b.get64(abi.INFO_XCR0_MASK),
      maxGfn: b.get64(abi.INFO_MAX_GFN),
      tscKhz: b.get32(abi.INFO_TSC_KHZ),
    };
  }

  /** True when the backend has a capability (HVI_CAP_*). */
  has(cap: number): boolean {
    return (this.info.caps & cap) !== 0;
  }

  private ioctl(request: number, argument: Block): void {
    this.check();
    const result = this.backend.ioctl(request, argument);
    if (result < 0) this.fail(request, -result);
  }
  private check(): void {
    if (!this.open) throw new Error("the virtual machine is closed");
  }
  private fail(request: number, errno: number): never {
    throw new HviError(abi.hviIoctlNames[request] ?? `ioctl ${request}`, errno);
  }
  private vcpuOp(request: number, vcpu: number, groups: number): void {
    this.opBlock.set32(abi.VCPU_OP_VCPU, vcpu);
    this.opBlock.set32(abi.VCPU_OP_GROUPS, groups);
    this.ioctl(request, this.opBlock);
  }

  // ---- building ---------------------------------------------------------------

  create(o: { vcpus: number }): void {
    const b = new Block(abi.SIZEOF_CREATE);
    b.set32(abi.CREATE_VCPUS, o.vcpus);
    this.ioctl(abi.HVI_CREATE, b);
    this.vcpuCount = o.vcpus;
  }

  /** Adds a range of RAM. All ranges come before mapMemory(). */
  addMemory(o: MemoryOptions): void {
    if (this.mapped) throw new Error("addMemory after mapMemory");
    const b = new Block(abi.SIZEOF_MEMORY);
    b.set64(abi.MEMORY_GPA, o.gpa);
    b.set64(abi.MEMORY_SIZE, o.size);
    b.set32(abi.MEMORY_FD, o.fd ?? -1);
    b.set64(abi.MEMORY_FD_OFFSET, o.fdOffset ?? 0);
    this.ioctl(abi.HVI_ADD_MEMORY, b);
    this.slots.push({ gpa: o.gpa, size: o.size, offset: b.get64(abi.MEMORY_RAM_OFFSET) });
  }

  /** Maps RAM and the vCPU pages, once, after the last addMemory(). */
  mapMemory(): void {
    if (this.mapped) throw new Error("mapMemory twice");
    const size = this.slots.reduce((n, s) => n + s.size, 0);
    const ram = this.map(abi.HVI_MMAP_RAM, size, RAM_CHUNK);
    // One by one: the pages need not be neighbours in the backend.
    const pages = Array.from({ length: this.vcpuCount }, (_, i) =>
      this.map(abi.HVI_MMAP_VCPU + i * abi.HVI_VCPU_SIZE, abi.HVI_VCPU_SIZE, abi.HVI_VCPU_SIZE),
    ).flat();
    this.mapped = new GuestRam(this.slots, ram);
    pages.forEach((page, i) => {
      this.vcpuList.push(new Vcpu(i, new Uint8Array(page), this.fetchBound));
    });
  }
  private map(offset: number, size: number, chunk: number): ArrayBuffer[] {
    this.check();
    const result = this.backend.map(offset, size, chunk);
    if (typeof result === "number") throw new HviError("mmap", -result);
    return result;
  }

  /** Guest RAM. Throws before mapMemory() and after close(). */
  get ram(): GuestRam {
    if (!this.mapped) {
      throw new Error(
        this.open ? "guest memory is not mapped yet" : "the virtual machine is closed",
      );
    }
    return this.mapped;
  }
  get vcpus(): readonly Vcpu[] {
    return this.vcpuList;
  }

  // ---- running ----------------------------------------------------------------

  /**
   * Runs until some vCPU exits, and returns it. The reply set on the vCPU that
   * exited last is taken. Allocates nothing.
   * @param deadline guest TSC at which to stop with HVI_EXIT_DEADLINE
   */
  run(deadline?: number): Vcpu {
    this.check();
    const b = this.runBlock;
    if (deadline === undefined) {
      b.u32[abi.RUN_FLAGS >>> 2] = 0;
    } else {
      b.set64(abi.RUN_DEADLINE, deadline);
      b.u32[abi.RUN_FLAGS >>> 2] = abi.HVI_RUN_DEADLINE;
    }
    let result = this.backend.ioctl(abi.HVI_RUN, b);
    while (result === -EINTR) result = this.backend.ioctl(abi.HVI_RUN, b);
    if (result < 0) this.fail(abi.HVI_RUN, -result);
    return this.vcpuList[b.u32[abi.RUN_VCPU >>> 2]];
  }

  /** Stops one vCPU, or all. */
  pause(vcpu: number = abi.HVI_ALL_VCPUS): void {
    this.vcpuOp(abi.HVI_PAUSE, vcpu, 0);
  }
  resume(vcpu: number = abi.HVI_ALL_VCPUS): void {
    this.vcpuOp(abi.HVI_RESUME, vcpu, 0);
  }
  /** Makes a running HVI_RUN return with HVI_EXIT_PAUSED. */
  kick(): void {
    this.vcpuOp(abi.HVI_KICK, abi.HVI_ALL_VCPUS, 0);
  }
  /** Puts a vCPU in its state after power-on. */
  reset(vcpu: number): void {
    this.vcpuOp(abi.HVI_RESET, vcpu, 0);
  }
  /** Fills in groups of registers (HVI_STATE_*) of a vCPU. */
  fetch(vcpu: number, groups: number): void {
    this.vcpuOp(abi.HVI_FETCH, vcpu, groups);
  }

  /** Switches an intercept; see enum hvi_intercept_kind for index and mask. */
  intercept(kind: number, index: number, mask: number): void {
    const b = this.interceptBlock;
    b.set32(abi.INTERCEPT_KIND, kind);
    b.set32(abi.INTERCEPT_INDEX, index);
    b.set64(abi.INTERCEPT_MASK, mask);
    this.ioctl(abi.HVI_INTERCEPT, b);
    // Ports are set as ranges that may overlap: no one mask stands for an index.
    if (kind !== abi.HVI_INTERCEPT_IO) this.masks.set(kind * TWO32 + index, mask);
  }
  /**
   * The mask that an intercept was set to last; 0 when it never was. Not of
   * HVI_INTERCEPT_IO, for which it is always 0.
   */
  interceptMask(kind: number, index: number): number {
    return this.masks.get(kind * TWO32 + index) ?? 0;
  }

  // ---- EPT --------------------------------------------------------------------

  private fillRange(view: number, gfn: number, count: number, rights: number): void {
    this.rangeBlock.set64(abi.EPT_RANGE_GFN, gfn);
    this.rangeBlock.set32(abi.EPT_RANGE_COUNT, count);
    this.rangeBlock.set32(abi.EPT_RANGE_RIGHTS, rights);
    this.eptBlock.set32(abi.EPT_VIEW, view);
    this.eptBlock.set32(abi.EPT_COUNT, 1);
    this.eptBlock.attach(abi.EPT_RANGES, this.rangeBlock);
  }
  /** Sets the rights (HVI_R | HVI_W | HVI_X) of `count` GFNs. */
  setRights(view: number, gfn: number, count: number, rights: number): void {
    this.fillRange(view, gfn, count, rights);
    this.ioctl(abi.HVI_EPT_SET, this.eptBlock);
  }
  /** Sets all ranges or, on an error, none. */
  setRightsBatch(view: number, ranges: EptRanges): void {
    if (ranges.length === 0) return;
    if (ranges.length > EPT_RANGES_MAX) throw new RangeError("too many EPT ranges");
    this.eptBlock.set32(abi.EPT_VIEW, view);
    this.eptBlock.set32(abi.EPT_COUNT, ranges.length);
    this.eptBlock.attach(abi.EPT_RANGES, ranges.memory);
    this.ioctl(abi.HVI_EPT_SET, this.eptBlock);
  }
  /** Rights of a GFN; 0 outside RAM. */
  rights(view: number, gfn: number): number {
    this.fillRange(view, gfn, 1, 0);
    this.ioctl(abi.HVI_EPT_GET, this.eptBlock);
    return this.rangeBlock.get32(abi.EPT_RANGE_RIGHTS);
  }
  /** Makes a view that starts as a copy of `from`; returns its number. */
  createView(from: number): number {
    this.viewBlock.set32(abi.VIEW_FROM, from);
    this.ioctl(abi.HVI_VIEW_CREATE, this.viewBlock);
    return this.viewBlock.get32(abi.VIEW_VIEW);
  }
  destroyView(view: number): void {
    this.viewBlock.set32(abi.VIEW_VIEW, view);
    this.ioctl(abi.HVI_VIEW_DESTROY, this.viewBlock);
  }
  /** Lets gfn stand for a spare page in a view; spare -1 undoes it. */
  remap(view: number, gfn: number, spare: number): void {
    this.remapBlock.set32(abi.REMAP_VIEW, view);
    this.remapBlock.set32(abi.REMAP_SPARE, spare === -1 ? abi.HVI_SPARE_NONE : spare);
    this.remapBlock.set64(abi.REMAP_GFN, gfn);
    this.ioctl(abi.HVI_REMAP, this.remapBlock);
  }
  /** Makes `count` zeroed spare pages more; returns the index of the first. */
  addSpare(count: number): number {
    const b = new Block(abi.SIZEOF_SPARE);
    b.set32(abi.SPARE_COUNT, count);
    this.ioctl(abi.HVI_ADD_SPARE, b);
    const first = b.get32(abi.SPARE_FIRST);
    const pages = this.map(
      abi.HVI_MMAP_SPARE + first * abi.HVI_PAGE_SIZE,
      count * abi.HVI_PAGE_SIZE,
      abi.HVI_PAGE_SIZE,
    );
    pages.forEach((page, i) => {
      this.sparePages[first + i] = new Uint8Array(page);
    });
    return first;
  }
  /** The 4096 bytes of a spare page, in place. Throws RangeError for an index never added. */
  spare(index: number): Uint8Array {
    const page = this.sparePages[index];
    if (!page) throw new RangeError(`there is no spare page ${index}`);
    return page;
  }
  /** Write permission of a page's 32 parts of 128 bytes (HVI_CAP_SPP). */
  setSubPage(view: number, gfn: number, mask: number): void {
    const b = new Block(abi.SIZEOF_SPP);
    b.set32(abi.SPP_VIEW, view);
    b.set32(abi.SPP_MASK, mask);
    b.set64(abi.SPP_GFN, gfn);
    this.ioctl(abi.HVI_SPP_SET, b);
  }
  /** #VE and EPTP switching of a vCPU (HVI_CAP_VE, HVI_CAP_EPTP_SWITCH). */
  setVe(vcpu: number, enable: boolean, infoGpa: number, views: readonly number[]): void {
    const list = new Block(4 * views.length);
    for (const [i, v] of views.entries()) list.set32(4 * i, v);
    const b = new Block(abi.SIZEOF_VE);
    b.set32(abi.VE_VCPU, vcpu);
    b.set32(abi.VE_ENABLE, enable ? 1 : 0);
    b.set64(abi.VE_INFO_GPA, infoGpa);
    b.set32(abi.VE_VIEW_COUNT, views.length);
    b.attach(abi.VE_VIEWS, list);
    this.ioctl(abi.HVI_VE_SET, b);
  }
  /** Whether violations of these GFNs become #VE or exits. */
  setVePages(view: number, gfn: number, count: number, convertible: boolean): void {
    const b = new Block(abi.SIZEOF_VE_PAGES);
    b.set32(abi.VE_PAGES_VIEW, view);
    b.set32(abi.VE_PAGES_CONVERTIBLE, convertible ? 1 : 0);
    b.set64(abi.VE_PAGES_GFN, gfn);
    b.set64(abi.VE_PAGES_COUNT, count);
    this.ioctl(abi.HVI_VE_PAGES, b);
  }

  // ---- CPUID, XSAVE, MSRs -------------------------------------------------------

  /** The CPUID table the backend can give a guest. */
  supportedCpuid(): CpuidEntry[] {
    const list = new Block(abi.HVI_MAX_CPUID * abi.SIZEOF_CPUID_ENTRY);
    const b = new Block(abi.SIZEOF_CPUID);
    b.set32(abi.CPUID_COUNT, abi.HVI_MAX_CPUID);
    b.attach(abi.CPUID_ENTRIES, list);
    this.ioctl(abi.HVI_GET_CPUID, b);
    const count = Math.min(b.get32(abi.CPUID_COUNT), abi.HVI_MAX_CPUID);
    return Array.from({ length: count }, (_, i) => {
      const at = i * abi.SIZEOF_CPUID_ENTRY;
      return {
        leaf: list.get32(at + abi.CPUID_ENTRY_LEAF),
        index: list.get32(at + abi.CPUID_ENTRY_INDEX),
        flags: list.get32(at + abi.CPUID_ENTRY_FLAGS),
        eax: list.get32(at + abi.CPUID_ENTRY_EAX),
        ebx: list.get32(at + abi.CPUID_ENTRY_EBX),
        ecx: list.get32(at + abi.CPUID_ENTRY_ECX),
        edx: list.get32(at + abi.CPUID_ENTRY_EDX),
      };
    });
  }
  /** MAXPHYADDR of the guest, by the CPUID table set last; 52 before there is one. */
  get physicalBits(): number {
    return this.addressBits;
  }
  /** Sets the CPUID table of every vCPU. */
  setCpuid(entries: readonly CpuidEntry[]): void {
    const list = new Block(entries.length * abi.SIZEOF_CPUID_ENTRY);
    entries.forEach((e, i) => {
      const at = i * abi.SIZEOF_CPUID_ENTRY;
      list.set32(at + abi.CPUID_ENTRY_LEAF, e.leaf);
      list.set32(at + abi.CPUID_ENTRY_INDEX, e.index);
      list.set32(at + abi.CPUID_ENTRY_FLAGS, e.flags);
      list.set32(at + abi.CPUID_ENTRY_EAX, e.eax);
      list.set32(at + abi.CPUID_ENTRY_EBX, e.ebx);
      list.set32(at + abi.CPUID_ENTRY_ECX, e.ecx);
      list.set32(at + abi.CPUID_ENTRY_EDX, e.edx);
    });
    const b = new Block(abi.SIZEOF_CPUID);
    b.set32(abi.CPUID_COUNT, entries.length);
    b.attach(abi.CPUID_ENTRIES, list);
    this.ioctl(abi.HVI_SET_CPUID, b);
    const sizes = entries.find((e) => e.leaf === CPUID_ADDRESS_SIZES);
    const bits = sizes === undefined ? MAX_PHYSICAL_BITS : sizes.eax & 0xff;
    this.addressBits = Math.min(MAX_PHYSICAL_BITS, Math.max(32, bits));
  }
  /** A copy of the XSAVE area, standard format. */
  getXsave(vcpu: number): Uint8Array {
    return this.xsaveOf(vcpu).slice();
  }
  /** The same in a buffer that the next call overwrites: allocates nothing. */
  xsaveOf(vcpu: number): Uint8Array {
    if (this.xsaveData === undefined) {
      this.xsaveData = new Block(this.info.xsaveSize);
      this.xsaveBytes = this.xsaveData.bytes.subarray(0, this.info.xsaveSize);
      this.xsaveBlock.set32(abi.XSAVE_SIZE, this.info.xsaveSize);
      this.xsaveBlock.attach(abi.XSAVE_DATA, this.xsaveData);
    }
    this.xsaveBlock.set32(abi.XSAVE_VCPU, vcpu);
    this.ioctl(abi.HVI_GET_XSAVE, this.xsaveBlock);
    return this.xsaveBytes;
  }
  setXsave(vcpu: number, bytes: Uint8Array): void {
    const data = new Block(bytes.length);
    data.bytes.set(bytes);
    const b = new Block(abi.SIZEOF_XSAVE);
    b.set32(abi.XSAVE_VCPU, vcpu);
    b.set32(abi.XSAVE_SIZE, bytes.length);
    b.attach(abi.XSAVE_DATA, data);
    this.ioctl(abi.HVI_SET_XSAVE, b);
  }
  /** The MSRs that a snapshot must keep. */
  listMsrs(): number[] {
    const room = 256;
    const list = new Block(room * abi.SIZEOF_MSR_ENTRY);
    const b = this.msrBlock(0, room, list);
    this.ioctl(abi.HVI_LIST_MSRS, b);
    const count = Math.min(b.get32(abi.MSRS_COUNT), room);
    return Array.from({ length: count }, (_, i) =>
      list.get32(i * abi.SIZEOF_MSR_ENTRY + abi.MSR_ENTRY_INDEX),
    );
  }
  private msrBlock(vcpu: number, count: number, list: Block): Block {
    const b = new Block(abi.SIZEOF_MSRS);
    b.set32(abi.MSRS_VCPU, vcpu);
    b.set32(abi.MSRS_COUNT, count);
    b.attach(abi.MSRS_ENTRIES, list);
    return b;
  }
  /** Values of MSRs, in the order asked. */
  getMsrs(vcpu: number, indices: readonly number[]): bigint[] {
    const list = new Block(indices.length * abi.SIZEOF_MSR_ENTRY);
    for (const [i, msr] of indices.entries()) {
      list.set32(i * abi.SIZEOF_MSR_ENTRY + abi.MSR_ENTRY_INDEX, msr);
    }
    this.ioctl(abi.HVI_GET_MSRS, this.msrBlock(vcpu, indices.length, list));
    const view = new DataView(list.buffer);
    return indices.map((_, i) =>
      view.getBigUint64(i * abi.SIZEOF_MSR_ENTRY + abi.MSR_ENTRY_VALUE, true),
    );
  }
  setMsrs(vcpu: number, entries: readonly { index: number; value: bigint }[]): void {
    const list = new Block(entries.length * abi.SIZEOF_MSR_ENTRY);
    const view = new DataView(list.buffer);
    entries.forEach((e, i) => {
      list.set32(i * abi.SIZEOF_MSR_ENTRY + abi.MSR_ENTRY_INDEX, e.index);
      view.setBigUint64(i * abi.SIZEOF_MSR_ENTRY + abi.MSR_ENTRY_VALUE, e.value, true);
    });
    this.ioctl(abi.HVI_SET_MSRS, this.msrBlock(vcpu, entries.length, list));
  }
  /** MTRR memory type of a guest physical address: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB. */
  mtrrType(gpa: number): number {
    const b = new Block(abi.SIZEOF_MTRR);
    b.set64(abi.MTRR_GPA, gpa);
    this.ioctl(abi.HVI_QUERY_MTRR, b);
    return b.get32(abi.MTRR_TYPE);
  }

  /**
   * Frees the machine. Views of RAM, vCPU and spare pages become empty first,
   * so that a late access finds nothing instead of freed memory. Harmless twice.
   */
  close(): void {
    if (!this.open) return;
    this.open = false;
    this.mapped?.detach();
    this.mapped = undefined;
    for (const v of this.vcpuList) (v.page.buffer as ArrayBuffer).transfer();
    this.vcpuList.length = 0;
    for (const p of this.sparePages) (p?.buffer as ArrayBuffer | undefined)?.transfer();
    this.sparePages.length = 0;
    this.backend.close();
  }
}
