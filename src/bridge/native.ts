// SPDX-License-Identifier: MIT
/** The two real backends, over bun:ffi: the soft vCPU's library and /dev/hvi. */
import { dlopen, FFIType, type Pointer, ptr, read, toArrayBuffer } from "bun:ffi";
import { existsSync } from "node:fs";
import { assetBytes, assetIsEmbedded, assetPath } from "./assets.ts";
import type { Backend, Block } from "./backend.ts";
import { BackendError, errnoName } from "./error.ts";

export const DEVICE = "/dev/hvi";

const O_RDWR_CLOEXEC = 0o2000002;
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MFD_CLOEXEC = 1;

const libc = dlopen("libc.so.6", {
  open: { args: ["cstring", "i32"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  mmap: { args: ["ptr", "u64", "i32", "i32", "i32", "i64"], returns: FFIType.u64_fast },
  munmap: { args: ["ptr", "u64"], returns: "i32" },
  memfd_create: { args: ["cstring", "u32"], returns: "i32" },
  write: { args: ["i32", "ptr", "u64"], returns: FFIType.i64_fast },
  __errno_location: { args: [], returns: "ptr" },
}).symbols;

/** errno of the last libc call of this thread; to be read at once. */
function errno(): number {
  return read.i32(libc.__errno_location() as Pointer, 0);
}

function cstring(s: string): Buffer {
  return Buffer.from(`${s}\0`);
}

/** Views of a mapping, so that no index leaves the 32-bit range where JavaScript is fast. */
function chunked(address: number, size: number, chunk: number): ArrayBuffer[] {
  const out: ArrayBuffer[] = [];
  for (let at = 0; at < size; at += chunk) {
    out.push(toArrayBuffer((address + at) as Pointer, 0, Math.min(chunk, size - at)));
  }
  return out;
}

/** mmap results as the C side gives them: an address, or a small negative number as unsigned 64-bit. */
function mappingError(address: number | bigint): number {
  const signed = BigInt.asIntN(64, BigInt(address));
  return signed <= 0n && signed > -4096n ? Number(signed) : 0;
}

const SOFT_SYMBOLS = {
  hvi_soft_open: { args: [], returns: FFIType.i64_fast },
  hvi_soft_ioctl: { args: [FFIType.i64_fast, "u64", "ptr"], returns: FFIType.i64_fast },
  hvi_soft_mmap: { args: [FFIType.i64_fast, "u64", "u64"], returns: FFIType.u64_fast },
  hvi_soft_close: { args: [FFIType.i64_fast], returns: "i32" },
} as const;

type SoftLibrary = ReturnType<typeof dlopen<typeof SOFT_SYMBOLS>>["symbols"];
let softLibrary: SoftLibrary | undefined;

/**
 * Loads the library from memory: Bun's own dlopen of an embedded file leaves a
 * temporary copy behind at each start.
 */
function dlopenFromMemory(bytes: Uint8Array): SoftLibrary {
  const fd = libc.memfd_create(cstring("libhvi-soft"), MFD_CLOEXEC);
  if (fd < 0) throw new Error(`memfd_create failed: ${errnoName(errno())}`);
  try {
    for (let at = 0; at < bytes.length; ) {
      const n = Number(libc.write(fd, ptr(bytes, at), bytes.length - at));
      if (n <= 0) throw new Error(`writing the library to memory failed: ${errnoName(errno())}`);
      at += n;
    }
    return dlopen(`/proc/self/fd/${fd}`, SOFT_SYMBOLS).symbols;
  } finally {
    libc.close(fd);
  }
}

function loadSoft(): SoftLibrary {
  if (softLibrary) return softLibrary;
  const path = assetPath("libhvi-soft.so");
  if (path === undefined) {
    throw new BackendError(
      "the software vCPU (build/libhvi-soft.so) is not built",
      "build it: npm run setup, or make -C hv/soft",
    );
  }
  try {
    const bytes = assetIsEmbedded("libhvi-soft.so") ? assetBytes("libhvi-soft.so") : undefined;
    softLibrary = bytes ? dlopenFromMemory(bytes) : dlopen(path, SOFT_SYMBOLS).symbols;
  } catch (e) {
    throw new BackendError(
      `the software vCPU (${path}) cannot be loaded: ${e instanceof Error ? e.message : String(e)}`,
      "rebuild it: make -C hv/soft clean all; libzydis-dev must be installed",
    );
  }
  return softLibrary;
}

/** Opens a machine of the software vCPU. Throws BackendError when the library is missing or broken. */
export function openSoft(): Backend {
  const lib = loadSoft();
  const handle = Number(lib.hvi_soft_open());
  if (handle < 0) {
    throw new BackendError(
      `the software vCPU cannot make a machine: ${errnoName(-handle)}`,
      "free some memory and try again",
    );
  }
  let open = true;
  return {
    name: "soft",
    ioctl: (request: number, argument: Block) =>
      Number(lib.hvi_soft_ioctl(handle, request, argument.pointer)),
    map(offset, size, chunk) {
      const address = lib.hvi_soft_mmap(handle, offset, size);
      const error = mappingError(address);
      if (error < 0) return error;
      // A null pointer carries no reason.
      return Number(address) === 0 ? -22 : chunked(Number(address), size, chunk);
    },
    close() {
      if (open) lib.hvi_soft_close(handle);
      open = false;
    },
  };
}

const NO_MODULE = "load the module: sudo insmod hvi.ko; or use --backend soft";

/** What to do about a device that cannot be opened, by errno. */
const DEVICE_HINTS: Readonly<Record<number, [string, string]>> = {
  1: ["needs root", "run it as root: sudo hvi …"],
  2: ["does not exist", NO_MODULE],
  6: ["has no driver behind it", NO_MODULE],
  13: ["needs root", "run it as root: sudo hvi …"],
  16: ["is in use", "stop the other user of VT-x (KVM, VirtualBox), or use --backend soft"],
  19: ["has no driver behind it", NO_MODULE],
  95: [
    "says that this CPU has no usable VT-x",
    "switch VT-x on in the firmware, or use --backend soft",
  ],
};

/** True when there is a device to try. */
export function hasDevice(): boolean {
  return existsSync(DEVICE);
}

/** Opens a machine of the kernel module. Throws BackendError with the next step. */
export function openVmx(): Backend {
  const fd = libc.open(cstring(DEVICE), O_RDWR_CLOEXEC);
  if (fd < 0) {
    const code = errno();
    const [what, hint] = DEVICE_HINTS[code] ?? [
      `cannot be opened: ${errnoName(code)}`,
      "look at the kernel log: dmesg | tail",
    ];
    throw new BackendError(`${DEVICE} ${what}`, hint);
  }
  let open = true;
  const mappings: { address: number; size: number }[] = [];
  return {
    name: "vmx",
    ioctl(request: number, argument: Block) {
      const result = libc.ioctl(fd, request, argument.pointer);
      return result < 0 ? -errno() : result;
    },
    map(offset, size, chunk) {
      const address = libc.mmap(null, size, PROT_READ_WRITE, MAP_SHARED, fd, offset);
      if (mappingError(address) < 0) return -errno();
      mappings.push({ address: Number(address), size });
      return chunked(Number(address), size, chunk);
    },
    close() {
      if (!open) return;
      open = false;
      for (const m of mappings) libc.munmap(m.address as Pointer, m.size);
      libc.close(fd);
    },
  };
}
