/* SPDX-License-Identifier: MIT */
/* One source for 64 and 32 bits: registers and slots of the machine's word. */
#include "layout.h"
#ifdef __x86_64__
#define AX %rax
#define CX %rcx
#define DX %rdx
#define BX %rbx
#define SP %rsp
#define BP %rbp
#define SI %rsi
#define DI %rdi
#define WORD 8
#define MEM(symbol) symbol(%rip)
#define IRET iretq
#else
#define AX %eax
#define CX %ecx
#define DX %edx
#define BX %ebx
#define SP %esp
#define BP %ebp
#define SI %esi
#define DI %edi
#define WORD 4
#define MEM(symbol) symbol
#define IRET iretl
#endif
