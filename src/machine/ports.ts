// SPDX-License-Identifier: MIT
/** The I/O port space and the device space of memory: who answers where. */

/** A device behind I/O ports. `size` is 1 for devices registered byte-wide, else 1, 2 or 4. */
export interface PortDevice {
  portIn(port: number, size: number): number;
  portOut(port: number, size: number, value: number): void;
}

const SIZE_MASK = [0, 0xff, 0xffff, 0xffffff, 0xffffffff];

export class PortMap {
  readonly #slot = new Uint8Array(0x10000);
  readonly #devices: (PortDevice | undefined)[] = [undefined];
  readonly #wide: boolean[] = [false];

  /**
   * Puts a device on ports first..last. A byte-wide device sees an access of
   * 2 or 4 bytes as that many of consecutive ports, like on the ISA bus.
   */
  add(
    device: PortDevice,
    first: number,
    last: number = first,
    width: "byte" | "wide" = "byte",
  ): void {
    if (first < 0 || last > 0xffff || first > last)
      throw new RangeError(`bad port range ${first}..${last}`);
    const index = this.#devices.push(device) - 1;
    this.#wide.push(width === "wide");
    for (let port = first; port <= last; port++) {
      if (this.#slot[port] !== 0)
        throw new RangeError(`port ${port.toString(16)} has a device already`);
      this.#slot[port] = index;
    }
  }

  /** Value of an IN, unsigned; a port without a device floats high. */
  in(port: number, size: number): number {
    const slot = this.#slot[port];
    const device = this.#devices[slot];
    if (device === undefined) return SIZE_MASK[size];
    if (size === 1 || this.#wide[slot]) return (device.portIn(port, size) & SIZE_MASK[size]) >>> 0;
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.in((port + i) & 0xffff, 1) << (8 * i);
    return value >>> 0;
  }

  out(port: number, size: number, value: number): void {
    const slot = this.#slot[port];
    const device = this.#devices[slot];
    if (device === undefined) return;
    if (size === 1 || this.#wide[slot]) {
      device.portOut(port, size, (value & SIZE_MASK[size]) >>> 0);
      return;
    }
    for (let i = 0; i < size; i++) this.out((port + i) & 0xffff, 1, (value >>> (8 * i)) & 0xff);
  }
}

/** A device in memory space. Offsets are from its base; sizes are 1, 2 or 4 (8 comes as two of 4). */
export interface MmioDevice {
  mmioRead(offset: number, size: number, vcpu: number): number;
  mmioWrite(offset: number, size: number, value: number, vcpu: number): void;
}

interface MmioRange {
  base: number;
  size: number;
  device: MmioDevice;
}

export class MmioMap {
  readonly #ranges: MmioRange[] = [];

  add(device: MmioDevice, base: number, size: number): void {
    this.#ranges.push({ base, size, device });
  }

  /** Moves a device (the LAPIC's base is a register of the guest's). */
  move(device: MmioDevice, base: number): void {
    for (const range of this.#ranges) if (range.device === device) range.base = base;
  }

  #find(gpa: number): MmioRange | undefined {
    const ranges = this.#ranges;
    for (let i = 0; i < ranges.length; i++) {
      const range = ranges[i];
      if (gpa >= range.base && gpa < range.base + range.size) return range;
    }
    return undefined;
  }

  /** A read of device space; where no device is, ones come back as on a PCI bus. */
  read(gpa: number, size: number, vcpu: number): number {
    const range = this.#find(gpa);
    if (range === undefined) return SIZE_MASK[size];
    return (range.device.mmioRead(gpa - range.base, size, vcpu) & SIZE_MASK[size]) >>> 0;
  }

  write(gpa: number, size: number, value: number, vcpu: number): void {
    const range = this.#find(gpa);
    range?.device.mmioWrite(gpa - range.base, size, (value & SIZE_MASK[size]) >>> 0, vcpu);
  }

  /** Whether a device answers at this address. */
  has(gpa: number): boolean {
    return this.#find(gpa) !== undefined;
  }
}
