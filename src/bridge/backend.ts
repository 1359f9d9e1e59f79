// SPDX-License-Identifier: MIT
/**
 * What the bridge needs of a backend: the four system calls of hvi.h. The
 * engine above Vm and Vcpu never sees which one runs.
 */
import { type Pointer, ptr } from "bun:ffi";

const TWO32 = 4294967296;

/**
 * A structure handed to the backend. The memory stays where it is, so that its
 * address can be taken once.
 */
export class Block {
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly u32: Uint32Array;
  readonly pointer: Pointer;
  /** Kept alive as long as this block points to it. */
  private attached: Block | undefined;

  /** @param size bytes; rounded up to a multiple of 8 */
  constructor(size: number) {
    this.buffer = new ArrayBuffer((size + 7) & ~7);
    this.bytes = new Uint8Array(this.buffer);
    this.u32 = new Uint32Array(this.buffer);
    // An empty ArrayBuffer has no address; nothing is read through it.
    this.pointer = size === 0 ? (0 as Pointer) : ptr(this.buffer);
  }

  get32(offset: number): number {
    return this.u32[offset >>> 2];
  }
  set32(offset: number, value: number): void {
    this.u32[offset >>> 2] = value;
  }
  /** Unsigned 64-bit field; exact below 2^53. */
  get64(offset: number): number {
    const i = offset >>> 2;
    return this.u32[i + 1] * TWO32 + this.u32[i];
  }
  /** Stores a signed or unsigned integer of magnitude below 2^53. */
  set64(offset: number, value: number): void {
    const i = offset >>> 2;
    this.u32[i] = value >>> 0;
    this.u32[i + 1] = Math.floor(value / TWO32) >>> 0;
  }
  /** The block that the user pointer in this one points to. */
  get target(): Block {
    if (!this.attached) throw new Error("the argument points nowhere");
    return this.attached;
  }
  /** Stores the address of another block in a user-pointer field. */
  attach(offset: number, target: Block): void {
    this.attached = target;
    this.set64(offset, target.pointer as number);
  }
}

/** One open virtual machine of some backend. */
export interface Backend {
  readonly name: string;
  /** Returns 0 (or a positive result), or a negative errno. */
  ioctl(request: number, argument: Block): number;
  /**
   * Maps [offset, offset + size) of the machine's file, shared and writable, as
   * consecutive buffers of `chunk` bytes (the last may be shorter).
   * A negative errno when refused.
   */
  map(offset: number, size: number, chunk: number): ArrayBuffer[] | number;
  /** Frees the machine. Buffers from map() must not be used afterwards. */
  close(): void;
}
