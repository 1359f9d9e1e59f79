// SPDX-License-Identifier: MIT
/**
 * The entry of the single executable: the files that it carries inside, then the command line.
 * `bun build --compile` embeds each file imported with `{ type: "file" }`.
 */
import soft from "../build/libhvi-soft.so" with { type: "file" };
import zydis from "../build/zydis.wasm" with { type: "file" };
import { registerAsset } from "./bridge/assets.ts";

registerAsset("libhvi-soft.so", soft);
registerAsset("zydis.wasm", zydis);
await import("./main.ts");
