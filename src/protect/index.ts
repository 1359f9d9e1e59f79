// SPDX-License-Identifier: MIT
import { idt } from "./idt/index.ts";
import { kernelImage } from "./kernel-image/index.ts";
import type { Protection } from "./protection.ts";

/** Every protection there is. A new one is one more line here. */
export const protections: readonly Protection[] = [kernelImage, idt];

/**
 * Protections for `--protect`: `all`, `none`, or names separated by commas.
 * @throws RangeError naming the unknown one and those there are.
 */
export function selectProtections(list: string): Protection[] {
  if (list === "none") return [];
  if (list === "all") return [...protections];
  return list.split(",").map((name) => {
    const found = protections.find((p) => p.name === name.trim());
    if (found === undefined) {
      const known = protections.map((p) => p.name).join(", ");
      throw new RangeError(`unknown protection "${name.trim()}"; there are: ${known}, all, none`);
    }
    return found;
  });
}
