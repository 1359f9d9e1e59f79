// SPDX-License-Identifier: MIT
import { VERSION } from "../version.ts";

/** One request a connection: a line of JSON each way, then the server closes. */
export interface ControlRequest {
  /** Both ends must be the same release. */
  version: string;
  command: string;
  argument: unknown;
}

export type ControlReply =
  | { ok: true; result: unknown }
  /** `input`: the request was at fault, `hint` says what to do. */
  | { ok: false; message: string; hint: string; input: boolean };

/** Bytes; a longer request is refused. */
export const MAX_REQUEST = 64 * 1024;

export function request(command: string, argument: unknown): ControlRequest {
  return { version: VERSION, command, argument };
}
