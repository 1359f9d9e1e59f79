// SPDX-License-Identifier: MIT
/** Snapshots of a machine: save, restore, look into. */
export { OpenSnapshot, openSnapshot, type SnapshotMeta, verifyRam } from "./format.ts";
export { type RestoreOptions, restoreMachine } from "./restore.ts";
export { saveSnapshot } from "./save.ts";
