/* SPDX-License-Identifier: MIT */
/*
 * peers.c - what the benchmarks of guest memory and decoding are compared with:
 * a bare page walk in C over the same tables, and native Zydis on the same bytes.
 * Each function does n operations and returns a checksum; the caller takes the time.
 */
#include <stdint.h>
#include <string.h>
#include <Zydis/Zydis.h>

#define PAGE_BITS 0x000ffffffffff000ULL

static uint64_t walk(const uint8_t *ram, uint64_t root, uint64_t gva)
{
	uint64_t entry = root;

	for (int shift = 39; shift >= 12; shift -= 9) {
		memcpy(&entry, ram + (entry & PAGE_BITS) + ((gva >> shift) & 0x1ff) * 8, 8);
		if (!(entry & 1))
			return ~0ULL;
		if (shift < 39 && shift > 12 && (entry & 0x80)) {
			uint64_t below = (1ULL << shift) - 1;

			return (entry & PAGE_BITS & ~below) | (gva & below);
		}
	}
	return (entry & PAGE_BITS) | (gva & 0xfff);
}

/* The pages of the bench in its order: see address() in memory.bench.ts. */
static uint64_t address(uint64_t base, uint32_t i, uint32_t pages)
{
	return base + (uint64_t)((i * 197) & (pages - 1)) * 4096 + ((i * 8) & 0xff8);
}

uint32_t peer_translate(const uint8_t *ram, uint64_t root, int64_t base, uint32_t pages, uint32_t n)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += walk(ram, root, address(base, i, pages));
	return (uint32_t)sum | 1;
}

uint32_t peer_read(const uint8_t *ram, uint64_t root, int64_t base, uint32_t pages, uint32_t n)
{
	uint64_t sum = 0, value;

	for (uint32_t i = 0; i < n; i++) {
		memcpy(&value, ram + walk(ram, root, address(base, i, pages)), 8);
		sum += value;
	}
	return (uint32_t)sum | 1;
}

uint32_t peer_decode(const uint8_t *code, const uint32_t *starts, uint32_t count, uint32_t n)
{
	ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction insn;
	ZydisDecoder decoder;
	uint32_t sum = 0;

	if (ZYAN_FAILED(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)))
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder, code + starts[i % count], 15, &insn,
						       operands)))
			return 0;
		sum += insn.length;
	}
	return sum;
}
