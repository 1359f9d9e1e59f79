/* SPDX-License-Identifier: MIT */
/* Real mode: linked at 0, loaded with CS.base = 0. */
#include "guest.inc"
	.code16
	.text
	.globl _start
_start:
	HANDLERS iretw, %sp, 2

CASE nothing
	DONE
CASE ld1
	movb (%si), %al
	DONE
CASE ld4
	movl (%si), %eax
	DONE
CASE st1
	movb %al, (%di)
	DONE
CASE st2
	movw %ax, (%di)
	DONE
CASE st4
	movl %eax, (%di)
	DONE
CASE st2_es
	movw %ax, %es:(%di)
	DONE
CASE load_es
	movw %ax, %es
	movw %bx, %es:(%di)
	DONE
CASE push_ax
	pushw %ax
	DONE
CASE int_30
	int $0x30
	DONE
CASE int3
	int3
	DONE
CASE div0
	divb %cl
	DONE
CASE ud2
	ud2
	DONE
CASE rep_stosw
	rep stosw
	DONE
CASE far_jmp
	ljmp *(%si)
CASE call_far
	lcall *(%si)
	DONE
CASE lidt
	lidtl (%si)
	DONE
CASE sgdt
	sgdt (%di)
	DONE
CASE out2
	outw %ax, %dx
	DONE
CASE to_prot			/* EAX = CR0 with PE; then 32-bit code through a far jump */
	movl %eax, %cr0
	ljmpl $0x08, $1f
	.code32
1:	movl $0x12345678, %ebx
	DONE
	.code16
CASE vmcall
	vmcall
	DONE
