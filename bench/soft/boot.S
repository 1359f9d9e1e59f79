/* SPDX-License-Identifier: MIT */
/*
 * Start of a bench guest: a flat multiboot image at 1 MiB, entered in 32-bit
 * protected mode by QEMU's -kernel and by run.c alike. It maps the first GiB
 * with 2 MiB pages, goes to 64-bit mode, calls work() and leaves its answer in
 * EAX at a write to port 0xf4, which ends both.
 */
	.set	FLAGS, 0x10000			/* load addresses are given here */
	.section .head, "ax"
	.code32
	.globl	start
start:
	jmp	begin
	.align	4
header:
	.long	0x1badb002, FLAGS, -(0x1badb002 + FLAGS)
	.long	header, start, image_end, bss_end, start
begin:
	mov	$stack_top, %esp
	mov	$pml4, %edi			/* the tables are zero: .bss */
	lea	0x1003(%edi), %eax
	mov	%eax, (%edi)
	lea	0x2003(%edi), %eax
	mov	%eax, 0x1000(%edi)
	lea	0x2000(%edi), %ebx
	mov	$0x83, %eax
	mov	$512, %ecx
1:	mov	%eax, (%ebx)
	add	$0x200000, %eax
	add	$8, %ebx
	loop	1b
	mov	%edi, %cr3
	mov	$0x620, %eax			/* PAE, OSFXSR, OSXMMEXCPT */
	mov	%eax, %cr4
	mov	$0xc0000080, %ecx
	rdmsr
	or	$0x100, %eax			/* LME */
	wrmsr
	mov	%cr0, %eax
	and	$~4, %eax
	or	$0x80000003, %eax
	mov	%eax, %cr0
	lgdt	gdtr
	ljmp	$8, $long_mode
	.code64
long_mode:
	xor	%eax, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	call	work
	mov	$0xf4, %edx
	out	%eax, %dx
	hlt

	.align	8
gdt:	.quad	0, 0x00af9b000000ffff
gdtr:	.word	15
	.long	gdt

	.bss
	.align	4096
pml4:	.skip	3 * 4096
	.skip	65536
stack_top:
