// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { fakeVm } from "./bridge/fake.fixture.ts";
import {
  COUNTERS_EXITS,
  COUNTERS_INSTRUCTIONS,
  HVI_ACCESS_WRITE,
  HVI_EXIT_CPUID,
  HVI_EXIT_EPT,
  HVI_W,
  HVI_X,
  type Vcpu,
} from "./bridge/index.ts";
import { GpaHooks } from "./ept/gpa-hooks.ts";
import { noInstructions, violate } from "./ept/violation.fixture.ts";
import { ALLOW, DENY } from "./hook-action.ts";
import { Statistics } from "./statistics.ts";

test("exits are counted by reason; a reason that does not exist is none", () => {
  const statistics = new Statistics(fakeVm().vm);
  expect(statistics.read().exits).toEqual({});
  for (let i = 0; i < 3; i++) statistics.count(HVI_EXIT_EPT);
  statistics.count(HVI_EXIT_CPUID);
  statistics.count(10_000);
  expect(statistics.read().exits).toEqual({ EPT: 3, CPUID: 1 });
});

test("parts are read when asked, in the order they came, after time and vCPUs", () => {
  const { vm } = fakeVm({ vcpus: 2 });
  const statistics = new Statistics(vm);
  const counters = { hits: 0 };
  statistics.add({ name: "cache", read: () => ({ ...counters, kind: "direct" }) });
  counters.hits = 5;
  const words = (vm.vcpus[1] as Vcpu).u32;
  words[COUNTERS_EXITS >>> 2] = 7;
  words[(COUNTERS_INSTRUCTIONS >>> 2) + 1] = 1;
  const { parts } = statistics.read();
  expect(parts.map((part) => part.name)).toEqual(["time", "vcpu 0", "vcpu 1", "cache"]);
  expect(parts[0]?.values).toMatchObject({ guestTicks: 0, ticksPerSecond: 1e9 });
  expect(parts[2]?.values).toMatchObject({ exits: 7, instructions: 2 ** 32 });
  expect(parts[3]?.values).toEqual({ hits: 5, kind: "direct" });
});

test("page hooks have figures by answer, owner and page", () => {
  const { vm, backend } = fakeVm();
  const hooks = new GpaHooks(vm, noInstructions);
  hooks.add(5, HVI_W, () => DENY, { owner: "kernel" });
  hooks.add(6, HVI_W, () => ALLOW, { owner: "kernel" });
  hooks.add(6, HVI_X, () => ALLOW);
  hooks.commit();
  hooks.dispatch(violate(vm, backend, { gpa: 0x5000, access: HVI_ACCESS_WRITE, size: 4 }));
  expect(hooks.read()).toMatchObject({
    pages: 2,
    exits: 1,
    denied: 1,
    "owner kernel.hooks": 2,
    "owner kernel.calls": 1,
    "owner ?.hooks": 1,
    "page 0x5.calls": 1,
    "page 0x5.owners": "kernel",
  });
});
