// SPDX-License-Identifier: MIT
import type { Clock } from "./clock.ts";
import type { DeviceState, Stateful } from "./device.ts";
import { ACPI_PM_BASE, ACPI_PM_LAST, AcpiPm } from "./devices/acpi-pm.ts";
import { FW_CFG_DATA, FW_CFG_SELECTOR, FwCfg } from "./devices/fw-cfg.ts";
import { IOAPIC_BASE, IoApic } from "./devices/ioapic.ts";
import { LAPIC_BASE, LapicBus } from "./devices/lapic.ts";
import { KeyboardController, PciConfig, PostPort, SystemControlPort } from "./devices/legacy.ts";
import { PicPair } from "./devices/pic.ts";
import { Pit } from "./devices/pit.ts";
import { Rtc } from "./devices/rtc.ts";
import {
  DebugConsole,
  DebugExit,
  TESTDEV_IRQ_LINES,
  TESTDEV_IRQ_PORT,
  TESTDEV_MMIO_BASE,
  TESTDEV_MMIO_SIZE,
  TestDevice,
} from "./devices/testdev.ts";
import { Uart } from "./devices/uart.ts";
import { LOW_MEMORY_LIMIT } from "./layout.ts";
import { type MmioDevice, MmioMap, PortMap } from "./ports.ts";

const COM1 = 0x3f8;
const COM1_IRQ = 4;
const RTC_IRQ = 8;

/** What devices can do to the machine as a whole. */
export interface PlatformEvents {
  powerOff(): void;
  reset(): void;
  /** isa-debug-exit was written; the exit code of the process. */
  debugExit(code: number): void;
  consoleByte(byte: number): void;
}

/** The devices of the machine and how they are wired: a PC without its bus slots. */
export class Platform {
  readonly ports = new PortMap();
  readonly mmio = new MmioMap();
  readonly pic = new PicPair();
  readonly ioapic = new IoApic();
  readonly lapics = new LapicBus();
  readonly uart: Uart;
  readonly pit: Pit;
  readonly rtc: Rtc;
  readonly pm: AcpiPm;
  readonly #stateful: Record<string, Stateful>;
  #intr = false;

  /** `memory` in bytes; `epoch`: seconds since 1970 that the RTC shows at the start. */
  constructor(clock: Clock, cpus: number, memory: number, epoch: number, events: PlatformEvents) {
    for (let i = 0; i < cpus; i++) this.lapics.add(clock).setUpAsFirmware();
    this.ioapic.send = (mode, vector, dest, logical, level) =>
      this.lapics.send(mode, vector, dest, logical, level);
    this.lapics.endOfInterrupt = (vector) => this.ioapic.endOfInterrupt(vector);

    const reset = () => events.reset();
    this.uart = new Uart((level) => this.irq(COM1_IRQ, level));
    this.uart.onByte = (byte) => events.consoleByte(byte);
    this.pit = new Pit(clock, (level) => this.irq(0, level));
    this.rtc = new Rtc(clock, (level) => this.irq(RTC_IRQ, level), epoch);
    this.pm = new AcpiPm(clock, () => events.powerOff());
    const fwCfg = new FwCfg(memory, cpus);
    const test = new TestDevice((line, level) => this.#testLine(line, level));
    this.#memorySize(memory);

    const { ports, mmio } = this;
    ports.add(this.pic, 0x20, 0x21);
    ports.add(this.pic, 0xa0, 0xa1);
    ports.add(this.pic, 0x4d0, 0x4d1);
    ports.add(this.pit, 0x40, 0x43);
    ports.add(this.pit, 0x61);
    const keyboard = new KeyboardController(reset);
    ports.add(keyboard, 0x60);
    ports.add(keyboard, 0x64);
    ports.add(this.rtc, 0x70, 0x71);
    ports.add(new PostPort(), 0x80);
    ports.add(new SystemControlPort(reset), 0x92);
    ports.add(test, 0xe0, 0xe8, "wide");
    ports.add(new DebugConsole((byte) => events.consoleByte(byte)), 0xe9);
    ports.add(new DebugExit((code) => events.debugExit(code)), 0xf4, 0xf7, "wide");
    ports.add(this.uart, COM1, COM1 + 7);
    ports.add(fwCfg, FW_CFG_SELECTOR, FW_CFG_DATA, "wide");
    ports.add(this.pm, ACPI_PM_BASE, ACPI_PM_LAST, "wide");
    ports.add(new PciConfig(reset), 0xcf8, 0xcff, "wide");
    ports.add(test, TESTDEV_IRQ_PORT, TESTDEV_IRQ_PORT + TESTDEV_IRQ_LINES - 1, "wide");
    mmio.add(this.ioapic, IOAPIC_BASE, 0x1000);
    mmio.add(this.#lapicPage, LAPIC_BASE, 0x1000);
    mmio.add(test, TESTDEV_MMIO_BASE, TESTDEV_MMIO_SIZE);

    this.#stateful = {
      pic: this.pic,
      ioapic: this.ioapic,
      uart: this.uart,
      pit: this.pit,
      rtc: this.rtc,
      pm: this.pm,
      fwCfg,
      test,
    };
    for (const apic of this.lapics.apics) this.#stateful[`lapic${apic.id}`] = apic;
  }

  /** The 8259 pair and the timer as a BIOS leaves them, for images that go back to real mode. */
  setUpAsFirmware(): void {
    this.pic.setUpAsFirmware();
    this.pit.setUpAsFirmware();
  }

  /** Drives ISA interrupt `irq`: to the 8259 pair, and to the I/O APIC (IRQ 0 on input 2, as the MADT says). */
  irq(irq: number, level: boolean): void {
    this.pic.set(irq, level);
    this.ioapic.set(irq === 0 ? 2 : irq, level);
    this.syncIntr();
  }

  /** Passes a rising edge of the 8259's INTR to LINT0 of the first CPU. */
  syncIntr(): void {
    const intr = this.pic.intr;
    if (intr && !this.#intr) this.lapics.apics[0].lint0();
    this.#intr = intr;
  }

  #testLine(line: number, level: boolean): void {
    if (line < 16) this.irq(line, level);
    else this.ioapic.set(line, level);
  }

  /** Every CPU sees its own APIC in the page. */
  readonly #lapicPage: MmioDevice = {
    mmioRead: (offset, _size, vcpu) => {
      const apic = this.lapics.apics[vcpu];
      return apic.enabled && !apic.x2apic ? apic.mmioRead(offset) : 0xffffffff;
    },
    mmioWrite: (offset, _size, value, vcpu) => {
      const apic = this.lapics.apics[vcpu];
      if (apic.enabled && !apic.x2apic) apic.mmioWrite(offset, value);
    },
  };

  /** The guest moved the APIC page. */
  moveLapic(gpa: number): void {
    this.mmio.move(this.#lapicPage, gpa);
  }

  /** Memory sizes where a BIOS leaves them in CMOS. */
  #memorySize(memory: number): void {
    const low = Math.min(memory, LOW_MEMORY_LIMIT);
    const put16 = (index: number, value: number) => {
      this.rtc.poke(index, value & 0xff);
      this.rtc.poke(index + 1, value >> 8);
    };
    put16(0x15, 640);
    put16(0x17, Math.min(65535, (low - 0x100000) >> 10));
    put16(0x30, Math.min(65535, (low - 0x100000) >> 10));
    put16(0x34, Math.max(0, Math.min(65535, Math.floor((low - 0x1000000) / 65536))));
    const high = Math.max(0, memory - LOW_MEMORY_LIMIT) / 65536;
    put16(0x5b, high & 0xffff);
    this.rtc.poke(0x5d, Math.floor(high / 65536));
  }

  save(): DeviceState {
    const state: DeviceState = {};
    for (const [name, device] of Object.entries(this.#stateful)) state[name] = device.save();
    return state;
  }

  restore(state: DeviceState): void {
    for (const [name, device] of Object.entries(this.#stateful)) {
      const part = state[name];
      if (typeof part !== "object" || part === null)
        throw new TypeError(`snapshot: no state of device '${name}'`);
      device.restore(part as DeviceState);
    }
    this.syncIntr();
  }
}
