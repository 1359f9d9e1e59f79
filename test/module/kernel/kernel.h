/* SPDX-License-Identifier: MIT */
/*
 * kernel.h - what hv/vmx/paging.c needs of the kernel and of hvi_vmx.h, in user
 * space. It comes before that header and stands for it.
 */
#ifndef HVI_VMX_H
#define HVI_VMX_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "../../../hv/abi/hvi.h"
#include "../../../hv/vmx/vmcs.h"

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE_SHIFT	12
#define PAGE_SIZE	4096ul
#define PAGE_MASK	(~4095ul)
#define NO_PAGE		0xffffffffu
#define EXIT_FILL	0x10000
#define READ_ONCE(x)	(*(volatile __typeof__(x) *)&(x))
#define cmpxchg(p, old, new)	__sync_val_compare_and_swap(p, old, new)
#define min_t(type, a, b)	((type)(a) < (type)(b) ? (type)(a) : (type)(b))
#define __va(frame)	((u8 *)(uintptr_t)(frame))

struct vm;
struct vcpu {
	struct vm *vm;
	u32 view;
	u64 fill_gfn;
};

u64 vmcs_read(unsigned long field);
u64 guest_cr0(void);
u64 guest_cr4(void);
int guest_code_bits(void);
u32 ram_index(const struct vm *vm, u64 gfn);
void *ram_page(struct vm *vm, u32 index);
u64 ept_frame(struct vm *vm, u32 view, u64 gfn);
u8 *step_copy(const struct vcpu *v, u64 gfn);
int vcpu_load(struct vcpu *v);
void vcpu_put(struct vcpu *v);

/* The file's own. */
void *guest_phys(struct vcpu *v, u64 gpa);
int guest_read(struct vcpu *v, u64 gva, void *to, u32 size);
int guest_insn_length(struct vcpu *v, const u64 *walked);
bool guest_set_ad(struct vcpu *v, u64 entry_gpa);

#endif
