// SPDX-License-Identifier: MIT
import type { Clock, Timer } from "../clock.ts";
import { bool, type DeviceState, type IrqLine, num, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * 8254 interval timer (Intel 8254 data sheet) at 0x40..0x43 and the speaker
 * port 0x61. Channel 0 drives IRQ 0; channel 1 counts for nobody; channel 2's
 * output is read back through port 0x61, which is how guests calibrate.
 */
export const PIT_HZ = 1193182;

class Channel {
  mode = 3;
  /** 1 low byte, 2 high byte, 3 both. */
  access = 3;
  bcd = false;
  /** Reload value, 1..65536. */
  reload = 65536;
  /** TSC at which the present count was loaded (or the gate last restarted it). */
  start = 0;
  /** A count was written since the control word. */
  loaded = false;
  gate = true;
  writeHigh = false;
  writeLow = 0;
  readHigh = false;
  /** Latched count, or -1; with how many bytes are left to read. */
  latch = -1;
  latchLeft = 0;
  latchStatus = -1;

  save(): DeviceState {
    const { mode, access, bcd, reload, start, loaded, gate } = this;
    const { writeHigh, writeLow, readHigh, latch, latchLeft, latchStatus } = this;
    return {
      mode,
      access,
      bcd,
      reload,
      start,
      loaded,
      gate,
      writeHigh,
      writeLow,
      readHigh,
      latch,
      latchLeft,
      latchStatus,
    };
  }

  restore(s: DeviceState): void {
    this.mode = num(s, "mode");
    this.access = num(s, "access");
    this.bcd = bool(s, "bcd");
    this.reload = Math.max(1, num(s, "reload"));
    this.start = num(s, "start");
    this.loaded = bool(s, "loaded");
    this.gate = bool(s, "gate");
    this.writeHigh = bool(s, "writeHigh");
    this.writeLow = num(s, "writeLow");
    this.readHigh = bool(s, "readHigh");
    this.latch = num(s, "latch");
    this.latchLeft = num(s, "latchLeft");
    this.latchStatus = num(s, "latchStatus");
  }
}

export class Pit implements PortDevice, Stateful {
  readonly #clock: Clock;
  readonly #irq: IrqLine;
  readonly #timer: Timer;
  readonly #channels = [new Channel(), new Channel(), new Channel()];
  /** TSC ticks of one PIT tick. */
  readonly #tick: number;
  #speaker = false;
  #refresh = false;

  constructor(clock: Clock, irq: IrqLine) {
    this.#clock = clock;
    this.#irq = irq;
    this.#tick = clock.period(PIT_HZ);
    this.#timer = clock.timer((deadline) => this.#fire(deadline));
    this.#channels[2].gate = false;
  }

  /** What a PC's firmware leaves: channel 0 as the 18.2 Hz tick. */
  setUpAsFirmware(): void {
    this.portOut(0x43, 1, 0x36);
    this.portOut(0x40, 1, 0);
    this.portOut(0x40, 1, 0);
  }

  /** PIT ticks since the channel was loaded. */
  #elapsed(c: Channel): number {
    return Math.max(0, Math.floor((this.#clock.now - c.start) / this.#tick));
  }

  #periodic(c: Channel): boolean {
    return c.mode === 2 || c.mode === 3;
  }

  #count(c: Channel): number {
    if (!c.loaded) return 0;
    const t = this.#elapsed(c);
    if (c.mode === 2) return c.reload - (t % c.reload);
    // Mode 3 counts down by two, twice a period.
    if (c.mode === 3) return c.reload - ((2 * t) % c.reload);
    return (c.reload - t) & 0xffff;
  }

  #output(c: Channel): boolean {
    if (!c.loaded) return c.mode !== 0;
    const t = this.#elapsed(c);
    switch (c.mode) {
      case 0:
      case 1:
        return t >= c.reload;
      case 2:
        return t % c.reload !== c.reload - 1;
      case 3:
        return t % c.reload < Math.ceil(c.reload / 2);
      default:
        return t !== c.reload;
    }
  }

  #arm(): void {
    const c = this.#channels[0];
    if (!c.loaded || c.mode === 1 || c.mode === 5) {
      // Modes 1 and 5 wait for an edge of the gate, which channel 0 does not have.
      this.#timer.stop();
      return;
    }
    this.#timer.set(c.start + c.reload * this.#tick);
  }

  #fire(deadline: number): void {
    this.#irq(false);
    this.#irq(true);
    const c = this.#channels[0];
    if (!this.#periodic(c)) {
      if (c.mode === 4) this.#irq(false);
      return;
    }
    // In periodic modes ticks that were missed (a guest that was stopped) are dropped, not made up for in a burst.
    const period = c.reload * this.#tick;
    const behind = Math.floor((this.#clock.now - deadline) / period);
    this.#timer.set(deadline + (behind + 1) * period);
  }

  #load(index: number, value: number): void {
    const c = this.#channels[index];
    let count = value;
    if (c.bcd)
      count =
        (value & 15) + ((value >> 4) & 15) * 10 + ((value >> 8) & 15) * 100 + (value >> 12) * 1000;
    c.reload = count === 0 ? (c.bcd ? 10000 : 65536) : count;
    c.start = this.#clock.now;
    c.loaded = true;
    if (index === 0) {
      if (c.mode === 0) this.#irq(false);
      this.#arm();
    }
  }

  #encode(c: Channel, count: number): number {
    if (!c.bcd) return count & 0xffff;
    const d = count % 10000;
    return (
      (d % 10) |
      ((Math.floor(d / 10) % 10) << 4) |
      ((Math.floor(d / 100) % 10) << 8) |
      (Math.floor(d / 1000) << 12)
    );
  }

  #latchCount(c: Channel): void {
    if (c.latch >= 0) return;
    c.latch = this.#encode(c, this.#count(c));
    c.latchLeft = c.access === 3 ? 2 : 1;
  }

  portIn(port: number): number {
    if (port === 0x61) {
      // Bit 4 toggles with every memory refresh; guests only look that it moves.
      this.#refresh = !this.#refresh;
      const c = this.#channels[2];
      return (
        (c.gate ? 1 : 0) |
        (this.#speaker ? 2 : 0) |
        (this.#refresh ? 0x10 : 0) |
        (this.#output(c) ? 0x20 : 0)
      );
    }
    if (port === 0x43) return 0xff;
    const c = this.#channels[port & 3];
    if (c.latchStatus >= 0) {
      const status = c.latchStatus;
      c.latchStatus = -1;
      return status;
    }
    if (c.latch >= 0) {
      const high = c.access === 2 || (c.access === 3 && c.latchLeft === 1);
      const value = high ? c.latch >> 8 : c.latch & 0xff;
      if (--c.latchLeft === 0) c.latch = -1;
      return value;
    }
    const count = this.#encode(c, this.#count(c));
    if (c.access === 1) return count & 0xff;
    if (c.access === 2) return count >> 8;
    c.readHigh = !c.readHigh;
    return c.readHigh ? count & 0xff : count >> 8;
  }

  portOut(port: number, _size: number, value: number): void {
    if (port === 0x61) {
      const c = this.#channels[2];
      const gate = (value & 1) !== 0;
      // A rising gate restarts the count in modes 1, 2, 3 and 5.
      if (gate && !c.gate && c.mode !== 0 && c.mode !== 4) c.start = this.#clock.now;
      // In modes 0 and 4 counting starts when the gate opens, if the count was loaded before.
      else if (gate && !c.gate) c.start = this.#clock.now;
      c.gate = gate;
      this.#speaker = (value & 2) !== 0;
      return;
    }
    if (port === 0x43) {
      this.#control(value);
      return;
    }
    const index = port & 3;
    const c = this.#channels[index];
    if (c.access === 1) this.#load(index, value);
    else if (c.access === 2) this.#load(index, value << 8);
    else if (!c.writeHigh) {
      c.writeLow = value;
      c.writeHigh = true;
    } else {
      c.writeHigh = false;
      this.#load(index, c.writeLow | (value << 8));
    }
  }

  #control(value: number): void {
    const select = value >> 6;
    if (select === 3) {
      // Read-back: bit 5 clear latches counts, bit 4 clear latches statuses.
      for (let i = 0; i < 3; i++) {
        if ((value & (2 << i)) === 0) continue;
        const c = this.#channels[i];
        if ((value & 0x10) === 0 && c.latchStatus < 0) {
          c.latchStatus =
            (this.#output(c) ? 0x80 : 0) |
            (c.loaded ? 0 : 0x40) |
            (c.access << 4) |
            (c.mode << 1) |
            (c.bcd ? 1 : 0);
        }
        if ((value & 0x20) === 0) this.#latchCount(c);
      }
      return;
    }
    const c = this.#channels[select];
    const access = (value >> 4) & 3;
    if (access === 0) {
      this.#latchCount(c);
      return;
    }
    const mode = (value >> 1) & 7;
    c.mode = mode > 5 ? mode - 4 : mode;
    c.access = access;
    c.bcd = (value & 1) !== 0;
    c.loaded = false;
    c.writeHigh = false;
    c.readHigh = false;
    c.latch = -1;
    if (select === 0) {
      this.#timer.stop();
      this.#irq(c.mode !== 0);
    }
  }

  save(): DeviceState {
    return {
      channels: this.#channels.map((c) => c.save()),
      speaker: this.#speaker,
      deadline: this.#timer.deadline,
    };
  }

  restore(s: DeviceState): void {
    const channels = s.channels as DeviceState[];
    for (let i = 0; i < 3; i++) this.#channels[i].restore(channels[i]);
    this.#speaker = bool(s, "speaker");
    this.#timer.set(num(s, "deadline"));
  }
}
