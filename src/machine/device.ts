// SPDX-License-Identifier: MIT
/** State of a device in a snapshot: plain JSON. */
export type DeviceState = Record<string, unknown>;

/** What a device with state implements so that it takes part in snapshots. */
export interface Stateful {
  save(): DeviceState;
  restore(state: DeviceState): void;
}

/** An interrupt line: `raise` with the level that the device drives. */
export type IrqLine = (level: boolean) => void;

/** A number from a snapshot's device state, or an error that names it. */
export function num(state: DeviceState, key: string): number {
  const value = state[key];
  if (value === null) return Infinity; // JSON has no Infinity: an unarmed timer
  if (typeof value !== "number") throw new TypeError(`snapshot: device field '${key}' is missing`);
  return value;
}

export function bool(state: DeviceState, key: string): boolean {
  const value = state[key];
  if (typeof value !== "boolean") throw new TypeError(`snapshot: device field '${key}' is missing`);
  return value;
}

/** An array of numbers from a snapshot's device state, of the length wanted (any when -1). */
export function nums(state: DeviceState, key: string, length = -1): number[] {
  const value = state[key];
  if (
    !Array.isArray(value) ||
    (length >= 0 && value.length !== length) ||
    !value.every((v) => typeof v === "number")
  )
    throw new TypeError(`snapshot: device field '${key}' is missing or has another length`);
  return value as number[];
}
