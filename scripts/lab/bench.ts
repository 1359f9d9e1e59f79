// SPDX-License-Identifier: MIT
/** `npm run bench:vmx`: what an exit costs on KVM and on hvi, in instructions, in one boot of the lab. */
import { costTable, parseCosts } from "../../bench/vmx/costs.ts";
import { labLock, runLab } from "./lab.ts";
import { STEPS } from "./steps.ts";

const unlock = await labLock();
let failed = false;
await runLab(
  {
    hardware: { series: "6.1", model: "broadwell_ult", cpus: 1 },
    verbose: false,
    print: () => {},
  },
  STEPS.filter((s) => s.name === "exit-cost"),
  (o) => {
    for (const line of costTable(parseCosts(o.result?.files.get("costs") ?? ""))) console.log(line);
    failed = o.verdict !== "ok";
    for (const reason of o.reasons) console.error(`${o.verdict}: ${reason}`);
  },
);
unlock();
process.exit(failed ? 1 : 0);
