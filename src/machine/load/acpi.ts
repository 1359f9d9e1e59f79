// SPDX-License-Identifier: MIT
import { ACPI_PM_BASE, PM_TIMER, PM1_CONTROL, SLEEP_TYPE_S5 } from "../devices/acpi-pm.ts";
import { IOAPIC_BASE } from "../devices/ioapic.ts";
import { LAPIC_BASE } from "../devices/lapic.ts";

/*
 * The least ACPI that lets an operating system find its CPUs and interrupt
 * controllers and power off (ACPI 6.4, 5.2): RSDP, XSDT, FADT, FACS, MADT and
 * a DSDT whose only object is \_S5.
 */

const text = (bytes: Uint8Array, at: number, s: string) =>
  bytes.set(new TextEncoder().encode(s), at);

function checksum(bytes: Uint8Array, at: number, from = 0, to = bytes.length): void {
  let sum = 0;
  for (let i = from; i < to; i++) sum += bytes[i];
  bytes[at] = -sum & 0xff;
}

/** A table of `length` bytes with its header; `fill` writes the rest. */
function table(
  signature: string,
  revision: number,
  length: number,
  fill: (view: DataView) => void,
): Uint8Array {
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  text(bytes, 0, signature);
  view.setUint32(4, length, true);
  bytes[8] = revision;
  text(bytes, 10, "HVI   ");
  text(bytes, 16, "HVI     ");
  view.setUint32(24, 1, true);
  text(bytes, 28, "HVI ");
  view.setUint32(32, 1, true);
  fill(view);
  checksum(bytes, 9);
  return bytes;
}

/** Name (\_S5, Package (4) {type, type, 0, 0}) in AML (ACPI 6.4, chapter 20). */
const S5_AML = Uint8Array.of(
  0x08, // NameOp
  0x5c, // root
  ...new TextEncoder().encode("_S5_"),
  0x12, // PackageOp
  0x08, // length of what follows, with this byte
  0x04, // elements
  0x0a,
  SLEEP_TYPE_S5,
  0x0a,
  SLEEP_TYPE_S5,
  0x00,
  0x00,
);

const FADT_WBINVD = 1 << 0;
/** No fixed-hardware power and sleep buttons. */
const FADT_NO_BUTTONS = (1 << 4) | (1 << 5);
const FADT_RESET_REGISTER = 1 << 10;
const BOOT_ARCH_LEGACY_DEVICES = 1 << 0;
const BOOT_ARCH_NO_VGA = 1 << 2;

/** Generic address structure of an I/O port. */
function portAddress(view: DataView, at: number, bits: number, port: number): void {
  view.setUint8(at, 1);
  view.setUint8(at + 1, bits);
  view.setUint8(at + 3, bits === 8 ? 1 : bits === 16 ? 2 : 3);
  view.setUint32(at + 4, port, true);
}

/** All tables as they stand at `base`; the RSDP is first. */
export function acpiTables(base: number, cpus: number): Uint8Array {
  const dsdtAt = base + 0x40;
  const facsAt = base + 0x80;
  const fadtAt = base + 0x100;
  const xsdtAt = base + 0x240;
  const madtAt = base + 0x280;

  const dsdt = table("DSDT", 2, 36 + S5_AML.length, (v) =>
    new Uint8Array(v.buffer).set(S5_AML, 36),
  );
  const facs = new Uint8Array(64);
  text(facs, 0, "FACS");
  facs[4] = 64;
  const fadt = table("FACP", 5, 268, (v) => {
    v.setUint32(36, facsAt, true);
    v.setUint32(40, dsdtAt, true);
    v.setUint16(46, 9, true); // SCI_INT
    v.setUint32(56, ACPI_PM_BASE, true); // PM1a event block
    v.setUint32(64, PM1_CONTROL, true);
    v.setUint32(76, PM_TIMER, true);
    v.setUint8(88, 4); // PM1_EVT_LEN
    v.setUint8(89, 2); // PM1_CNT_LEN
    v.setUint8(91, 4); // PM_TMR_LEN
    v.setUint16(96, 0xffff, true); // no C2
    v.setUint16(98, 0xffff, true); // no C3
    v.setUint8(108, 0x32); // century register of the RTC
    v.setUint16(109, BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA, true);
    v.setUint32(112, FADT_WBINVD | FADT_NO_BUTTONS | FADT_RESET_REGISTER, true);
    portAddress(v, 116, 8, 0xcf9);
    v.setUint8(128, 0x06); // value that resets
    v.setUint32(140, dsdtAt, true);
    portAddress(v, 148, 32, ACPI_PM_BASE);
    portAddress(v, 172, 16, PM1_CONTROL);
    portAddress(v, 208, 32, PM_TIMER);
  });
  const madt = table("APIC", 3, 44 + 8 * cpus + 12 + 10 + 10 + 6, (v) => {
    v.setUint32(36, LAPIC_BASE, true);
    v.setUint32(40, 1, true); // there is an 8259 pair as well
    let at = 44;
    for (let i = 0; i < cpus; i++, at += 8) {
      v.setUint8(at + 1, 8);
      v.setUint8(at + 2, i);
      v.setUint8(at + 3, i);
      v.setUint32(at + 4, 1, true);
    }
    v.setUint8(at, 1); // I/O APIC
    v.setUint8(at + 1, 12);
    v.setUint32(at + 4, IOAPIC_BASE, true);
    at += 12;
    // Overrides: the PIT's IRQ 0 comes in on input 2; the SCI is level-triggered.
    for (const [irq, gsi, flags] of [
      [0, 2, 0],
      [9, 9, 0x0d],
    ]) {
      v.setUint8(at, 2);
      v.setUint8(at + 1, 10);
      v.setUint8(at + 3, irq);
      v.setUint32(at + 4, gsi, true);
      v.setUint16(at + 8, flags, true);
      at += 10;
    }
    v.setUint8(at, 4); // LINT1 of every CPU is NMI
    v.setUint8(at + 1, 6);
    v.setUint8(at + 2, 0xff);
    v.setUint8(at + 5, 1);
  });
  const xsdt = table("XSDT", 1, 36 + 16, (v) => {
    v.setUint32(36, fadtAt, true);
    v.setUint32(44, madtAt, true);
  });
  const rsdp = new Uint8Array(36);
  text(rsdp, 0, "RSD PTR ");
  text(rsdp, 9, "HVI   ");
  rsdp[15] = 2;
  new DataView(rsdp.buffer).setUint32(20, 36, true);
  new DataView(rsdp.buffer).setUint32(24, xsdtAt, true);
  checksum(rsdp, 8, 0, 20);
  checksum(rsdp, 32);

  const all = new Uint8Array(madtAt - base + madt.length);
  all.set(rsdp, 0);
  all.set(dsdt, dsdtAt - base);
  all.set(facs, facsAt - base);
  all.set(fadt, fadtAt - base);
  all.set(xsdt, xsdtAt - base);
  all.set(madt, madtAt - base);
  return all;
}
