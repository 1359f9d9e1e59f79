// SPDX-License-Identifier: MIT
#include "kernel.h"

/*
 * Compute and memory traffic mixed: words, bytes, strings, read-modify-writes,
 * over `words` (a power of two) 32-bit words at `a`. What comes out depends on
 * every access; ../workload.ts computes the same. Here nothing but its
 * arguments may be used: it runs in both rings at two addresses.
 */
__attribute__((section(".stubs"), used))
u32 workload(volatile u32 *a, u32 words, u32 rounds, u32 seed)
{
	u32 x = seed | 1, sum = 0, n;

	for (n = 0; n < rounds; n++) {
		u32 i;

		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		i = x & (words - 1);
		a[i] = a[i] * 1664525 + x;
		sum = (sum << 1 | sum >> 31) ^ a[i];
		if ((n & 7) == 0)
			((volatile u8 *)a)[x >> 7 & (4 * words - 1)] ^= n;
		if ((n & 31) == 0) {
			volatile void *to = a + (i & ~3u), *from = a + (x >> 11 & (words - 1) & ~3u);
			word four = 4;

			asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(four) : : "memory");
		}
	}
	return sum;
}
