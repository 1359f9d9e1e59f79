// SPDX-License-Identifier: MIT
/**
 * Run after `npm install` has changed package-lock.json: adds entries for optional platform packages
 * that the registry at hand does not carry. npm leaves them out, and `npm ci` then refuses the file
 * although it would never install them here.
 */
import { readFileSync, writeFileSync } from "node:fs";

const path = new URL("../package-lock.json", import.meta.url);
const lock = JSON.parse(readFileSync(path, "utf8"));
const packages = lock.packages;

for (const info of Object.values({ ...packages })) {
  for (const [name, version] of Object.entries(info.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`;
    // Platform packages end in OS-CPU or OS-CPU-musl.
    const match = /-(android|darwin|linux|win32)-(x64|arm64)(-musl)?$/.exec(name);
    if (packages[key] !== undefined || match === null) continue;
    const [, os, cpu, musl] = match;
    packages[key] = {
      version,
      cpu: [cpu],
      dev: true,
      ...(os === "linux" ? { libc: [musl ? "musl" : "glibc"] } : {}),
      license: info.license,
      optional: true,
      os: [os],
      engines: info.engines,
    };
    console.log(`added ${name}@${version}`);
  }
}
lock.packages = Object.fromEntries(Object.entries(packages).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`);
