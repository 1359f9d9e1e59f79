// SPDX-License-Identifier: MIT
/** Every scenario, in the order of the transcript. */
import type { Effort } from "./effort.ts";
import { MODES, type Mode } from "./layout.ts";
import type { Scenario } from "./scenario.ts";
import { cloaks } from "./scenarios/cloak.ts";
import { gpa } from "./scenarios/gpa.ts";
import { guest } from "./scenarios/guest.ts";
import { gva } from "./scenarios/gva.ts";
import { hostile } from "./scenarios/hostile.ts";
import { integrity } from "./scenarios/integrity.ts";
import { objects } from "./scenarios/objects.ts";
import { registers } from "./scenarios/registers.ts";
import { soaks } from "./scenarios/soak.ts";
import { state } from "./scenarios/state.ts";
import { storm } from "./scenarios/storm.ts";
import { stubs } from "./scenarios/stubs.ts";
import { swapped } from "./scenarios/swapped.ts";
import { tables } from "./scenarios/tables.ts";
import { unpackers } from "./scenarios/unpacker.ts";
import { vasMonitors } from "./scenarios/vas-monitor.ts";

export const suite: readonly Scenario[] = [
  ...guest,
  ...stubs,
  ...gpa,
  ...tables,
  ...gva,
  ...objects,
  ...vasMonitors,
  ...unpackers,
  ...cloaks,
  ...registers,
  ...integrity,
  ...swapped,
  ...state,
  ...hostile,
  ...storm,
  ...soaks,
];

/** Each scenario with the modes that it is to run in: all it has, or one of them, another in each. */
export function runs({ everyMode }: Effort): { scenario: Scenario; mode: Mode }[] {
  const modesOf = ({ name, modes = MODES }: Scenario): readonly Mode[] =>
    everyMode ? modes : [modes[Bun.hash.crc32(name) % modes.length] as Mode];
  return MODES.flatMap((mode) =>
    suite.filter((s) => modesOf(s).includes(mode)).map((scenario) => ({ scenario, mode })),
  );
}
