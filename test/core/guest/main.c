// SPDX-License-Identifier: MIT
/* Descriptor tables, exceptions, and the loop that takes commands. */
#include "kernel.h"

#define PAGE	__attribute__((aligned(4096)))

/* Each on a page of its own, so that a hook on it meets nothing else. */
u64 gdt[512] PAGE;
u64 idt[512] PAGE;
u32 tss[1024] PAGE;
u8 kernel_stack[4096] PAGE;		/* the commands' */
u8 trap_stack[4096] PAGE;		/* out of ring 3 */
u8 fault_stack[4096] PAGE;		/* #DF, in long mode */

/* ---- the mailbox ---------------------------------------------------------------- */

volatile u64 call_function PAGE;
u64 call_args[6];
volatile u64 call_result;
u64 regs_in[REGISTERS], regs_out[REGISTERS];
u64 flags_in, flags_out;
u8 vectors_in[VECTORS * 32] __attribute__((aligned(32)));
u8 vectors_out[VECTORS * 32] __attribute__((aligned(32)));
/* What a stub ran into; the vector is ~0 when it came to its end. */
u64 fault_vector, fault_error, fault_address, fault_ip;
u64 page_ins;				/* by the pager, since the start */
volatile u64 stop;			/* ends spin() */
u8 have_avx;

word run_target, run_sp;
static int running;

extern char handlers[], return_handler[], frame_handler[], stubs_start[], stub_user_return[];

/* ---- descriptor tables -------------------------------------------------------------- */

static void gate(int vector, char *handler, int dpl, int ist)
{
	word h = (word)handler;
	u64 low = (h & 0xffff) | (KERNEL_CS << 16) | ((u64)(h >> 16 & 0xffff) << 48) | (u64)ist << 32 |
		  (u64)(0x8e | dpl << 5) << 40;

#ifdef __x86_64__
	idt[2 * vector] = low;
	idt[2 * vector + 1] = h >> 32;
#else
	idt[vector] = low;
#endif
}

static void descriptor_tables(void)
{
	struct { u16 limit; word base; } __attribute__((packed)) table;
	word at = (word)tss;
	int v;

#ifdef __x86_64__
	gdt[1] = 0x00af9b000000ffff;
	gdt[5] = 0x00affb000000ffff;
	*(u64 *)&tss[1] = (word)trap_stack + sizeof(trap_stack);
	*(u64 *)&tss[9] = (word)fault_stack + sizeof(fault_stack);
	gdt[7] = at >> 32;
#else
	gdt[1] = 0x00cf9b000000ffff;
	gdt[5] = 0x00cffb000000ffff;
	tss[1] = (word)trap_stack + sizeof(trap_stack);
	tss[2] = KERNEL_DS;
#endif
	gdt[2] = 0x00cf93000000ffff;
	gdt[4] = 0x00cff3000000ffff;
	gdt[6] = 0x67 | (u64)(at & 0xffffff) << 16 | 0x89ull << 40 | (u64)(at >> 24 & 0xff) << 56;
	tss[25] = 0x680000;		/* no I/O bitmap */

	for (v = 0; v < 32; v++)
		gate(v, handlers + 16 * v, v == 3 ? 3 : 0, v == 8 && sizeof(word) == 8);
	gate(VECTOR_RETURN, return_handler, 3, 0);
	gate(VECTOR_FRAME, frame_handler, 0, 0);

	table.limit = 0x3f;
	table.base = (word)gdt;
	asm volatile("lgdt %0" : : "m"(table));
	table.limit = sizeof(idt) - 1;
	table.base = (word)idt;
	asm volatile("lidt %0" : : "m"(table));
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
	/* Ring 3's data segment serves ring 0 too, so an IRET out leaves it. */
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs" : : "r"(USER_DS));
	asm volatile("mov %0, %%ss" : : "r"(KERNEL_DS));
}

static void vector_unit(void)
{
	u32 a = 1, b, c = 0, d;
	word cr;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	asm volatile("mov %%cr4, %0" : "=r"(cr));
	cr |= 0x600;			/* OSFXSR, OSXMMEXCPT */
	if (c & (1u << 26))
		cr |= 1u << 18;		/* OSXSAVE */
	asm volatile("mov %0, %%cr4" : : "r"(cr));
	have_avx = (c >> 28) & 1;
	if (have_avx)
		asm volatile("xsetbv" : : "a"(7), "d"(0), "c"(0));
}

/* ---- exceptions ------------------------------------------------------------------------ */

static void out(u16 port)
{
	asm volatile("outb %%al, %w0" : : "d"(port), "a"(0) : "memory");
}

void panic(u64 vector, u64 error, u64 address, u64 ip)
{
	fault_vector = vector;
	fault_error = error;
	fault_address = address;
	fault_ip = ip;
	for (;;)
		out(PORT_PANIC);
}

void trap(struct frame *f)
{
	word address = read_cr2();
	unsigned int i;

	if (f->vector == 14 && !(f->error & P) && pager_fault(address))
		return;
	if (!running)
		panic(f->vector, f->error, address, f->ip);
	fault_vector = f->vector;
	fault_error = f->error;
	fault_address = f->vector == 14 ? address : 0;
	fault_ip = f->ip;
	for (i = 0; i < sizeof(f->gpr) / sizeof(word); i++)
		regs_out[i] = f->gpr[i];
	regs_out[4] = 0;		/* the kernel's own stack, of no interest */
	flags_out = f->flags;
	leave_run();
}

/* ---- commands ---------------------------------------------------------------------------- */

/* run(stub, user, root): the exception it ended with, or ~0. Root 0 is the current one. */
u64 run(const u64 *a)
{
	word target = a[0];

	if (a[2])
		write_cr3(a[2]);
	fault_vector = ~0ull;
	fault_error = fault_address = fault_ip = 0;
	if (a[1]) {
		word *top = (word *)(USER_STACK + 4096 - sizeof(word));

		*top = (word)stub_user_return - (word)stubs_start + USER_STUBS;
		target = target - (word)stubs_start + USER_STUBS;
	}
	running = 1;
	if (a[1])
		run_user(target);
	else
		run_kernel(target);
	running = 0;
	return fault_vector;
}

/* spin(): until the host says stop; how often it went round. */
u64 spin(const u64 *a)
{
	u64 n = 0;

	(void)a;
	while (!stop)
		n++;
	stop = 0;
	return n;
}

/* checksum(va, length): FNV-1a, 32 bits. */
u64 checksum(const u64 *a)
{
	const volatile u8 *p = (const volatile u8 *)(word)a[0];
	u32 sum = 0x811c9dc5;
	u64 n;

	for (n = 0; n < a[1]; n++)
		sum = (sum ^ p[n]) * 0x01000193;
	return sum;
}

void kernel_main(void)
{
	pager_start();
	paging_start();
	descriptor_tables();
	vector_unit();
	for (;;) {
		out(PORT_COMMAND);
		call_result = ((u64 (*)(const u64 *))(word)call_function)(call_args);
	}
}
