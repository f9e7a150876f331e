// Call addJob for some seconds; arguments and figures are those of callers_ours.py.
import { Logger, makeWorkerUtils } from "graphile-worker";

const [connectionString, callers, seconds] = process.argv.slice(2);
const utils = await makeWorkerUtils({ connectionString, logger: new Logger(() => () => {}) });
const took = [];

const call = async (until) => {
  for (let began = performance.now(); began < until; began = performance.now()) {
    await utils.addJob("noop", { n: 1 });
    took.push((performance.now() - began) / 1000);
  }
};
const callAtOnce = async (length) => {
  const until = performance.now() + length * 1000;
  await Promise.all(Array.from({ length: Number(callers) }, () => call(until)));
};

await callAtOnce(Number(seconds) / 10);
took.length = 0;
const cpu = process.cpuUsage();
const began = performance.now();
await callAtOnce(Number(seconds));
const elapsed = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ seconds: elapsed, cpu: (user + system) / 1e6, took }));
await utils.release();
