// SPDX-License-Identifier: MIT
import { lz4Legacy } from "./lz4.ts";
import { unxz } from "./xz.ts";

export type Compression = "gzip" | "xz" | "zstd" | "lz4" | "lzma" | "bzip2" | "lzo" | "none";

/** Magic numbers as in the kernel's lib/decompress.c. */
export function compressionOf(bytes: Uint8Array): Compression | undefined {
  const b = (i: number) => bytes[i] ?? -1;
  if (b(0) === 0x1f && (b(1) === 0x8b || b(1) === 0x9e)) return "gzip";
  if (
    b(0) === 0xfd &&
    b(1) === 0x37 &&
    b(2) === 0x7a &&
    b(3) === 0x58 &&
    b(4) === 0x5a &&
    b(5) === 0
  )
    return "xz";
  if (b(0) === 0x28 && b(1) === 0xb5 && b(2) === 0x2f && b(3) === 0xfd) return "zstd";
  if (b(0) === 0x02 && b(1) === 0x21 && b(2) === 0x4c && b(3) === 0x18) return "lz4";
  if (b(0) === 0x5d && b(1) === 0 && b(2) === 0) return "lzma";
  if (b(0) === 0x42 && b(1) === 0x5a && b(2) === 0x68) return "bzip2";
  if (b(0) === 0x89 && b(1) === 0x4c && b(2) === 0x5a && b(3) === 0x4f) return "lzo";
  if (b(0) === 0x7f && b(1) === 0x45 && b(2) === 0x4c && b(3) === 0x46) return "none";
  return undefined;
}

/** Kernels are some 50 MB; a size field beyond this is damage. */
const MAX_KERNEL = 1 << 30;

/**
 * The kernel inside a bzImage's payload: an ELF file with its relocations
 * behind it. Undefined when this compression is not done here or the data is
 * damaged; the kernel's own decompressor then has the word.
 * All formats but gzip have their uncompressed size behind them (4 bytes).
 */
export async function decompressPayload(payload: Uint8Array): Promise<Uint8Array | undefined> {
  const kind = compressionOf(payload);
  if (payload.length < 16) return undefined;
  if (kind === "none") return payload;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const size = view.getUint32(payload.length - 4, true);
  const body = payload.subarray(0, payload.length - 4);
  if (size > MAX_KERNEL) return undefined;
  try {
    switch (kind) {
      case "gzip":
        return Bun.gunzipSync(payload as Uint8Array<ArrayBuffer>);
      case "zstd": {
        const out = Bun.zstdDecompressSync(body as Uint8Array<ArrayBuffer>);
        return out.length === size
          ? new Uint8Array(out.buffer, out.byteOffset, out.length)
          : undefined;
      }
      case "lz4":
        return lz4Legacy(body, size);
      case "xz":
        return await unxz(body, size);
      default:
        return undefined;
    }
  } catch {
    return undefined;
  }
}
