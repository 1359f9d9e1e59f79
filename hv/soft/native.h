/* SPDX-License-Identifier: MIT */
/*
 * native.h - what the rest of the software vCPU may ask from native*.c.
 */
#ifndef HVI_SOFT_NATIVE_H
#define HVI_SOFT_NATIVE_H

#include "cpu.h"

/* Bytes of c->xsave that HVI_GET_XSAVE and HVI_SET_XSAVE exchange: legacy, header, YMM_Hi128. */
#define NATIVE_XSAVE_SIZE	832

/*
 * Allocates c->xsave and the stubs' arena, and puts x87, SSE and AVX in their
 * state after INIT. 0 or a negative errno, nothing kept then.
 */
int native_init(struct cpu *c);
void native_free(struct cpu *c);

/* Forget every stub; the block cache that points to them must be empty. */
void native_reset(struct cpu *c);

/* No room for the stubs of one more block: flush the block cache, call native_reset. */
bool native_full(const struct cpu *c);

/* x87, SSE, AVX as INIT leaves them (the RESET of SDM 3 table 9-1 but for FCW, as Linux and Windows find it). */
void native_init_state(struct cpu *c);

/*
 * The whole image from outside, already copied into c->xsave: components that
 * its header leaves out get their initial state, and what no CPU can hold
 * (reserved MXCSR bits, an ES bit that does not follow from FCW) is corrected.
 */
void native_xsave_loaded(struct cpu *c);

/* XCR0 bits that a guest may set: 3 (x87, SSE), 7 with AVX. */
u64 native_xcr0_mask(void);

/*
 * CPUID feature bits that can be offered: the host has the feature and it is
 * implemented here. Only the bits that native.c is about.
 */
struct native_features {
	u32 leaf1_ecx, leaf1_edx;
	u32 leaf7_ebx, leaf7_ecx, leaf7_1_eax;
	u32 leaf13_1_eax;		/* XSAVEOPT */
	u32 ext1_ecx;			/* 80000001h */
};
void native_features(struct native_features *f);

#endif
