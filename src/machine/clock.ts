// SPDX-License-Identifier: MIT
/**
 * Guest time. Its unit is the guest TSC: where the backend counts
 * instructions (HVI_CAP_ICOUNT) that makes every device deterministic, and
 * where it does not, the TSC is what the guest measures devices with anyway.
 * TSC values are `number`s: exact below 2^53, 29 days at 3.5 GHz.
 */
export class Clock {
  /** Guest TSC of the last exit. */
  now = 0;
  /** The earliest armed deadline, or Infinity. */
  next = Infinity;
  readonly khz: number;
  readonly #timers: Timer[] = [];

  constructor(khz: number) {
    this.khz = khz;
  }

  /** A timer that calls `fire(deadline)` once when guest time has reached its deadline. */
  timer(fire: (deadline: number) => void): Timer {
    const timer = new Timer(this, fire);
    this.#timers.push(timer);
    return timer;
  }

  /** Recomputes `next`; called by timers that were moved or stopped. */
  update(): void {
    let next = Infinity;
    const timers = this.#timers;
    for (let i = 0; i < timers.length; i++) {
      const deadline = timers[i].deadline;
      if (deadline < next) next = deadline;
    }
    this.next = next;
  }

  /** Moves time to `now` (never back) and fires what is due. */
  advance(now: number): void {
    if (now > this.now) this.now = now;
    if (this.now < this.next) return;
    // A periodic timer rearms itself past `now`, so one pass over the timers is enough.
    const timers = this.#timers;
    for (let i = 0; i < timers.length; i++) {
      const timer = timers[i];
      const deadline = timer.deadline;
      if (deadline <= this.now) {
        timer.deadline = Infinity;
        timer.fire(deadline);
      }
    }
    this.update();
  }

  /** TSC ticks of one period at `hz`, as a fraction. */
  period(hz: number): number {
    return (this.khz * 1000) / hz;
  }
}

export class Timer {
  deadline = Infinity;
  readonly fire: (deadline: number) => void;
  readonly #clock: Clock;

  constructor(clock: Clock, fire: (deadline: number) => void) {
    this.#clock = clock;
    this.fire = fire;
  }

  /** Arms the timer; a deadline in the past fires at the next advance. */
  set(deadline: number): void {
    const clock = this.#clock;
    const before = this.deadline;
    this.deadline = deadline;
    if (deadline <= clock.next) clock.next = deadline;
    else if (before === clock.next) clock.update();
  }

  stop(): void {
    if (this.deadline !== Infinity) this.set(Infinity);
  }
}
