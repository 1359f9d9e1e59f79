/* SPDX-License-Identifier: MIT */
/*
 * 32-bit protected mode: the same image runs unpaged, with 4-byte paging (PSE
 * or not) and with PAE; the runner makes the tables.
 */
#include "guest.inc"
	.code32
	.text
	.globl _start
_start:
	HANDLERS iretl, %esp, 4

CASE nothing
	DONE
CASE ld1
	movb (%esi), %al
	DONE
CASE ld2
	movw (%esi), %ax
	DONE
CASE ld4
	movl (%esi), %eax
	DONE
CASE st1
	movb %al, (%edi)
	DONE
CASE st2
	movw %ax, (%edi)
	DONE
CASE st4
	movl %eax, (%edi)
	DONE
CASE st16
	movups %xmm0, (%edi)
	DONE
CASE add4
	addl %eax, (%edi)
	DONE
CASE lock_cmpxchg8b
	lock cmpxchg8b (%edi)
	DONE
CASE rep_movsl
	rep movsl
	DONE
CASE push_eax
	pushl %eax
	DONE
CASE pusha
	pushal
	DONE
CASE popa
	popal
	DONE
CASE call_eax
	call *%eax
	DONE
CASE jmp_eax
	jmp *%eax
CASE int_30
	int $0x30
	DONE
CASE int3
	int3
	DONE
CASE into
	into
	DONE
CASE bound
	bound %eax, (%esi)
	DONE
CASE ud2
	ud2
	DONE
CASE load_es
	movw %ax, %es
	DONE
CASE les_mem
	les (%esi), %eax
	DONE
CASE ld4_fs
	movl %fs:(%esi), %eax
	DONE
CASE jmp_far
	ljmp *(%esi)
CASE ltr
	ltr %ax
	DONE
CASE iret
	iretl
CASE out1
	outb %al, %dx
	DONE
CASE mov_cr0
	movl %eax, %cr0
	DONE
CASE mov_cr3
	movl %eax, %cr3
	DONE
CASE vmcall
	vmcall
	DONE
CASE sysenter
	sysenter
CASE aam0
	aam $0
	DONE
