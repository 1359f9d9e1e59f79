/* SPDX-License-Identifier: MIT */
/*
 * The core guest: a kernel of its own that the host drives. It waits at
 * PORT_COMMAND; the host writes the address of a function and its arguments
 * and lets it go on. Functions that the host calls take `const u64 *a`.
 * ../guest.ts has the other end.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include "layout.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;

#ifdef __x86_64__
#define KERNEL_BASE	0xffffffff80000000ul
#else
#define KERNEL_BASE	0xc0000000ul
#endif

static inline void *direct(u64 pa)
{
	return (void *)(word)(KERNEL_BASE + pa);
}

/* ---- paging.c: SDM vol. 3, chapter 4 ------------------------------------------- */

#ifdef PAGING_32
typedef u32 pte;
#define LEVELS		2
#define INDEX_BITS	10
#define ADDRESS		0xfffff000u
#define NX		0u
#else
typedef u64 pte;
#ifdef __x86_64__
#define LEVELS		4
#else
#define LEVELS		3
#endif
#define INDEX_BITS	9
#define ADDRESS		0x000ffffffffff000ull
#define NX		(1ull << 63)
#endif
#define ENTRIES		(4096 / sizeof(pte))
#define P		1u
#define RW		2u
#define US		4u
#define PS		0x80u
#define SWAPPED		0x200u		/* not present; the address is that of a slot of the disk */

static inline int level_shift(int level)
{
	return 12 + (level - 1) * INDEX_BITS;
}

void paging_start(void);
/* The entry of a level (1 = page table) for va; tables on the way are made if asked, else 0. */
pte *entry(u64 root, word va, int level, int make);
void flush(word va, int level);

/* ---- pager.c --------------------------------------------------------------------- */

void pager_start(void);
u64 frame_get(void);			/* zeroed */
void frame_put(u64 pa);
extern u64 page_ins;
int pager_fault(word va);		/* 1: the page is there now */

/* ---- main.c, entry.S ----------------------------------------------------------------- */

struct frame {
#ifdef __x86_64__
	word gpr[16];
#else
	word gpr[8];
#endif
	word vector, error, ip, cs, flags, sp, ss;
};

void run_kernel(word target);
void run_user(word target);
void leave_run(void) __attribute__((noreturn));
void panic(u64 vector, u64 error, u64 address, u64 ip) __attribute__((noreturn));

static inline void copy_page(void *to, const void *from)
{
	word n = 4096;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}
static inline word read_cr2(void)
{
	word v;

	asm volatile("mov %%cr2, %0" : "=r"(v));
	return v;
}
static inline word read_cr3(void)
{
	word v;

	asm volatile("mov %%cr3, %0" : "=r"(v));
	return v;
}
static inline void write_cr3(word v)
{
	asm volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}

#endif
