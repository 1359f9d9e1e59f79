/* SPDX-License-Identifier: MIT */
/*
 * native_features.c - what the host's CPU has, of what native.c can run on it.
 */
#include <cpuid.h>
#include "native_int.h"

enum leaf { L1_ECX, L1_EDX, L7_EBX, L7_ECX, L7_1_EAX, LD_1_EAX, LX1_ECX, LEAVES };

#define AVX_BIT		28u	/* of leaf 1, ECX */

/* One instruction set: its feature bit (SDM 2A, table 3-8 and following), and whether it needs AVX's state. */
static const struct set {
	ZydisISASet set;
	u8 leaf, bit;
	bool avx;
} sets[] = {
	{ ZYDIS_ISA_SET_X87, L1_EDX, 0, false },
	{ ZYDIS_ISA_SET_FCMOV, L1_EDX, 15, false },
	{ ZYDIS_ISA_SET_PENTIUMMMX, L1_EDX, 23, false },
	{ ZYDIS_ISA_SET_FXSAVE, L1_EDX, 24, false },
	{ ZYDIS_ISA_SET_FXSAVE64, L1_EDX, 24, false },
	{ ZYDIS_ISA_SET_SSE, L1_EDX, 25, false },
	{ ZYDIS_ISA_SET_SSEMXCSR, L1_EDX, 25, false },
	{ ZYDIS_ISA_SET_SSE2, L1_EDX, 26, false },
	{ ZYDIS_ISA_SET_SSE2MMX, L1_EDX, 26, false },
	{ ZYDIS_ISA_SET_SSE3, L1_ECX, 0, false },
	{ ZYDIS_ISA_SET_SSE3X87, L1_ECX, 0, false },
	{ ZYDIS_ISA_SET_PCLMULQDQ, L1_ECX, 1, false },
	{ ZYDIS_ISA_SET_SSSE3, L1_ECX, 9, false },
	{ ZYDIS_ISA_SET_SSSE3MMX, L1_ECX, 9, false },
	{ ZYDIS_ISA_SET_FMA, L1_ECX, 12, true },
	{ ZYDIS_ISA_SET_SSE4, L1_ECX, 19, false },
	{ ZYDIS_ISA_SET_SSE42, L1_ECX, 20, false },
	{ ZYDIS_ISA_SET_MOVBE, L1_ECX, 22, false },
	{ ZYDIS_ISA_SET_POPCNT, L1_ECX, 23, false },
	{ ZYDIS_ISA_SET_AES, L1_ECX, 25, false },
	{ ZYDIS_ISA_SET_AVXAES, L1_ECX, 25, true },
	{ ZYDIS_ISA_SET_XSAVE, L1_ECX, 26, false },
	{ ZYDIS_ISA_SET_AVX, L1_ECX, AVX_BIT, true },
	{ ZYDIS_ISA_SET_F16C, L1_ECX, 29, true },
	{ ZYDIS_ISA_SET_RDRAND, L1_ECX, 30, false },
	{ ZYDIS_ISA_SET_BMI1, L7_EBX, 3, false },
	{ ZYDIS_ISA_SET_AVX2, L7_EBX, 5, true },
	{ ZYDIS_ISA_SET_AVX2GATHER, L7_EBX, 5, true },
	{ ZYDIS_ISA_SET_BMI2, L7_EBX, 8, false },
	{ ZYDIS_ISA_SET_RDSEED, L7_EBX, 18, false },
	{ ZYDIS_ISA_SET_ADOX_ADCX, L7_EBX, 19, false },
	{ ZYDIS_ISA_SET_SHA, L7_EBX, 29, false },
	{ ZYDIS_ISA_SET_GFNI, L7_ECX, 8, false },
	{ ZYDIS_ISA_SET_AVX_GFNI, L7_ECX, 8, true },
	{ ZYDIS_ISA_SET_VAES, L7_ECX, 9, true },
	{ ZYDIS_ISA_SET_VPCLMULQDQ, L7_ECX, 10, true },
	{ ZYDIS_ISA_SET_AVX_VNNI, L7_1_EAX, 4, true },
	{ ZYDIS_ISA_SET_XSAVEOPT, LD_1_EAX, 0, false },
	{ ZYDIS_ISA_SET_LZCNT, LX1_ECX, 5, false },
};

/*
 * SDM 1, 8.1.8: FDP (and FOP) change only with an unmasked exception, FCS and
 * FDS read as 0. native_x87.c does it so whatever the host does.
 */
#define FDP_EXCPTN_ONLY	(1u << 6)
#define DEPRECATE_FCS	(1u << 13)

static void host(u32 leaf[LEAVES])
{
	u32 a, b, c, d, sub, lo = 0, hi;

	for (u32 i = 0; i < LEAVES; i++)
		leaf[i] = 0;
	if (__get_cpuid(1, &a, &b, &c, &d)) {
		leaf[L1_ECX] = c;
		leaf[L1_EDX] = d;
	}
	if (__get_cpuid_count(7, 0, &sub, &b, &c, &d)) {
		leaf[L7_EBX] = b;
		leaf[L7_ECX] = c;
		if (sub >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
			leaf[L7_1_EAX] = a;
	}
	if (__get_cpuid_count(13, 1, &a, &b, &c, &d))
		leaf[LD_1_EAX] = a;
	if (__get_cpuid(0x80000001, &a, &b, &c, &d))
		leaf[LX1_ECX] = c;
	/* The host's kernel must have switched the YMM state on. */
	if (leaf[L1_ECX] & (1u << 27))
		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	if ((lo & 6) != 6)
		leaf[L1_ECX] &= ~(1u << AVX_BIT);
}

static bool offered(const u32 leaf[LEAVES], const struct set *s)
{
	return (leaf[s->leaf] >> s->bit & 1) &&
	       (!s->avx || (leaf[L1_ECX] >> AVX_BIT & 1));
}

void native_find_sets(u8 has[ZYDIS_ISA_SET_MAX_VALUE + 1])
{
	u32 leaf[LEAVES];

	host(leaf);
	for (u32 i = 0; i <= ZYDIS_ISA_SET_MAX_VALUE; i++)
		has[i] = SET_OTHER;
	for (u32 i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		has[sets[i].set] = offered(leaf, &sets[i]) ? SET_RUNS : SET_ABSENT;
	has[ZYDIS_ISA_SET_XSAVEC] = SET_ABSENT;
}

void native_features(struct native_features *f)
{
	u32 leaf[LEAVES], have[LEAVES] = { 0 };

	host(leaf);
	for (u32 i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		if (offered(leaf, &sets[i]))
			have[sets[i].leaf] |= 1u << sets[i].bit;
	*f = (struct native_features){
		.leaf1_ecx = have[L1_ECX],
		.leaf1_edx = have[L1_EDX],
		.leaf7_ebx = have[L7_EBX] | FDP_EXCPTN_ONLY | DEPRECATE_FCS,
		.leaf7_ecx = have[L7_ECX],
		.leaf7_1_eax = have[L7_1_EAX],
		.leaf13_1_eax = have[LD_1_EAX],
		.ext1_ecx = have[LX1_ECX],
	};
}

u64 native_xcr0_mask(void)
{
	/* CPUID is slow where the host is a guest itself; the answer never changes. */
	static u64 known;
	u64 mask = __atomic_load_n(&known, __ATOMIC_RELAXED);
	u32 leaf[LEAVES];

	if (!mask) {
		host(leaf);
		mask = leaf[L1_ECX] >> AVX_BIT & 1 ? 7 : 3;
		__atomic_store_n(&known, mask, __ATOMIC_RELAXED);
	}
	return mask;
}
