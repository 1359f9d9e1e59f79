// SPDX-License-Identifier: MIT
import { bool, type DeviceState, type IrqLine, num, nums, type Stateful } from "../device.ts";
import type { PortDevice } from "../ports.ts";

/*
 * 16550A UART (National Semiconductor PC16550D data sheet). The transmitter is
 * infinitely fast: THR is empty again as soon as it was written. That is what
 * a guest that polls wants, and one that waits for the THRE interrupt gets it
 * at once.
 */
const IER_RDA = 1;
const IER_THRE = 2;
const IER_LINE = 4;
const IER_MODEM = 8;
const IIR_NONE = 0x01;
const IIR_MODEM = 0x00;
const IIR_THRE = 0x02;
const IIR_RDA = 0x04;
const IIR_LINE = 0x06;
const IIR_TIMEOUT = 0x0c;
const FCR_ENABLE = 1;
const FCR_CLEAR_RX = 2;
const LCR_DLAB = 0x80;
const MCR_OUT2 = 8;
const MCR_LOOP = 0x10;
const LSR_DR = 1;
const LSR_OVERRUN = 2;
const LSR_THRE = 0x20;
const LSR_TEMT = 0x40;
/** CTS, DSR and DCD asserted: a terminal is there. */
const MSR_READY = 0xb0;
const RX_TRIGGER = [1, 4, 8, 14];
const FIFO_SIZE = 16;
/** A guest that reads LSR this often without writing to any register polls for input. */
const POLLS = 64;

export class Uart implements PortDevice, Stateful {
  /** Called with each byte that the guest transmits. */
  onByte: (byte: number) => void = () => {};
  readonly #irq: IrqLine;
  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = 0;
  #scratch = 0;
  #divisor = 1;
  #overrun = false;
  #thre = false;
  #modemDelta = 0;
  #modem = MSR_READY;
  #rx = new Uint8Array(FIFO_SIZE);
  #rxHead = 0;
  #rxCount = 0;
  /** Bytes from outside that wait for room in the receive FIFO. */
  #waiting: number[] = [];
  /** Reads of LSR since the last write. */
  #polls = 0;

  constructor(irq: IrqLine) {
    this.#irq = irq;
  }

  /** Bytes for the guest. They enter the FIFO as it has room, so nothing is lost however slow the guest reads. */
  feed(bytes: Uint8Array): void {
    for (let i = 0; i < bytes.length; i++) this.#waiting.push(bytes[i]);
    this.#fill();
    this.#update();
  }

  /** Bytes fed and not yet read by the guest. */
  get backlog(): number {
    return this.#waiting.length + this.#rxCount;
  }

  /**
   * Moves waiting bytes to the FIFO, but only for a guest that looks for
   * them: while its driver is starting it empties the FIFO several times, and
   * what was typed (or piped in) before would be lost.
   */
  #fill(): void {
    if ((this.#mcr & MCR_LOOP) !== 0) return;
    const driven = (this.#ier & IER_RDA) !== 0 && (this.#mcr & MCR_OUT2) !== 0;
    if (!driven && this.#polls < POLLS) return;
    const room = (this.#fcr & FCR_ENABLE) !== 0 ? FIFO_SIZE : 1;
    while (this.#rxCount < room && this.#waiting.length > 0)
      this.#receive(this.#waiting.shift() as number);
  }

  #receive(byte: number): void {
    const room = (this.#fcr & FCR_ENABLE) !== 0 ? FIFO_SIZE : 1;
    if (this.#rxCount >= room) {
      this.#overrun = true;
      return;
    }
    this.#rx[(this.#rxHead + this.#rxCount) % FIFO_SIZE] = byte;
    this.#rxCount++;
  }

  #pending(): number {
    if ((this.#ier & IER_LINE) !== 0 && this.#overrun) return IIR_LINE;
    if ((this.#ier & IER_RDA) !== 0 && this.#rxCount > 0) {
      const trigger = (this.#fcr & FCR_ENABLE) !== 0 ? RX_TRIGGER[this.#fcr >> 6] : 1;
      // The character timeout (four character times) is over before the guest can look.
      return this.#rxCount >= trigger ? IIR_RDA : IIR_TIMEOUT;
    }
    if ((this.#ier & IER_THRE) !== 0 && this.#thre) return IIR_THRE;
    if ((this.#ier & IER_MODEM) !== 0 && this.#modemDelta !== 0) return IIR_MODEM;
    return IIR_NONE;
  }

  #update(): void {
    // On a PC, OUT2 gates the interrupt line; in loopback OUT2 is cut from the pin.
    const gate = (this.#mcr & (MCR_OUT2 | MCR_LOOP)) === MCR_OUT2;
    this.#irq(gate && this.#pending() !== IIR_NONE);
  }

  portIn(port: number): number {
    switch (port & 7) {
      case 0: {
        if ((this.#lcr & LCR_DLAB) !== 0) return this.#divisor & 0xff;
        if (this.#rxCount === 0) return 0;
        const byte = this.#rx[this.#rxHead];
        this.#rxHead = (this.#rxHead + 1) % FIFO_SIZE;
        this.#rxCount--;
        this.#fill();
        this.#update();
        return byte;
      }
      case 1:
        return (this.#lcr & LCR_DLAB) !== 0 ? this.#divisor >> 8 : this.#ier;
      case 2: {
        const id = this.#pending();
        if (id === IIR_THRE) {
          this.#thre = false;
          this.#update();
        }
        return id | ((this.#fcr & FCR_ENABLE) !== 0 ? 0xc0 : 0);
      }
      case 3:
        return this.#lcr;
      case 4:
        return this.#mcr;
      case 5: {
        if (++this.#polls === POLLS) this.#fill();
        const lsr =
          LSR_THRE |
          LSR_TEMT |
          (this.#rxCount > 0 ? LSR_DR : 0) |
          (this.#overrun ? LSR_OVERRUN : 0);
        if (this.#overrun) {
          this.#overrun = false;
          this.#update();
        }
        return lsr;
      }
      case 6: {
        const msr = this.#modem | this.#modemDelta;
        if (this.#modemDelta !== 0) {
          this.#modemDelta = 0;
          this.#update();
        }
        return msr;
      }
      default:
        return this.#scratch;
    }
  }

  portOut(port: number, _size: number, value: number): void {
    this.#polls = 0;
    switch (port & 7) {
      case 0:
        if ((this.#lcr & LCR_DLAB) !== 0) {
          this.#divisor = (this.#divisor & 0xff00) | value;
          return;
        }
        if ((this.#mcr & MCR_LOOP) !== 0) this.#receive(value);
        else this.onByte(value);
        this.#thre = true;
        break;
      case 1:
        if ((this.#lcr & LCR_DLAB) !== 0) {
          this.#divisor = (this.#divisor & 0xff) | (value << 8);
          return;
        }
        // Enabling the THRE interrupt while THR is empty raises it.
        if ((value & IER_THRE) !== 0 && (this.#ier & IER_THRE) === 0) this.#thre = true;
        this.#ier = value & 0x0f;
        this.#fill();
        break;
      case 2:
        if (((value ^ this.#fcr) & FCR_ENABLE) !== 0 || (value & FCR_CLEAR_RX) !== 0) {
          // A change of mode empties the FIFO too, but nobody means to lose a typed byte by it.
          if ((value & FCR_CLEAR_RX) === 0) this.#waiting.unshift(...this.#unread());
          this.#rxCount = 0;
          this.#rxHead = 0;
        }
        this.#fcr = value & 0xc9;
        this.#fill();
        break;
      case 3:
        this.#lcr = value;
        return;
      case 4:
        this.#mcr = value & 0x1f;
        this.#setModem();
        this.#fill();
        break;
      case 7:
        this.#scratch = value;
        return;
      default:
        return;
    }
    this.#update();
  }

  /** In loopback RTS, DTR, OUT1, OUT2 drive CTS, DSR, RI, DCD. */
  #setModem(): void {
    const mcr = this.#mcr;
    const now =
      (mcr & MCR_LOOP) !== 0
        ? ((mcr & 2) << 3) | ((mcr & 1) << 5) | ((mcr & 4) << 4) | ((mcr & 8) << 4)
        : MSR_READY;
    const changed = now ^ this.#modem;
    // The delta of RI records its trailing edge only.
    this.#modemDelta |= ((changed & 0xb0) >> 4) | ((changed & this.#modem & 0x40) >> 4);
    this.#modem = now;
  }

  #unread(): number[] {
    return Array.from(
      { length: this.#rxCount },
      (_, i) => this.#rx[(this.#rxHead + i) % FIFO_SIZE],
    );
  }

  save(): DeviceState {
    return {
      ier: this.#ier,
      fcr: this.#fcr,
      lcr: this.#lcr,
      mcr: this.#mcr,
      scratch: this.#scratch,
      divisor: this.#divisor,
      overrun: this.#overrun,
      thre: this.#thre,
      modem: this.#modem,
      modemDelta: this.#modemDelta,
      rx: this.#unread(),
      waiting: this.#waiting,
    };
  }

  restore(s: DeviceState): void {
    this.#ier = num(s, "ier");
    this.#fcr = num(s, "fcr");
    this.#lcr = num(s, "lcr");
    this.#mcr = num(s, "mcr");
    this.#scratch = num(s, "scratch");
    this.#divisor = num(s, "divisor");
    this.#overrun = bool(s, "overrun");
    this.#thre = bool(s, "thre");
    this.#modem = num(s, "modem");
    this.#modemDelta = num(s, "modemDelta");
    const rx = nums(s, "rx").slice(0, FIFO_SIZE);
    this.#rx.set(rx);
    this.#rxHead = 0;
    this.#rxCount = rx.length;
    this.#waiting = nums(s, "waiting").slice();
    this.#update();
  }
}
