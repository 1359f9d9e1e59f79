/* SPDX-License-Identifier: MIT */
/*
 * insn.c - hv/vmx/insn.c against Zydis: insn [--seed N] [--random N]
 *
 * Every opcode of every map with every ModRM, prefixes before it and random
 * bytes behind it, then random strings; 16, 32 and 64-bit code. Where Zydis
 * has an instruction and insn_length has a length, they are the same. Nothing
 * behind the bytes given is read.
 *
 * Exit code 0 when all agree, 1 when not, 2 for bad arguments.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <Zydis/Zydis.h>
#include "../../hv/vmx/insn.h"

#define MODES 3
static const int bits_of[MODES] = { 16, 32, 64 };
static ZydisDecoder decoder[MODES];

static unsigned long strings, valid, known, mismatches;
static uint8_t *end;			/* of a page with nothing behind it */

static uint64_t state;

static uint32_t random32(void)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return state >> 33;
}

static int zydis(int mode, const uint8_t *bytes)
{
	ZydisDecodedInstruction insn;
	ZydisDecoderContext context;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder[mode], &context, bytes, INSN_MAX, &insn)))
		return 0;
	return insn.length;
}

static void mismatch(int mode, const uint8_t *bytes, const char *what, int z, int have)
{
	if (mismatches++ >= 50)
		return;
	printf("%d-bit,", bits_of[mode]);
	for (int i = 0; i < INSN_MAX; i++)
		printf(" %02x", bytes[i]);
	printf(": %s: Zydis %d, insn_length %d\n", what, z, have);
}

static int length(int mode, const uint8_t *bytes, unsigned int n)
{
	memcpy(end - n, bytes, n);
	return insn_length(end - n, n, bits_of[mode]);
}

static void compare(int mode, const uint8_t *bytes)
{
	int z = zydis(mode, bytes), have = length(mode, bytes, INSN_MAX);

	strings++;
	valid += z > 0;
	known += z > 0 && have > 0;
	if (z && have && z != have)
		mismatch(mode, bytes, "its length", z, have);
	if (!have)
		return;
	if (length(mode, bytes, have) != have)
		mismatch(mode, bytes, "only its bytes", z, have);
	if (length(mode, bytes, have - 1))
		mismatch(mode, bytes, "a byte missing", z, have);
}

static const struct {
	uint8_t n, byte[4];
} prefixes[] = {
	{ 0, { 0 } }, { 1, { 0x66 } }, { 1, { 0x67 } }, { 1, { 0xf2 } }, { 1, { 0xf3 } }, { 1, { 0xf0 } },
	{ 1, { 0x48 } }, { 1, { 0x41 } }, { 2, { 0x66, 0x48 } }, { 2, { 0x48, 0x66 } }, { 2, { 0x66, 0x67 } },
	{ 2, { 0x66, 0xf3 } }, { 3, { 0x65, 0xf2, 0x4f } }, { 4, { 0x2e, 0x36, 0x64, 0x40 } },
}, leads[] = {
	{ 0, { 0 } }, { 1, { 0x0f } }, { 2, { 0x0f, 0x38 } }, { 2, { 0x0f, 0x3a } },
	{ 2, { 0xc5, 0xf8 } }, { 2, { 0xc5, 0xe5 } },
	{ 3, { 0xc4, 0xe1, 0x79 } }, { 3, { 0xc4, 0xe2, 0x79 } }, { 3, { 0xc4, 0xe3, 0x79 } }, { 3, { 0xc4, 0xe2, 0xe5 } },
	{ 4, { 0x62, 0xf1, 0x7c, 0x48 } }, { 4, { 0x62, 0xf2, 0x7d, 0x48 } }, { 4, { 0x62, 0xf3, 0x7d, 0x28 } },
	{ 4, { 0x62, 0xf5, 0x7c, 0x08 } }, { 4, { 0x62, 0xf6, 0x7d, 0x08 } }, { 4, { 0x62, 0xf1, 0xfd, 0x4b } },
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void fill(uint8_t *bytes)
{
	for (int i = 0; i < INSN_MAX + 1; i++)
		bytes[i] = random32();
}

/* Prefixes, what leads to a map, opcode, ModRM. */
static void structured(int mode)
{
	uint8_t bytes[INSN_MAX + 1];

	for (size_t p = 0; p < COUNT(prefixes); p++)
		for (size_t l = 0; l < COUNT(leads); l++)
			for (int op = 0; op < 256; op++)
				for (int m = 0; m < 256; m++) {
					uint8_t *at = bytes;

					fill(bytes);
					memcpy(at, prefixes[p].byte, prefixes[p].n);
					at += prefixes[p].n;
					memcpy(at, leads[l].byte, leads[l].n);
					at += leads[l].n;
					*at++ = op;
					*at = m;
					compare(mode, bytes);
				}
}

/* Any bytes, and up to 14 prefixes before them. */
static void any(int mode)
{
	static const uint8_t prefix[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48, 0x40 };
	uint8_t bytes[INSN_MAX + 1];
	int n = random32() % 4 ? 0 : random32() % INSN_MAX;

	fill(bytes);
	for (int i = 0; i < n; i++)
		bytes[i] = prefix[random32() % sizeof(prefix)];
	compare(mode, bytes);
}

int main(int argc, char **argv)
{
	static const ZydisMachineMode machine[MODES] = {
		ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_MACHINE_MODE_LONG_64,
	};
	static const ZydisStackWidth stack[MODES] = { ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_64 };
	unsigned long count = 1000000;
	uint8_t *page;

	state = 1;
	for (int i = 1; i < argc; i += 2) {
		if (i + 1 < argc && !strcmp(argv[i], "--seed"))
			state = strtoull(argv[i + 1], NULL, 0);
		else if (i + 1 < argc && !strcmp(argv[i], "--random"))
			count = strtoul(argv[i + 1], NULL, 0);
		else {
			fprintf(stderr, "insn: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || mprotect(page + 4096, 4096, PROT_NONE)) {
		perror("insn");
		return 2;
	}
	end = page + 4096;
	for (int m = 0; m < MODES; m++) {
		ZydisDecoderInit(&decoder[m], machine[m], stack[m]);
		structured(m);
		for (unsigned long k = 0; k < count; k++)
			any(m);
	}
	printf("strings %lu valid %lu known %lu mismatches %lu\n", strings, valid, known, mismatches);
	return mismatches != 0;
}
