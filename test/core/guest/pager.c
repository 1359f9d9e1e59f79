// SPDX-License-Identifier: MIT
/*
 * Frames and the "disk", and the pages that go from one to the other. Both are
 * given out first in, first out, so a page that comes back gets another frame.
 */
#include "kernel.h"

#define FRAME_COUNT	((DISK - FRAMES) / 4096)
#define SLOT_COUNT	((LARGE - DISK) / 4096)

struct ring {
	u32 first, count, size;
	u32 *item;
};
static u32 frame_items[FRAME_COUNT], slot_items[SLOT_COUNT];
static struct ring frames = { .size = FRAME_COUNT, .item = frame_items };
static struct ring slots = { .size = SLOT_COUNT, .item = slot_items };

static void put(struct ring *r, u32 item)
{
	if (r->count == r->size)
		panic(~0ull, 1, item, 0);
	r->item[(r->first + r->count++) % r->size] = item;
}

static u32 get(struct ring *r)
{
	u32 item = r->item[r->first];

	if (!r->count)
		panic(~0ull, 2, 0, 0);
	r->count--;
	r->first = (r->first + 1) % r->size;
	return item;
}

void pager_start(void)
{
	u32 at;

	for (at = FRAMES; at < DISK; at += 4096)
		put(&frames, at);
	for (at = DISK; at < LARGE; at += 4096)
		put(&slots, at);
}

u64 frame_get(void)
{
	u64 pa = get(&frames);
	u32 *p = direct(pa);
	word n = 1024;

	asm volatile("rep stosl" : "+D"(p), "+c"(n) : "a"(0) : "memory");
	return pa;
}

void frame_put(u64 pa)
{
	put(&frames, pa);
}

/* The rights of a page that is swapped out stay in its entry. */
#define KEPT	(RW | US | NX)

int pager_fault(word va)
{
	u64 root = read_cr3();
	pte *e = entry(root, va, 1, 0);
	pte old;
	u64 pa;

	if (!e || (*e & P) || !(*e & SWAPPED))
		return 0;
	old = *e;
	pa = get(&frames);
	copy_page(direct(pa), direct(old & ADDRESS));
	put(&slots, old & ADDRESS);
	*(volatile pte *)e = pa | (old & KEPT) | P;
	page_ins++;
	return 1;
}

/* swap_out(root, va): 1 when the page was there. */
u64 swap_out(const u64 *a)
{
	pte *e = entry(a[0], a[1], 1, 0);
	pte old;
	u32 slot;

	if (!e || !(*e & P))
		return 0;
	slot = get(&slots);
	old = *e;
	/* First gone, then copied: nothing may be written in between. */
	*(volatile pte *)e = slot | (old & KEPT) | SWAPPED;
	flush(a[1], 1);
	copy_page(direct(slot), direct(old & ADDRESS));
	frame_put(old & ADDRESS);
	return 1;
}

u64 frame_alloc(const u64 *a)
{
	(void)a;
	return frame_get();
}

u64 frame_free(const u64 *a)
{
	frame_put(a[0]);
	return 0;
}

u64 frames_left(const u64 *a)
{
	(void)a;
	return frames.count;
}
