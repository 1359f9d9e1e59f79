// SPDX-License-Identifier: MIT
/** What hooks of every kind answer. The numerically greatest answer of all hooks called wins. */

/** As if nobody had looked. */
export const ALLOW = 0;
/** What the guest was about to do has no effect, and it goes on behind it. */
export const DENY = 1;
/** The instruction runs again under what holds then. */
export const RETRY = 2;
/** The hook has set the reply itself. */
export const REPLIED = 3;
export type HookAction = typeof ALLOW | typeof DENY | typeof RETRY | typeof REPLIED;
