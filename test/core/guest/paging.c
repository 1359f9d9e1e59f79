// SPDX-License-Identifier: MIT
/* Address spaces: the kernel's half is one for all, the lower half is each one's own. */
#include "kernel.h"

#define TABLE_FLAGS	(P | RW | US)
/* PAE's four top entries have no rights (SDM vol. 3, table 4-8). */
#define IS_PDPTE(level)	(LEVELS == 3 && (level) == 3)

static u64 kernel_root;
extern char stubs_start[], stubs_end[], kernel_end[];

static unsigned int index(word va, int level)
{
	return (va >> level_shift(level)) & (ENTRIES - 1);
}

void flush(word va, int level)
{
	/* PDPTEs are in the CPU since MOV CR3. A table's change reaches further than one page. */
	if (level == 1)
		asm volatile("invlpg (%0)" : : "r"(va) : "memory");
	else
		write_cr3(read_cr3());
}

pte *entry(u64 root, word va, int level, int make)
{
	pte *table = direct(root & ADDRESS);
	int at;

	for (at = LEVELS; at > level; at--) {
		pte *e = table + index(va, at);

		if (!(*e & P)) {
			if (!make)
				return 0;
			*(volatile pte *)e = frame_get() | (IS_PDPTE(at) ? P : TABLE_FLAGS);
			if (IS_PDPTE(at))
				flush(va, at);
		} else if ((*e & PS) && !IS_PDPTE(at)) {
			return 0;
		}
		table = direct(*e & ADDRESS);
	}
	return table + index(va, level);
}

/* Writes an entry and makes the tables on the way. */
static void set(u64 root, word va, int level, pte value)
{
	*(volatile pte *)entry(root, va, level, 1) = value;
}

void paging_start(void)
{
	u64 pa;

	kernel_root = frame_get();
	for (pa = 0; pa < IMAGE_END; pa += 4096)
		set(kernel_root, KERNEL_BASE + pa, 1, pa | P | RW);
	for (pa = IMAGE_END; pa < RAM_SIZE; pa += 1ul << level_shift(2))
		set(kernel_root, KERNEL_BASE + pa, 2, pa | P | RW | PS | NX);
	write_cr3(kernel_root);
}

/* space_create(): its root, which goes into CR3. */
u64 space_create(const u64 *a)
{
	u64 root = frame_get();
	const pte *from = direct(kernel_root);
	pte *to = direct(root);
	word at;
	unsigned int i;

	(void)a;
	for (i = index(KERNEL_BASE, LEVELS); i < (LEVELS == 3 ? 4 : ENTRIES); i++)
		to[i] = from[i];
	for (at = 0; at < (word)(stubs_end - stubs_start); at += 4096)
		set(root, USER_STUBS + at, 1, ((word)stubs_start - KERNEL_BASE + at) | P | US);
	set(root, USER_STACK, 1, frame_get() | P | RW | US | NX);
	return root;
}

/* space_pair(root): another root with the same tables below, as page-table isolation has for ring 3. */
u64 space_pair(const u64 *a)
{
	u64 root = frame_get();

	copy_page(direct(root), direct(a[0] & ADDRESS));
	return root;
}

static void destroy(u64 pa, int level, unsigned int count)
{
	pte *table = direct(pa);
	word n = count * sizeof(pte) / 4;
	unsigned int i;

	for (i = 0; level > 1 && i < count; i++) {
		if ((table[i] & P) && !((table[i] & PS) && !IS_PDPTE(level)))
			destroy(table[i] & ADDRESS, level - 1, ENTRIES);
	}
	asm volatile("rep stosl" : "+D"(table), "+c"(n) : "a"(0) : "memory");
	frame_put(pa);
}

/*
 * space_destroy(root): its tables, cleared one by one; frames of pages are the
 * host's to free, but for the stack.
 */
u64 space_destroy(const u64 *a)
{
	pte *stack = entry(a[0], USER_STACK, 1, 0);

	if (read_cr3() == a[0])
		write_cr3(kernel_root);
	if (stack)
		frame_put(*stack & ADDRESS);
	destroy(a[0], LEVELS, index(KERNEL_BASE, LEVELS));
	return 0;
}

/* space_switch(root): 0 is the kernel's own. */
u64 space_switch(const u64 *a)
{
	write_cr3(a[0] ? a[0] : kernel_root);
	return 0;
}

/* entry_at(root, va, level): physical address of the entry, ~0 without a table. */
u64 entry_at(const u64 *a)
{
	pte *e = entry(a[0], a[1], a[2], 0);

	return e ? (word)e - KERNEL_BASE : ~0ull;
}

/* entry_write(root, va, level, operand, writer): by one of writers.S; tables on the way are made. */
u64 entry_write(const u64 *a)
{
	pte *e = entry(a[0], a[1], a[2], 1);

	if (!e)
		return ~0ull;
	((void (*)(pte *, u64))(word)a[4])(e, a[3]);
	flush(a[1], a[2]);
	return *e;
}

/* split(root, va): a large page becomes a table of small ones. */
u64 split(const u64 *a)
{
	pte *e = entry(a[0], a[1], 2, 0);
	pte old, *table;
	u64 pa;
	unsigned int i;

	if (!e || !(*e & P) || !(*e & PS))
		return 0;
	old = *e;
	pa = frame_get();
	table = direct(pa);
	for (i = 0; i < ENTRIES; i++)
		table[i] = ((old & ADDRESS) + i * 4096) | (old & (P | RW | US | NX));
	*(volatile pte *)e = pa | TABLE_FLAGS;
	flush(a[1], 2);
	return 1;
}

/* merge(root, va): the other way round, with the frame and rights of its first page. */
u64 merge(const u64 *a)
{
	pte *e = entry(a[0], a[1], 2, 0);
	u64 pa;

	if (!e || !(*e & P) || (*e & PS))
		return 0;
	pa = *e & ADDRESS;
	*(volatile pte *)e = (*(pte *)direct(pa) & (ADDRESS | P | RW | US | NX)) | PS;
	flush(a[1], 2);
	frame_put(pa);
	return 1;
}

/* storm(root, va, level, first, second, count): an entry rewritten with one value and the other in turn. */
u64 storm(const u64 *a)
{
	volatile pte *e = entry(a[0], a[1], a[2], 0);
	u64 n;

	if (!e)
		return 0;
	for (n = 0; n < a[5]; n++)
		*e = n & 1 ? a[4] : a[3];
	flush(a[1], a[2]);
	return n;
}
