// SPDX-License-Identifier: MIT
/** How much the scenarios do: everything where it is quick, less in the lab. */

export interface Effort {
  /** Rounds of the soak. */
  readonly rounds: number;
  /** Writes of a hook storm. */
  readonly storm: number;
  /** Of the stubs, one in so many. */
  readonly every: number;
  /** Each scenario in each paging mode; otherwise each in one. */
  readonly everyMode: boolean;
}

/** HVI_CORE_ROUNDS: more or fewer rounds of the soak. */
export const FULL: Effort = {
  rounds: Number(process.env.HVI_CORE_ROUNDS ?? 1000),
  storm: 100_000,
  every: 1,
  everyMode: true,
};
/** For a machine that is emulated: in minutes, and in as little as finds most. */
const EVERY: Effort = { rounds: 20, storm: 1000, every: 1, everyMode: true };
const BRIEF: Effort = { rounds: 3, storm: 100, every: 8, everyMode: false };

export const EFFORTS: Readonly<Record<string, Effort>> = { full: FULL, every: EVERY, brief: BRIEF };
