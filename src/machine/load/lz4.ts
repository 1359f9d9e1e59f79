// SPDX-License-Identifier: MIT
/*
 * LZ4 in the legacy frame, as `lz4 -l` makes it for kernels: a magic number,
 * then blocks of at most 8 MiB (uncompressed), each with its length in front.
 */
const LEGACY_MAGIC = 0x184c2102;
const BLOCK_MAX = 8 << 20;

/**
 * Decodes one LZ4 block from src[at, end) to out from `to` on; returns where
 * the output ends, or -1 when the block is damaged or does not fit.
 */
function lz4Block(src: Uint8Array, at: number, end: number, out: Uint8Array, to: number): number {
  let i = at;
  let o = to;
  while (i < end) {
    const token = src[i++];
    let literals = token >> 4;
    if (literals === 15) {
      let more = 255;
      while (more === 255) {
        if (i >= end) return -1;
        more = src[i++];
        literals += more;
      }
    }
    if (i + literals > end || o + literals > out.length) return -1;
    if (literals > 32) out.set(src.subarray(i, i + literals), o);
    else for (let k = 0; k < literals; k++) out[o + k] = src[i + k];
    i += literals;
    o += literals;
    // The last sequence has literals only.
    if (i >= end) return o;
    if (i + 2 > end) return -1;
    const offset = src[i] | (src[i + 1] << 8);
    i += 2;
    let length = (token & 15) + 4;
    if (length === 19) {
      let more = 255;
      while (more === 255) {
        if (i >= end) return -1;
        more = src[i++];
        length += more;
      }
    }
    if (offset === 0 || offset > o - to || o + length > out.length) return -1;
    if (length > 64 && offset >= length) out.copyWithin(o, o - offset, o - offset + length);
    else for (let k = 0; k < length; k++) out[o + k] = out[o - offset + k];
    o += length;
  }
  return o;
}

/** Decodes a legacy LZ4 stream of `size` uncompressed bytes; undefined when it is damaged. */
export function lz4Legacy(src: Uint8Array, size: number): Uint8Array | undefined {
  const view = new DataView(src.buffer, src.byteOffset, src.byteLength);
  if (src.length < 8 || view.getUint32(0, true) !== LEGACY_MAGIC) return undefined;
  const out = new Uint8Array(size);
  let i = 4;
  let o = 0;
  while (i + 4 <= src.length && o < size) {
    const length = view.getUint32(i, true);
    i += 4;
    if (length === LEGACY_MAGIC) continue; // streams may be concatenated
    if (length > src.length - i) return undefined;
    const end = lz4Block(src, i, i + length, out, o);
    if (end < 0 || end - o > BLOCK_MAX) return undefined;
    o = end;
    i += length;
  }
  return o === size ? out : undefined;
}
