// SPDX-License-Identifier: MIT
/** Every case, in the order of the transcript. */
import type { Case } from "./case.ts";
import { accesses } from "./cases/access.ts";
import { architecture } from "./cases/architecture.ts";
import { direct } from "./cases/direct.ts";
import { errors } from "./cases/errors.ts";
import { exits } from "./cases/exits.ts";
import { accessedDirty, areas, descriptors, frames, stack, strings } from "./cases/implicit.ts";
import { injections } from "./cases/inject.ts";
import { modes } from "./cases/modes.ts";
import { notify } from "./cases/notify.ts";
import { replies } from "./cases/replies.ts";
import { rights } from "./cases/rights.ts";
import { skips } from "./cases/skip.ts";
import { state } from "./cases/state.ts";
import { supplied } from "./cases/supplied.ts";
import { smp, views } from "./cases/views.ts";

export const suite: readonly Case[] = [
  ...rights,
  ...accesses,
  ...replies,
  ...supplied,
  ...notify,
  ...strings,
  ...stack,
  ...frames,
  ...descriptors,
  ...areas,
  ...skips,
  ...accessedDirty,
  ...exits,
  ...injections,
  ...views,
  ...smp,
  ...direct,
  ...state,
  ...modes,
  ...architecture,
  ...errors,
];
