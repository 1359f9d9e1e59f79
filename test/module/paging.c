/* SPDX-License-Identifier: MIT */
/*
 * paging.c - hv/vmx/paging.c in user space.
 *
 * A CPU of a few lines walks page tables in all paging modes, with EPT keeping
 * it from writing to the tables: each accessed or dirty bit that it has to set
 * is a violation (SDM vol. 3 28.3.3.2), which guest_set_ad answers. Bochs does
 * not make these violations, so this is where they are tested. Then reads of
 * the guest's memory: remapped pages, copies, pages that nobody has touched.
 *
 * Exit code 0 when all is as it should be, 1 when not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <asm/processor-flags.h>
#include "kernel/kernel.h"

#define PAGES	64
#define P	1u
#define A	0x20u
#define D	0x40u
#define PS	0x80u
#define CHECK(ok)	check(ok, #ok, __LINE__)

static u8 ram[PAGES][4096] __attribute__((aligned(4096)));
static u8 spare[4096] __attribute__((aligned(4096)));
static bool untouched[PAGES], loaded;
static u64 copy_gfn = ~0ull, remap_gfn = ~0ull;
static u8 copy[4096];
static struct {
	u64 cr0, cr3, cr4, efer, rip, cs_base, pdpte[4];
	int bits;
} cpu;
static struct vcpu vcpu;
static int failures;
static const char *subject = "";

static void check(bool ok, const char *what, int line)
{
	if (ok)
		return;
	printf("paging.c:%d: %s: not so: %s\n", line, subject, what);
	failures++;
}

/* ---- the module around it ------------------------------------------------------------- */

u64 vmcs_read(unsigned long field)
{
	if (!loaded) {
		printf("VMREAD without a VMCS\n");
		exit(1);
	}
	if (field >= F_GUEST_PDPTE0 && field <= F_GUEST_PDPTE0 + 6)
		return cpu.pdpte[(field - F_GUEST_PDPTE0) / 2];
	switch (field) {
	case F_GUEST_CR3: return cpu.cr3;
	case F_GUEST_EFER: return cpu.efer;
	case F_GUEST_RIP: return cpu.rip;
	case F_GUEST_ES_BASE + 2 * HVI_CS: return cpu.cs_base;
	default: abort();
	}
}

u64 guest_cr0(void)
{
	return cpu.cr0;
}

u64 guest_cr4(void)
{
	return cpu.cr4;
}

int guest_code_bits(void)
{
	return cpu.bits;
}

u32 ram_index(const struct vm *vm, u64 gfn)
{
	(void)vm;
	return gfn < PAGES ? gfn : NO_PAGE;
}

void *ram_page(struct vm *vm, u32 index)
{
	(void)vm;
	if (loaded) {
		printf("sleeps with a VMCS loaded\n");
		exit(1);
	}
	untouched[index] = false;
	return ram[index];
}

u64 ept_frame(struct vm *vm, u32 view, u64 gfn)
{
	(void)vm;
	(void)view;
	if (gfn == remap_gfn)
		return (uintptr_t)spare;
	return gfn < PAGES && !untouched[gfn] ? (uintptr_t)ram[gfn] : 0;
}

u8 *step_copy(const struct vcpu *v, u64 gfn)
{
	(void)v;
	return gfn == copy_gfn ? copy : NULL;
}

int vcpu_load(struct vcpu *v)
{
	(void)v;
	CHECK(!loaded);
	loaded = true;
	return 0;
}

void vcpu_put(struct vcpu *v)
{
	(void)v;
	CHECK(loaded);
	loaded = false;
}

/* ---- tables ----------------------------------------------------------------------------- */

enum mode { UNPAGED, P32, PAE, LONG, MODES };
static const char *const names[] = { "unpaged", "32-bit", "PAE", "4-level" };
static const int levels_of[] = { 0, 2, 2, 4 };

struct entry {
	u64 gpa;
	int size;
};

static u64 get(struct entry e)
{
	u64 v = 0;

	memcpy(&v, ram[e.gpa >> 12] + (e.gpa & 4095), e.size);
	return v;
}

static void set(struct entry e, u64 v)
{
	memcpy(ram[e.gpa >> 12] + (e.gpa & 4095), &v, e.size);
}

/* Tables on pages 1.. for gva, the last entry naming page `to`; the entries from the top. */
static int build(enum mode mode, u64 gva, u64 to, struct entry *e)
{
	int n = levels_of[mode], size = mode == P32 ? 4 : 8, width = mode == P32 ? 10 : 9;

	cpu.cr0 = mode == UNPAGED ? X86_CR0_PE : X86_CR0_PE | X86_CR0_PG;
	cpu.cr4 = mode == P32 ? X86_CR4_PSE : X86_CR4_PAE;
	cpu.efer = mode == LONG ? 0x500 : 0;
	cpu.bits = mode == LONG ? 64 : 32;
	cpu.cr3 = 1 << 12;
	cpu.cs_base = 0;
	if (mode == PAE)
		cpu.pdpte[gva >> 30 & 3] = 1 << 12 | P;
	for (int i = 0; i < n; i++) {
		u32 index = gva >> (12 + width * (n - 1 - i)) & ((1 << width) - 1);

		e[i] = (struct entry){ ((u64)(i + 1) << 12) + index * size, size };
		set(e[i], (i == n - 1 ? to << 12 : (u64)(i + 2) << 12) | 0x6 | P);
	}
	return n;
}

/* The CPU: a walk for a read or a write, all tables without W. The number of violations, -1: not answered. */
static int walk_as_cpu(const struct entry *e, int n, bool write)
{
	for (int violations = 0; violations < 20; violations++) {
		int i;

		for (i = 0; i < n; i++) {
			u32 want = i == n - 1 && write ? A | D : A;

			if ((get(e[i]) & want) != want)
				break;
		}
		if (i == n)
			return violations;
		if (!guest_set_ad(&vcpu, e[i].gpa))
			return -1;
	}
	return -1;
}

static void accessed_dirty(void)
{
	static const u32 before[] = { 0, A, D, A | D };
	const u64 gva = 0x40123000;
	struct entry e[4];

	loaded = true;
	for (int mode = P32; mode < MODES; mode++)
		for (int write = 0; write < 2; write++)
			for (int b = 0; b < 4; b++)
				for (int upper = 0; upper < 2; upper++) {
					int n, need;
					u64 was;

					subject = names[mode];
					n = build(mode, gva, 20, e);
					for (int i = 0; i < n - 1 && upper; i++)
						set(e[i], get(e[i]) | A);
					set(e[n - 1], get(e[n - 1]) | before[b]);
					was = get(e[n - 1]);
					need = !(was & A) + (write && !(was & D)) + (upper ? 0 : n - 1);
					CHECK(walk_as_cpu(e, n, write) == need);
					CHECK(get(e[n - 1]) == (was | A | (write ? D : 0)));
					for (int i = 0; i < n - 1; i++)
						CHECK(get(e[i]) == ((u64)(i + 2) << 12 | 0x6 | P | A));
				}

	subject = "not the walk's write";
	build(LONG, gva, 20, e);
	set(e[3], get(e[3]) | A | D);
	CHECK(!guest_set_ad(&vcpu, e[3].gpa));		/* nothing to set */
	set(e[3], 0x1000);
	CHECK(!guest_set_ad(&vcpu, e[3].gpa));		/* not present */
	CHECK(get(e[3]) == 0x1000);
	untouched[4] = true;
	CHECK(!guest_set_ad(&vcpu, e[3].gpa));
	untouched[4] = false;
	CHECK(!guest_set_ad(&vcpu, (u64)PAGES << 12));	/* no memory */

	subject = "a table that is remapped";
	build(LONG, gva, 20, e);
	memcpy(spare, ram[4], 4096);
	remap_gfn = 4;
	CHECK(guest_set_ad(&vcpu, e[3].gpa));
	CHECK(!(get(e[3]) & A) && spare[e[3].gpa & 4095] & A);
	remap_gfn = ~0ull;
	loaded = false;
}

/* ---- reads -------------------------------------------------------------------------------- */

static void reads(void)
{
	const u64 gva = 0x40123000;
	struct entry e[4];
	u32 value;

	for (int mode = UNPAGED; mode < MODES; mode++) {
		u64 at = mode == UNPAGED ? 20 << 12 : gva;

		subject = names[mode];
		build(mode, gva, 20, e);
		memcpy(ram[20] + 8, "\x78\x56\x34\x12", 4);
		loaded = true;
		CHECK(!guest_read(&vcpu, at + 8, &value, 4) && value == 0x12345678);
		untouched[20] = true;
		CHECK(guest_read(&vcpu, at + 8, &value, 4) == EXIT_FILL && vcpu.fill_gfn == 20);
		untouched[20] = false;
		if (mode != UNPAGED) {
			CHECK(guest_read(&vcpu, at + 4094, &value, 4) == -EFAULT);	/* the next page is not mapped */
			set(e[levels_of[mode] - 1], (u64)PAGES << 12 | P);
			CHECK(guest_read(&vcpu, at + 8, &value, 4) == -EFAULT);	/* no memory there */
			untouched[2] = true;
			CHECK(guest_read(&vcpu, at + 8, &value, 4) == EXIT_FILL && vcpu.fill_gfn == 2);
			untouched[2] = false;
		}
		loaded = false;
	}

	subject = "large pages";
	loaded = true;
	build(LONG, gva, 20, e);
	set(e[2], P | PS);				/* 2 MiB at 0 */
	CHECK(!guest_read(&vcpu, (gva & ~0x1fffffull) + (20 << 12) + 8, &value, 4) && value == 0x12345678);
	set(e[1], P | PS);				/* 1 GiB at 0 */
	CHECK(!guest_read(&vcpu, (gva & ~0x3fffffffull) + (20 << 12) + 8, &value, 4) && value == 0x12345678);
	build(P32, gva, 20, e);
	set(e[0], P | PS);				/* 4 MiB at 0 */
	CHECK(!guest_read(&vcpu, (gva & ~0x3fffffull) + (20 << 12) + 8, &value, 4) && value == 0x12345678);
	loaded = false;
}

static void lengths(void)
{
	static const u8 store[] = { 0x48, 0xc7, 0x84, 0x24, 1, 2, 3, 4, 5, 6, 7, 8 };	/* mov [rsp + disp32], imm32 */
	const u64 gva = 0x40123000;
	struct entry e[4], next;

	subject = "an instruction on two pages";
	build(LONG, gva, 20, e);
	next = (struct entry){ e[3].gpa + 8, 8 };
	set(next, 30 << 12 | P);
	cpu.rip = gva + 4096 - 5;
	memcpy(ram[20] + 4096 - 5, store, 5);
	memcpy(ram[30], store + 5, sizeof(store) - 5);
	CHECK(guest_insn_length(&vcpu, NULL) == sizeof(store));
	untouched[30] = untouched[4] = true;		/* made when looked at */
	CHECK(guest_insn_length(&vcpu, NULL) == sizeof(store));
	CHECK(!untouched[30] && !untouched[4]);
	set(next, 0);
	CHECK(guest_insn_length(&vcpu, NULL) == 0);
	set(next, (u64)PAGES << 12 | P);
	CHECK(guest_insn_length(&vcpu, NULL) == 0);
	memcpy(ram[20] + 4096 - 5, "\x90", 1);		/* a short one needs no second page */
	CHECK(guest_insn_length(&vcpu, NULL) == 1);

	subject = "a remapped page and a copy";
	cpu.rip = gva;
	memcpy(ram[20], "\x90", 1);
	memcpy(spare, store, sizeof(store));
	remap_gfn = 20;
	CHECK(guest_insn_length(&vcpu, NULL) == sizeof(store));
	memcpy(copy, "\x66\x90", 2);
	copy_gfn = 20;
	CHECK(guest_insn_length(&vcpu, NULL) == 2);
	copy_gfn = remap_gfn = ~0ull;
	CHECK(guest_insn_length(&vcpu, NULL) == 1);

	subject = "16-bit code with a base";
	build(UNPAGED, 0, 0, e);
	cpu.bits = 16;
	cpu.cs_base = 20 << 12;
	cpu.rip = 0x10;
	memcpy(ram[20] + 0x10, "\xc7\x06\x34\x12\x78\x56", 6);	/* mov word [1234h], 5678h */
	CHECK(guest_insn_length(&vcpu, NULL) == 6);

	subject = "a walk for the fetch";
	build(LONG, gva, 20, e);
	cpu.rip = gva + 0x10;
	CHECK(guest_insn_length(&vcpu, &(u64){ gva + 0x10 }) == 0);
	CHECK(guest_insn_length(&vcpu, &(u64){ gva + 0x1000 }) > 0);
	cpu.rip = gva + 0xffa;
	CHECK(guest_insn_length(&vcpu, &(u64){ gva + 0x1000 }) == 0);
}

int main(void)
{
	accessed_dirty();
	reads();
	lengths();
	printf("paging: %d failures\n", failures);
	return failures != 0;
}
