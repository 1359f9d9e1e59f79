// SPDX-License-Identifier: MIT
/** Files imported with `{ type: "file" }` are paths. */
declare module "*.so" {
  const path: string;
  // biome-ignore lint/style/noDefaultExport: Bun gives the path of a file as its default export
  export default path;
}

declare module "*.wasm" {
  const path: string;
  // biome-ignore lint/style/noDefaultExport: as above
  export default path;
}
