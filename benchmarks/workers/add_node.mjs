// Add 100,000 jobs through addJobs, 10,000 at a time, and print the rate per second.
import { Logger, makeWorkerUtils } from "graphile-worker";

const jobs = 100_000;
const atATime = Number(process.argv[3] ?? 10000);
const utils = await makeWorkerUtils({
  connectionString: process.argv[2],
  logger: new Logger(() => () => {}),
});
const began = performance.now();
for (let at = 0; at < jobs; at += atATime) {
  await utils.addJobs(
    Array.from({ length: atATime }, (_, n) => ({ identifier: "noop", payload: { n: at + n } })),
  );
}
console.log(jobs / ((performance.now() - began) / 1000));
await utils.release();
