// SPDX-License-Identifier: MIT
import type { GuestRam } from "../../bridge/index.ts";
import { writeRam } from "./ram.ts";

/*
 * What a BIOS's interrupt table does for an image that goes back to real mode
 * and expects it: every vector leads to an IRET, those of the 8259 pair to
 * code that ends the interrupt first. No service is offered.
 */
const SEGMENT = 0xf000;
const IRET_AT = 0xff53; // where the PC's BIOS has its dummy handler
const MASTER_AT = 0xfea5; // ... and its timer interrupt
const SLAVE_AT = 0xfeb5;

const IRET = Uint8Array.of(0xcf);
/** PUSH AX; MOV AL, 20h; OUT 20h, AL; POP AX; IRET */
const MASTER = Uint8Array.of(0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf);
/** The same with OUT A0h, AL first. */
const SLAVE = Uint8Array.of(0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf);

/** Writes the real-mode interrupt table at 0 and its handlers. */
export function writeBiosVectors(ram: GuestRam): void {
  writeRam(ram, SEGMENT * 16 + IRET_AT, IRET);
  writeRam(ram, SEGMENT * 16 + MASTER_AT, MASTER);
  writeRam(ram, SEGMENT * 16 + SLAVE_AT, SLAVE);
  const table = new DataView(new ArrayBuffer(1024));
  for (let vector = 0; vector < 256; vector++) {
    const master = vector >= 0x08 && vector < 0x10;
    const slave = vector >= 0x70 && vector < 0x78;
    table.setUint16(4 * vector, master ? MASTER_AT : slave ? SLAVE_AT : IRET_AT, true);
    table.setUint16(4 * vector + 2, SEGMENT, true);
  }
  writeRam(ram, 0, new Uint8Array(table.buffer));
}
