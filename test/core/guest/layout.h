/* SPDX-License-Identifier: MIT */
/*
 * Where things stand in the core guest. ../layout.ts has the same numbers.
 *
 * Guest physical memory (32 MiB):
 *   0x0100000 the image        0x0400000 frames for tables and pages
 *   0x0c00000 the "disk"       0x1000000 large pages, for the host to give out
 * All of it is mapped at KERNEL_BASE in every address space.
 */
#define RAM_SIZE	0x2000000
#define IMAGE_END	0x400000
#define FRAMES		0x400000
#define DISK		0xc00000
#define LARGE		0x1000000

#define USER_STUBS	0x10000000	/* the stubs again, for ring 3 */
#define USER_STACK	0x10100000	/* one page */

#define PORT_COMMAND	0xee		/* the guest waits for a command */
#define PORT_PANIC	0xed		/* an exception where none may be */

#define KERNEL_CS	0x08
#define KERNEL_DS	0x10
#define USER_DS		0x23
#define USER_CS		0x2b
#define TSS_SELECTOR	0x30

#define VECTOR_RETURN	0x80		/* ring 3 comes back */
#define VECTOR_FRAME	0x81		/* pushes a frame and drops it; ring 0 only */

#define REGISTERS	16
#define VECTORS		4
