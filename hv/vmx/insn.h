/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* insn.h - the length of an instruction. Builds in user space too: test/module compares it with Zydis. */
#ifndef HVI_INSN_H
#define HVI_INSN_H

#include <linux/types.h>

#define INSN_MAX	15	/* SDM vol. 2, 2.3.11 */

/*
 * Length of the instruction at bytes, of which n can be read, in code of 16,
 * 32 or 64 bits; 0 when it is not known. That it is an instruction is taken
 * for granted: its own access to memory made the exit, so the CPU has decoded
 * it.
 */
int insn_length(const __u8 *bytes, unsigned int n, int bits);

#endif
