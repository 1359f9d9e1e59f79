// SPDX-License-Identifier: MIT
import type { GuestRam } from "../../bridge/index.ts";

/** Copies bytes to guest physical memory; throws RangeError where there is no RAM. */
export function writeRam(ram: GuestRam, gpa: number, bytes: Uint8Array): void {
  let done = 0;
  while (done < bytes.length) {
    const place = ram.u8(gpa + done);
    if (place === undefined) throw new RangeError(`no RAM at 0x${(gpa + done).toString(16)}`);
    // A slot may end, or a view's piece; a page never straddles either.
    const page = 0x1000 - ((gpa + done) % 0x1000);
    let length = Math.min(bytes.length - done, page);
    const whole = ram.view(gpa + done, bytes.length - done);
    if (whole !== undefined) length = bytes.length - done;
    place.bytes.set(bytes.subarray(done, done + length), place.offset);
    done += length;
  }
}

/** Fills guest physical memory with zeros. */
export function zeroRam(ram: GuestRam, gpa: number, size: number): void {
  for (let done = 0; done < size; ) {
    const length = Math.min(size - done, 0x1000 - ((gpa + done) % 0x1000));
    const view = ram.view(gpa + done, length);
    if (view === undefined) throw new RangeError(`no RAM at 0x${(gpa + done).toString(16)}`);
    view.fill(0);
    done += length;
  }
}
