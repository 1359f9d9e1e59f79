// SPDX-License-Identifier: MIT
import { bool, type DeviceState, num, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * The pair of 8259A interrupt controllers (Intel 8259A data sheet): ports
 * 0x20/0x21 and 0xa0/0xa1, edge/level registers at 0x4d0/0x4d1 as in PIIX.
 */
class Chip {
  irr = 0;
  imr = 0xff;
  isr = 0;
  /** Levels of the eight inputs as driven now. */
  lines = 0;
  /** 1 = level-triggered. */
  elcr = 0;
  base = 0;
  /** 0: ready; 2, 3, 4: that initialisation word comes next. */
  init = 0;
  icw4 = false;
  single = false;
  autoEoi = false;
  rotateAuto = false;
  readIsr = false;
  poll = false;
  special = false;
  specialNested = false;
  /** The input with the highest priority. */
  top = 0;
  readonly master: boolean;

  constructor(master: boolean) {
    this.master = master;
  }

  set(line: number, level: boolean): void {
    const bit = 1 << line;
    if ((this.elcr & bit) !== 0) {
      if (level) this.irr |= bit;
      else this.irr &= ~bit;
    } else if (level && (this.lines & bit) === 0) {
      // A real 8259A wants the line held until the acknowledge; PC emulators latch the edge, and images rely on it.
      this.irr |= bit;
    }
    if (level) this.lines |= bit;
    else this.lines &= ~bit;
  }

  /** Input 2 of the master: what the slave's INTR is now. */
  cascade(level: boolean): void {
    if (level) this.irr |= 4;
    else this.irr &= ~4;
  }

  /** The input to serve next, or -1. */
  next(): number {
    const requests = this.irr & ~this.imr;
    if (requests === 0) return -1;
    for (let i = 0; i < 8; i++) {
      const line = (this.top + i) & 7;
      const bit = 1 << line;
      if ((this.isr & bit) !== 0) {
        // In special mask mode a masked line in service blocks nobody; in special
        // fully nested mode the slave may interrupt its own service routine.
        const blocks =
          !(this.special && (this.imr & bit) !== 0) &&
          !(this.specialNested && this.master && line === 2);
        if (blocks) return -1;
      }
      if ((requests & bit) !== 0) return line;
    }
    return -1;
  }

  acknowledge(line: number): void {
    const bit = 1 << line;
    if ((this.elcr & bit) === 0) this.irr &= ~bit;
    if (this.autoEoi) {
      if (this.rotateAuto) this.top = (line + 1) & 7;
    } else this.isr |= bit;
  }

  endOfInterrupt(rotate: boolean): void {
    for (let i = 0; i < 8; i++) {
      const line = (this.top + i) & 7;
      const bit = 1 << line;
      if ((this.isr & bit) === 0) continue;
      if (this.special && (this.imr & bit) !== 0) continue;
      this.isr &= ~bit;
      if (rotate) this.top = (line + 1) & 7;
      return;
    }
  }

  command(value: number): void {
    if ((value & 0x10) !== 0) {
      this.init = 2;
      this.icw4 = (value & 1) !== 0;
      this.single = (value & 2) !== 0;
      this.imr = 0;
      this.isr = 0;
      this.irr = this.lines & this.elcr;
      this.top = 0;
      this.autoEoi = false;
      this.rotateAuto = false;
      this.readIsr = false;
      this.special = false;
      this.specialNested = false;
      this.poll = false;
      return;
    }
    if ((value & 0x08) !== 0) {
      if ((value & 4) !== 0) this.poll = true;
      if ((value & 2) !== 0) this.readIsr = (value & 1) !== 0;
      if ((value & 0x40) !== 0) this.special = (value & 0x20) !== 0;
      return;
    }
    switch (value >> 5) {
      case 0:
        this.rotateAuto = false;
        break;
      case 4:
        this.rotateAuto = true;
        break;
      case 1:
      case 5:
        this.endOfInterrupt(value >> 5 === 5);
        break;
      case 3:
      case 7:
        this.isr &= ~(1 << (value & 7));
        if (value >> 5 === 7) this.top = ((value & 7) + 1) & 7;
        break;
      case 6:
        this.top = ((value & 7) + 1) & 7;
        break;
    }
  }

  data(value: number): void {
    switch (this.init) {
      case 0:
        this.imr = value;
        break;
      case 2:
        this.base = value & 0xf8;
        this.init = this.single ? (this.icw4 ? 4 : 0) : 3;
        break;
      case 3:
        this.init = this.icw4 ? 4 : 0;
        break;
      default:
        this.autoEoi = (value & 2) !== 0;
        this.specialNested = (value & 0x10) !== 0;
        this.init = 0;
    }
  }

  save(): DeviceState {
    const { irr, imr, isr, lines, elcr, base, init, icw4, single, autoEoi, rotateAuto } = this;
    const { readIsr, poll, special, specialNested, top } = this;
    return {
      irr,
      imr,
      isr,
      lines,
      elcr,
      base,
      init,
      icw4,
      single,
      autoEoi,
      rotateAuto,
      readIsr,
      poll,
      special,
      specialNested,
      top,
    };
  }

  restore(s: DeviceState): void {
    this.irr = num(s, "irr");
    this.imr = num(s, "imr");
    this.isr = num(s, "isr");
    this.lines = num(s, "lines");
    this.elcr = num(s, "elcr");
    this.base = num(s, "base");
    this.init = num(s, "init");
    this.icw4 = bool(s, "icw4");
    this.single = bool(s, "single");
    this.autoEoi = bool(s, "autoEoi");
    this.rotateAuto = bool(s, "rotateAuto");
    this.readIsr = bool(s, "readIsr");
    this.poll = bool(s, "poll");
    this.special = bool(s, "special");
    this.specialNested = bool(s, "specialNested");
    this.top = num(s, "top") & 7;
  }
}

export class PicPair implements PortDevice, Stateful {
  readonly #master = new Chip(true);
  readonly #slave = new Chip(false);
  /** The master's INTR output. */
  intr = false;

  /** Drives input `irq` (0..15). */
  set(irq: number, level: boolean): void {
    if (irq < 8) this.#master.set(irq, level);
    else this.#slave.set(irq - 8, level);
    this.#update();
  }

  #update(): void {
    // The slave's output is a level: no request of its is left behind when it goes away.
    this.#master.cascade(this.#slave.next() >= 0);
    this.intr = this.#master.next() >= 0;
  }

  /** INTA: the vector to deliver. Without a request any more that is the spurious IRQ 7. */
  acknowledge(): number {
    const line = this.#master.next();
    if (line < 0) return this.#master.base + 7;
    this.#master.acknowledge(line);
    let vector = this.#master.base + line;
    if (line === 2) {
      const slave = this.#slave.next();
      if (slave >= 0) this.#slave.acknowledge(slave);
      vector = this.#slave.base + (slave < 0 ? 7 : slave);
    }
    this.#update();
    return vector;
  }

  #chip(port: number): Chip {
    return (port & 0x80) === 0 ? this.#master : this.#slave;
  }

  /** What a PC's firmware leaves: vectors 8 and 0x70, all inputs masked but the timer and the slave. */
  setUpAsFirmware(): void {
    for (const [port, base, wiring, mask] of [
      [0x20, 0x08, 4, 0xfa],
      [0xa0, 0x70, 2, 0xff],
    ]) {
      this.portOut(port, 1, 0x11);
      this.portOut(port + 1, 1, base);
      this.portOut(port + 1, 1, wiring);
      this.portOut(port + 1, 1, 1);
      this.portOut(port + 1, 1, mask);
    }
  }

  portIn(port: number): number {
    if (port === 0x4d0) return this.#master.elcr;
    if (port === 0x4d1) return this.#slave.elcr;
    const chip = this.#chip(port);
    if (chip.poll) {
      chip.poll = false;
      const line = chip.next();
      if (line < 0) return 0;
      chip.acknowledge(line);
      this.#update();
      return 0x80 | line;
    }
    if ((port & 1) !== 0) return chip.imr;
    return chip.readIsr ? chip.isr : chip.irr;
  }

  portOut(port: number, _size: number, value: number): void {
    // IRQs 0, 1, 2, 8 and 13 are edge-triggered on a PC whatever is asked for.
    if (port === 0x4d0) this.#master.elcr = value & 0xf8;
    else if (port === 0x4d1) this.#slave.elcr = value & 0xde;
    else if ((port & 1) !== 0) this.#chip(port).data(value);
    else this.#chip(port).command(value);
    this.#update();
  }

  save(): DeviceState {
    return { master: this.#master.save(), slave: this.#slave.save() };
  }

  restore(s: DeviceState): void {
    this.#master.restore(s.master as DeviceState);
    this.#slave.restore(s.slave as DeviceState);
    this.#update();
  }
}
