// SPDX-License-Identifier: MIT
/**
 * A backend in memory, for tests: records what it is asked, can be told to
 * fail, and has RAM, vCPU and spare pages as plain buffers. It runs no code;
 * each HVI_RUN takes the next of the exits given to it.
 */
import * as abi from "./abi.ts";
import type { Backend, Block } from "./backend.ts";
import type { MemorySlot } from "./ram.ts";
import { RAM_CHUNK } from "./ram.ts";
import { Vm } from "./vm.ts";

const EINVAL = 22;
const ENOENT = 2;
const ENODATA = 61;

export interface FakeCall {
  /** Name of the ioctl, "mmap" or "close". */
  readonly name: string;
  /** The arguments that matter for the call. */
  readonly args: Readonly<Record<string, number>>;
}

/** A reply as the backend takes it. */
export interface FakeReply {
  /** HVI_REPLY_RESUME... */
  readonly action: number;
  /** HVI_REPLY_NOTIFY... */
  readonly flags: number;
  readonly stepView: number;
  /** The used ranges of EMULATE. */
  readonly ranges: readonly { gpa: number; length: number; offset: number }[];
  /** bytes[] of EMULATE. */
  readonly bytes: Uint8Array;
}

/** Flags that each action takes. */
const REPLY_FLAGS: Readonly<Record<number, number>> = {
  [abi.HVI_REPLY_RESUME]: abi.HVI_REPLY_NOTIFY,
  [abi.HVI_REPLY_SKIP]: 0,
  [abi.HVI_REPLY_RETRY]: 0,
  [abi.HVI_REPLY_EMULATE]: abi.HVI_REPLY_NOTIFY | abi.HVI_REPLY_WRITE | abi.HVI_REPLY_SPARE,
  [abi.HVI_REPLY_SCRATCH]: abi.HVI_REPLY_NOTIFY,
  [abi.HVI_REPLY_STEP]: abi.HVI_REPLY_NOTIFY,
  [abi.HVI_REPLY_INJECT]: 0,
};

/** Fills in one exit; returns the number of the vCPU that exits (0 when it returns nothing). */
export type FakeExit = (page: (vcpu: number) => Uint32Array) => number | undefined;

interface View {
  rights: Map<number, number>;
  remaps: Map<number, number>;
}

export interface FakeOptions {
  caps?: number;
  abiVersion?: number;
  xsaveSize?: number;
}

const ALL_CAPS =
  abi.HVI_CAP_EXEC_ONLY |
  abi.HVI_CAP_EPT_AD |
  abi.HVI_CAP_DTR_EXIT |
  abi.HVI_CAP_MTF |
  abi.HVI_CAP_ICOUNT |
  abi.HVI_CAP_UNRESTRICTED |
  abi.HVI_CAP_TSC_SET;

export class FakeBackend implements Backend {
  readonly name = "fake";
  readonly calls: FakeCall[] = [];
  /** Exits still to come, in order. */
  readonly exits: FakeExit[] = [];
  /** Intercepts switched on: "kind:index" to mask. */
  readonly intercepts = new Map<string, number>();
  closed = false;
  /** Replies taken, one each HVI_RUN after the first: what the engine answered. */
  readonly replies: FakeReply[] = [];
  private exitedLast = -1;
  private readonly slots: MemorySlot[] = [];
  private ramSize = 0;
  private vcpuPages: ArrayBuffer[] = [];
  private readonly views = new Map<number, View>([[0, { rights: new Map(), remaps: new Map() }]]);
  private nextView = 1;
  private spareCount = 0;
  private readonly xsave = new Map<number, Uint8Array>();
  private readonly msrs = new Map<string, readonly [number, number]>();
  private cpuid: Uint8Array = new Uint8Array(0);
  private readonly armed: { name: string | undefined; nth: number; errno: number }[] = [];
  private readonly options: Required<FakeOptions>;

  constructor(options: FakeOptions = {}) {
    this.options = {
      caps: options.caps ?? ALL_CAPS,
      abiVersion: options.abiVersion ?? abi.HVI_ABI_VERSION,
      xsaveSize: options.xsaveSize ?? 832,
    };
  }

  /**
   * Makes the nth call from now on (1 = the next) fail, once. With a name, only
   * calls of that name count.
   */
  failNth(nth: number, errno = EINVAL, name?: string): void {
    this.armed.push({ name, nth, errno });
  }
  /** How many calls of a name there were. */
  count(name: string): number {
    return this.calls.filter((c) => c.name === name).length;
  }
  /** Rights of a GFN in a view, as set; undefined when the view does not exist. */
  rightsOf(view: number, gfn: number): number | undefined {
    const v = this.views.get(view);
    return v && (v.rights.get(gfn) ?? (this.isRam(gfn) ? abi.HVI_RWX : 0));
  }
  /** GFNs of a view whose rights are not RWX. */
  restricted(view: number): Map<number, number> {
    return new Map([...(this.views.get(view)?.rights ?? [])].filter(([, r]) => r !== abi.HVI_RWX));
  }
  /** Spare page that a GFN stands for in a view, or undefined. */
  remapOf(view: number, gfn: number): number | undefined {
    return this.views.get(view)?.remaps.get(gfn);
  }

  private isRam(gfn: number): boolean {
    const gpa = gfn * abi.HVI_PAGE_SIZE;
    return this.slots.some((s) => gpa >= s.gpa && gpa < s.gpa + s.size);
  }
  /** Records the call; the errno it must fail with, or 0. */
  private record(name: string, args: Record<string, number>): number {
    this.calls.push({ name, args });
    for (let i = 0; i < this.armed.length; i++) {
      const a = this.armed[i];
      if (a.name !== undefined && a.name !== name) continue;
      if (--a.nth === 0) {
        this.armed.splice(i, 1);
        return a.errno;
      }
    }
    return 0;
  }

  ioctl(request: number, b: Block): number {
    const name = abi.hviIoctlNames[request] ?? `ioctl ${request}`;
    const handler = this.handlers[request];
    const error = this.record(name, handler?.args?.(b) ?? {});
    if (error !== 0) return -error;
    return handler ? handler.run(b) : -EINVAL;
  }

  map(offset: number, size: number, chunk: number): ArrayBuffer[] | number {
    const error = this.record("mmap", { offset, size });
    if (error !== 0) return -error;
    if (offset >= abi.HVI_MMAP_VCPU && offset < abi.HVI_MMAP_SPARE) {
      const page = this.vcpuPages[(offset - abi.HVI_MMAP_VCPU) / abi.HVI_VCPU_SIZE];
      return page && size === abi.HVI_VCPU_SIZE ? [page] : -EINVAL;
    }
    if (offset === abi.HVI_MMAP_RAM && size !== this.ramSize) return -EINVAL;
    const out: ArrayBuffer[] = [];
    for (let at = 0; at < size; at += chunk) out.push(new ArrayBuffer(Math.min(chunk, size - at)));
    return out;
  }

  close(): void {
    this.record("close", {});
    this.closed = true;
  }

  /** The reply in a vCPU page; undefined when a backend must refuse it. */
  private readReply(page: ArrayBuffer): FakeReply | undefined {
    const u32 = new Uint32Array(page);
    const action = u32[abi.REPLY_ACTION >>> 2];
    const flags = u32[abi.REPLY_FLAGS >>> 2];
    const ranges: { gpa: number; length: number; offset: number }[] = [];
    if (flags & ~(REPLY_FLAGS[action] ?? -1)) return undefined;
    for (let i = 0; action === abi.HVI_REPLY_EMULATE && i < abi.HVI_EMULATE_RANGES; i++) {
      const w = (abi.REPLY_RANGE + i * abi.SIZEOF_EMULATE_RANGE) >>> 2;
      const gpa = u32[w + 1] * 2 ** 32 + u32[w];
      const length = u32[w + (abi.EMULATE_RANGE_LEN >>> 2)];
      const offset = u32[w + (abi.EMULATE_RANGE_OFFSET >>> 2)];
      if (length === 0) continue;
      if ((gpa % abi.HVI_PAGE_SIZE) + length > abi.HVI_PAGE_SIZE) return undefined;
      const found =
        flags & abi.HVI_REPLY_SPARE
          ? offset < this.spareCount
          : offset + length <= abi.HVI_EMULATE_BYTES;
      if (!found) return undefined;
      ranges.push({ gpa, length, offset });
    }
    return {
      action,
      flags,
      stepView: u32[abi.REPLY_STEP_VIEW >>> 2],
      ranges,
      bytes: new Uint8Array(page).slice(abi.REPLY_BYTES, abi.REPLY_BYTES + abi.HVI_EMULATE_BYTES),
    };
  }

  private readonly handlers: Readonly<
    Record<
      number,
      { args?: (b: Block) => Record<string, number>; run: (b: Block) => number } | undefined
    >
  > = {
    [abi.HVI_GET_INFO]: {
      run: (b) => {
        b.set32(abi.INFO_ABI_VERSION, this.options.abiVersion);
        b.set64(abi.INFO_CAPS, this.options.caps);
        b.set32(abi.INFO_MAX_VCPUS, abi.HVI_MAX_VCPUS);
        b.set32(abi.INFO_MAX_VIEWS, abi.HVI_MAX_VIEWS);
        b.set32(abi.INFO_MAX_SPARE_PAGES, abi.HVI_MAX_SPARE_PAGES);
        b.set32(abi.INFO_XSAVE_SIZE, this.options.xsaveSize);
        b.set64(abi.INFO_XCR0_MASK, 7);
        b.set64(abi.INFO_MAX_GFN, 0xfffffffff);
        b.set32(abi.INFO_TSC_KHZ, 1_000_000);
        b.bytes.set(new TextEncoder().encode("fake\0"), abi.INFO_BACKEND);
        return 0;
      },
    },
    [abi.HVI_CREATE]: {
      args: (b) => ({ vcpus: b.get32(abi.CREATE_VCPUS) }),
      run: (b) => {
        const n = b.get32(abi.CREATE_VCPUS);
        if (n < 1 || n > abi.HVI_MAX_VCPUS || this.vcpuPages.length > 0) return -EINVAL;
        this.vcpuPages = Array.from({ length: n }, (_, i) => {
          const page = new ArrayBuffer(abi.HVI_VCPU_SIZE);
          const u32 = new Uint32Array(page);
          u32[abi.VCPU_SIZE >>> 2] = abi.SIZEOF_VCPU;
          u32[abi.VCPU_INDEX >>> 2] = i;
          u32[abi.VCPU_VALID >>> 2] = abi.HVI_STATE_ALL;
          return page;
        });
        return 0;
      },
    },
    [abi.HVI_ADD_MEMORY]: {
      args: (b) => ({ gpa: b.get64(abi.MEMORY_GPA), size: b.get64(abi.MEMORY_SIZE) }),
      run: (b) => {
        const gpa = b.get64(abi.MEMORY_GPA);
        const size = b.get64(abi.MEMORY_SIZE);
        const overlaps = this.slots.some((s) => gpa < s.gpa + s.size && s.gpa < gpa + size);
        if (size === 0 || (gpa | size) & 0xfff || overlaps) return -EINVAL;
        if (this.slots.length === abi.HVI_MAX_MEMORY_SLOTS) return -EINVAL;
        this.slots.push({ gpa, size, offset: this.ramSize });
        b.set64(abi.MEMORY_RAM_OFFSET, this.ramSize);
        this.ramSize += size;
        return 0;
      },
    },
    [abi.HVI_GET_CPUID]: {
      run: (b) => {
        const n = Math.min(
          b.get32(abi.CPUID_COUNT),
          Math.floor(this.cpuid.length / abi.SIZEOF_CPUID_ENTRY),
        );
        b.target.bytes.set(this.cpuid.subarray(0, n * abi.SIZEOF_CPUID_ENTRY));
        b.set32(abi.CPUID_COUNT, n);
        return 0;
      },
    },
    [abi.HVI_SET_CPUID]: {
      args: (b) => ({ count: b.get32(abi.CPUID_COUNT) }),
      run: (b) => {
        const n = b.get32(abi.CPUID_COUNT);
        if (n > abi.HVI_MAX_CPUID) return -EINVAL;
        this.cpuid = b.target.bytes.slice(0, n * abi.SIZEOF_CPUID_ENTRY);
        return 0;
      },
    },
    [abi.HVI_INTERCEPT]: {
      args: (b) => ({
        kind: b.get32(abi.INTERCEPT_KIND),
        index: b.get32(abi.INTERCEPT_INDEX),
        mask: b.get64(abi.INTERCEPT_MASK),
      }),
      run: (b) => {
        const key = `${b.get32(abi.INTERCEPT_KIND)}:${b.get32(abi.INTERCEPT_INDEX)}`;
        const mask = b.get64(abi.INTERCEPT_MASK);
        if (mask === 0) this.intercepts.delete(key);
        else this.intercepts.set(key, mask);
        return 0;
      },
    },
    [abi.HVI_RUN]: {
      args: (b) => ({
        deadline: b.get32(abi.RUN_FLAGS) & abi.HVI_RUN_DEADLINE ? b.get64(abi.RUN_DEADLINE) : -1,
      }),
      run: (b) => {
        const exit = this.exits.shift();
        if (!exit) return -ENODATA;
        if (this.exitedLast >= 0) {
          const reply = this.readReply(this.vcpuPages[this.exitedLast]);
          if (!reply) {
            this.exits.unshift(exit);
            return -EINVAL;
          }
          this.replies.push(reply);
        }
        for (const p of this.vcpuPages) {
          const u32 = new Uint32Array(p);
          u32[abi.VCPU_DIRTY >>> 2] = 0;
          u32[abi.REPLY_ACTION >>> 2] = abi.HVI_REPLY_RESUME;
          u32[abi.REPLY_FLAGS >>> 2] = 0;
        }
        const vcpu = exit((i) => new Uint32Array(this.vcpuPages[i])) ?? 0;
        this.exitedLast = vcpu;
        b.set32(abi.RUN_VCPU, vcpu);
        b.set32(abi.RUN_REASON, new Uint32Array(this.vcpuPages[vcpu])[abi.EXIT_REASON >>> 2]);
        return 0;
      },
    },
    ...Object.fromEntries(
      [abi.HVI_PAUSE, abi.HVI_RESUME, abi.HVI_KICK, abi.HVI_FETCH, abi.HVI_RESET].map((request) => [
        request,
        {
          args: (b: Block) => ({
            vcpu: b.get32(abi.VCPU_OP_VCPU),
            groups: b.get32(abi.VCPU_OP_GROUPS),
          }),
          run: (b: Block) => {
            if (request === abi.HVI_FETCH) {
              const page = this.vcpuPages[b.get32(abi.VCPU_OP_VCPU)];
              if (!page) return -EINVAL;
              new Uint32Array(page)[abi.VCPU_VALID >>> 2] |= b.get32(abi.VCPU_OP_GROUPS);
            }
            return 0;
          },
        },
      ]),
    ),
    [abi.HVI_EPT_SET]: {
      args: (b) => {
        const r = b.target;
        return {
          view: b.get32(abi.EPT_VIEW),
          ranges: b.get32(abi.EPT_COUNT),
          gfn: r.get64(abi.EPT_RANGE_GFN),
          count: r.get32(abi.EPT_RANGE_COUNT),
          rights: r.get32(abi.EPT_RANGE_RIGHTS),
        };
      },
      run: (b) => {
        const view = this.views.get(b.get32(abi.EPT_VIEW));
        const r = b.target;
        const n = b.get32(abi.EPT_COUNT);
        if (!view) return -ENOENT;
        for (let i = 0; i < n; i++) {
          const at = i * abi.SIZEOF_EPT_RANGE;
          const rights = r.get32(at + abi.EPT_RANGE_RIGHTS);
          const gfn = r.get64(at + abi.EPT_RANGE_GFN);
          if (rights > abi.HVI_RWX || (rights & (abi.HVI_R | abi.HVI_W)) === abi.HVI_W) {
            return -EINVAL;
          }
          if (!this.isRam(gfn) || !this.isRam(gfn + r.get32(at + abi.EPT_RANGE_COUNT) - 1)) {
            return -EINVAL;
          }
        }
        for (let i = 0; i < n; i++) {
          const at = i * abi.SIZEOF_EPT_RANGE;
          const first = r.get64(at + abi.EPT_RANGE_GFN);
          const end = first + r.get32(at + abi.EPT_RANGE_COUNT);
          for (let g = first; g < end; g++) view.rights.set(g, r.get32(at + abi.EPT_RANGE_RIGHTS));
        }
        return 0;
      },
    },
    [abi.HVI_EPT_GET]: {
      args: (b) => ({
        view: b.get32(abi.EPT_VIEW),
        gfn: b.target.get64(abi.EPT_RANGE_GFN),
      }),
      run: (b) => {
        const r = b.target;
        for (let i = 0; i < b.get32(abi.EPT_COUNT); i++) {
          const at = i * abi.SIZEOF_EPT_RANGE;
          const rights = this.rightsOf(b.get32(abi.EPT_VIEW), r.get64(at + abi.EPT_RANGE_GFN));
          if (rights === undefined) return -ENOENT;
          r.set32(at + abi.EPT_RANGE_RIGHTS, rights);
        }
        return 0;
      },
    },
    [abi.HVI_VIEW_CREATE]: {
      args: (b) => ({ from: b.get32(abi.VIEW_FROM) }),
      run: (b) => {
        const from = this.views.get(b.get32(abi.VIEW_FROM));
        if (!from) return -ENOENT;
        if (this.views.size === abi.HVI_MAX_VIEWS) return -EINVAL;
        this.views.set(this.nextView, {
          rights: new Map(from.rights),
          remaps: new Map(from.remaps),
        });
        b.set32(abi.VIEW_VIEW, this.nextView++);
        return 0;
      },
    },
    [abi.HVI_VIEW_DESTROY]: {
      args: (b) => ({ view: b.get32(abi.VIEW_VIEW) }),
      run: (b) => {
        const view = b.get32(abi.VIEW_VIEW);
        if (view === 0) return -EINVAL;
        return this.views.delete(view) ? 0 : -ENOENT;
      },
    },
    [abi.HVI_REMAP]: {
      args: (b) => ({
        view: b.get32(abi.REMAP_VIEW),
        spare: b.get32(abi.REMAP_SPARE),
        gfn: b.get64(abi.REMAP_GFN),
      }),
      run: (b) => {
        const view = this.views.get(b.get32(abi.REMAP_VIEW));
        const spare = b.get32(abi.REMAP_SPARE);
        const gfn = b.get64(abi.REMAP_GFN);
        if (!view) return -ENOENT;
        if (spare === abi.HVI_SPARE_NONE) view.remaps.delete(gfn);
        else if (spare >= this.spareCount || !this.isRam(gfn)) return -EINVAL;
        else view.remaps.set(gfn, spare);
        return 0;
      },
    },
    [abi.HVI_ADD_SPARE]: {
      args: (b) => ({ count: b.get32(abi.SPARE_COUNT) }),
      run: (b) => {
        const count = b.get32(abi.SPARE_COUNT);
        if (count === 0 || this.spareCount + count > abi.HVI_MAX_SPARE_PAGES) return -EINVAL;
        b.set32(abi.SPARE_FIRST, this.spareCount);
        this.spareCount += count;
        return 0;
      },
    },
    [abi.HVI_GET_XSAVE]: {
      run: (b) => {
        const saved = this.xsave.get(b.get32(abi.XSAVE_VCPU));
        b.target.bytes.fill(0);
        if (saved) b.target.bytes.set(saved);
        return 0;
      },
    },
    [abi.HVI_SET_XSAVE]: {
      run: (b) => {
        this.xsave.set(b.get32(abi.XSAVE_VCPU), b.target.bytes.slice(0, b.get32(abi.XSAVE_SIZE)));
        return 0;
      },
    },
    [abi.HVI_LIST_MSRS]: {
      run: (b) => {
        b.set32(abi.MSRS_COUNT, 1);
        b.target.set32(abi.MSR_ENTRY_INDEX, 0x277);
        return 0;
      },
    },
    [abi.HVI_GET_MSRS]: {
      run: (b) => {
        for (let i = 0; i < b.get32(abi.MSRS_COUNT); i++) {
          const at = i * abi.SIZEOF_MSR_ENTRY;
          const msr = b.target.get32(at + abi.MSR_ENTRY_INDEX);
          const [lo, hi] = this.msrs.get(`${b.get32(abi.MSRS_VCPU)}:${msr}`) ?? [0, 0];
          b.target.set32(at + abi.MSR_ENTRY_VALUE, lo);
          b.target.set32(at + abi.MSR_ENTRY_VALUE + 4, hi);
        }
        return 0;
      },
    },
    [abi.HVI_SET_MSRS]: {
      run: (b) => {
        for (let i = 0; i < b.get32(abi.MSRS_COUNT); i++) {
          const at = i * abi.SIZEOF_MSR_ENTRY;
          const msr = b.target.get32(at + abi.MSR_ENTRY_INDEX);
          this.msrs.set(`${b.get32(abi.MSRS_VCPU)}:${msr}`, [
            b.target.get32(at + abi.MSR_ENTRY_VALUE),
            b.target.get32(at + abi.MSR_ENTRY_VALUE + 4),
          ]);
        }
        return 0;
      },
    },
    [abi.HVI_QUERY_MTRR]: {
      run: (b) => {
        b.set32(abi.MTRR_TYPE, 6);
        return 0;
      },
    },
  };
}

/** A machine over a fake backend, with its memory mapped: the usual start of a test. */
export function fakeVm(o: { size?: number; vcpus?: number; options?: FakeOptions } = {}): {
  vm: Vm;
  backend: FakeBackend;
} {
  const backend = new FakeBackend(o.options);
  const vm = new Vm(backend);
  vm.create({ vcpus: o.vcpus ?? 1 });
  vm.addMemory({ gpa: 0, size: Math.min(o.size ?? 0x100000, RAM_CHUNK) });
  vm.mapMemory();
  backend.calls.length = 0;
  return { vm, backend };
}
