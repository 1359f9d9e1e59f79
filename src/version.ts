// SPDX-License-Identifier: MIT
import manifest from "../package.json" with { type: "json" };

/** Version of hvi, from package.json. */
export const VERSION: string = manifest.version;
