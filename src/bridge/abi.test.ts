// SPDX-License-Identifier: MIT
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { ABI_OUTPUT, generateAbi } from "../../hv/abi/gen.ts";

test("abi.ts is what hvi.h gives", () => {
  // On a difference: bun hv/abi/gen.ts
  expect(readFileSync(ABI_OUTPUT, "utf8")).toBe(generateAbi());
});
