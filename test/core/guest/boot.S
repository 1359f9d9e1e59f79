/* SPDX-License-Identifier: MIT */
/*
 * Entered in flat 32-bit protected mode without paging. Makes first tables
 * that map RAM at 0 and at KERNEL_BASE by large pages, and goes to the upper
 * half; kernel_main then makes the real ones.
 */
#include "asm.h"

	.section .boot, "ax"
	.code32
	.globl _start
_start:
	cld
	mov $boot_stack, %esp
#ifdef PAGING_32
	mov $RAM_SIZE / 0x400000, %ecx
1:	mov %ecx, %eax
	dec %eax
	mov %eax, %edi
	shl $22, %eax
	or $0x83, %eax
	mov %eax, boot_top(,%edi,4)
	mov %eax, boot_top + 4 * 768(,%edi,4)
	loop 1b
	mov %cr4, %eax
	or $0x10, %eax			/* PSE */
	mov %eax, %cr4
#else
	mov $RAM_SIZE / 0x200000, %ecx
1:	mov %ecx, %eax
	dec %eax
	mov %eax, %edi
	shl $21, %eax
	or $0x83, %eax
	mov %eax, boot_pd(,%edi,8)
	loop 1b
#ifdef __x86_64__
	movl $boot_pdpt + 3, boot_top
	movl $boot_pdpt + 3, boot_top + 8 * 511
	movl $boot_pd + 3, boot_pdpt
	movl $boot_pd + 3, boot_pdpt + 8 * 510
#else
	movl $boot_pd + 1, boot_top
	movl $boot_pd + 1, boot_top + 8 * 3
#endif
	mov %cr4, %eax
	or $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
#ifdef __x86_64__
	or $0x901, %eax			/* NXE, LME, SCE */
#else
	or $0x800, %eax			/* NXE */
#endif
	wrmsr
#endif
	mov $boot_top, %eax
	mov %eax, %cr3
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	lgdt boot_gdtr
	ljmp $KERNEL_CS, $2f
#ifdef __x86_64__
	.code64
2:	movabs $upper, %rax
#else
2:	mov $upper, %eax
#endif
	jmp *AX

	.balign 8
boot_gdt:
	.quad 0
#ifdef __x86_64__
	.quad 0x00af9b000000ffff
#else
	.quad 0x00cf9b000000ffff
#endif
	.quad 0x00cf93000000ffff
boot_gdtr:
	.word 23
	.long boot_gdt
	.balign 16
	.skip 256
boot_stack:
	.balign 4096
boot_top:
	.skip 4096
boot_pdpt:
	.skip 4096
boot_pd:
	.skip 4096

	.text
upper:
	mov $kernel_stack + 4096, SP
	call kernel_main
	ud2
