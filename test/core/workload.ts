// SPDX-License-Identifier: MIT
/** What guest/workload.c computes, by itself. */
export function workload(words: Uint32Array, rounds: number, seed: number): number {
  const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
  const mask = words.length - 1;
  let x = (seed | 1) >>> 0;
  let sum = 0;
  for (let n = 0; n < rounds; n++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x = (x ^ (x << 5)) >>> 0;
    const i = x & mask;
    words[i] = Math.imul(words[i], 1664525) + x;
    sum = ((sum << 1) | (sum >>> 31)) ^ words[i];
    if ((n & 7) === 0) bytes[(x >>> 7) & (words.byteLength - 1)] ^= n;
    if ((n & 31) === 0) {
      const from = (x >>> 11) & mask & ~3;
      // Both are aligned to what is copied, so nothing overlaps in part.
      words.copyWithin(i & ~3, from, from + 4);
    }
  }
  return sum >>> 0;
}
