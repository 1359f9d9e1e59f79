/* SPDX-License-Identifier: MIT */
/*
 * Ways of changing a page-table entry: void write_X(pte *entry, u64 operand).
 * In PAE paging an entry is 8 bytes and a register 4. The operand of AND, OR
 * and XOR is a mask, that of BTR and BTS the number of a bit.
 */
#include "asm.h"

	.text
/* DI: the entry. AX (in PAE DX:AX): the operand. */
.macro WRITER name
	.globl write_\name
write_\name:
#ifdef __x86_64__
	mov %rsi, %rax
#else
	push %edi
	push %ebx
	mov 12(%esp), %edi
	mov 16(%esp), %eax
	mov 20(%esp), %edx
#endif
.endm
.macro DONE
#ifndef __x86_64__
	pop %ebx
	pop %edi
#endif
	ret
.endm

/* An instruction over the whole entry: once for 8 bytes in long mode, twice for 4 in PAE. */
.macro OVER what
#if defined(__x86_64__) || defined(PAGING_32)
	\what AX, (DI)
#else
	\what %eax, (%edi)
	\what %edx, 4(%edi)
#endif
.endm

WRITER mov			/* in PAE the half with P last, as kernels do */
#if defined(__x86_64__) || defined(PAGING_32)
	mov AX, (DI)
#else
	mov %edx, 4(%edi)
	mov %eax, (%edi)
#endif
	DONE
WRITER xchg
	OVER xchg
	DONE
WRITER and
	OVER and
	DONE
WRITER lock_and
	OVER "lock and"
	DONE
WRITER or
	OVER or
	DONE
WRITER lock_or
	OVER "lock or"
	DONE
WRITER xor
	OVER xor
	DONE
WRITER btr			/* bits 0..31, or 63 in long mode */
	btr AX, (DI)
	DONE
WRITER lock_btr
	lock btr AX, (DI)
	DONE
WRITER bts
	bts AX, (DI)
	DONE
WRITER cmpxchg			/* in PAE CMPXCHG8B */
#if defined(__x86_64__) || defined(PAGING_32)
	mov AX, DX
1:	mov (DI), AX
	lock cmpxchg DX, (DI)
	jne 1b
#else
	mov %eax, %ebx
	mov %edx, %ecx
1:	mov (%edi), %eax
	mov 4(%edi), %edx
	lock cmpxchg8b (%edi)
	jne 1b
#endif
	DONE
WRITER stos
	cld
#if defined(__x86_64__)
	stosq
#elif defined(PAGING_32)
	stosl
#else
	stosl
	mov %edx, %eax
	stosl
#endif
	DONE
WRITER push			/* the stack pointer at the entry's end */
	mov SP, CX
#if defined(__x86_64__) || defined(PAGING_32)
	lea WORD(DI), SP
	push AX
#else
	lea 8(%edi), %esp
	push %edx
	push %eax
#endif
	mov CX, SP
	DONE
WRITER movnti
	OVER movnti
	DONE
WRITER bytes			/* one by one, the one with P last */
#ifdef PAGING_32
	.set at, 3
#else
	.set at, 7
#endif
	mov SP, CX
	push DX
	push AX
	.rept at + 1
	movb at(SP), %al
	movb %al, at(DI)
	.set at, at - 1
	.endr
	mov CX, SP
	DONE
#ifndef PAGING_32
WRITER halves			/* the half with P first */
	mov %eax, (DI)
#ifdef __x86_64__
	shr $32, %rax
	mov %eax, 4(DI)
#else
	mov %edx, 4(DI)
#endif
	DONE
WRITER halves_high_first
#ifdef __x86_64__
	mov %rax, %rdx
	shr $32, %rdx
#endif
	mov %edx, 4(DI)
	mov %eax, (DI)
	DONE
WRITER movq			/* 8 bytes at once, also in PAE */
#ifdef __x86_64__
	movq %rax, %xmm0
#else
	movd %eax, %xmm0
	movd %edx, %xmm1
	punpckldq %xmm1, %xmm0
#endif
	movq %xmm0, (DI)
	DONE
#endif
