/* SPDX-License-Identifier: MIT */
/* Quicksort of COUNT pseudo-random integers; a sum over the sorted array. */
#include <stdint.h>

#define COUNT	1000000

static int32_t v[COUNT];

static void sort(int32_t *a, long lo, long hi)
{
	while (lo < hi) {
		int32_t pivot = a[lo + (hi - lo) / 2];
		long i = lo, j = hi;

		while (i <= j) {
			while (a[i] < pivot)
				i++;
			while (a[j] > pivot)
				j--;
			if (i <= j) {
				int32_t t = a[i];

				a[i++] = a[j];
				a[j--] = t;
			}
		}
		if (j - lo < hi - i) {
			sort(a, lo, j);
			lo = i;
		} else {
			sort(a, i, hi);
			hi = j;
		}
	}
}

uint32_t work(void)
{
	uint32_t x = 12345, sum = 0;

	for (long i = 0; i < COUNT; i++) {
		x ^= x << 13, x ^= x >> 17, x ^= x << 5;
		v[i] = (int32_t)x;
	}
	sort(v, 0, COUNT - 1);
	for (long i = 0; i < COUNT; i++)
		sum = sum * 31 + (uint32_t)v[i];
	return sum;
}
