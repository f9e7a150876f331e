// A Node worker under measurement; the same words as work_ours.py.
import { run, Logger } from "graphile-worker";

const [dsn, settingsText] = process.argv.slice(2);
const settings = JSON.parse(settingsText);
let count = 0;
let told = 0;
const latencies = [];

const batched = settings.local_queue_size > 0;
const runner = await run({
  connectionString: dsn,
  noHandleSignals: true,
  logger: new Logger(() => () => {}),
  taskList: {
    noop: async () => {
      count += 1;
    },
    timed: async (payload) => {
      latencies.push(Date.now() / 1000 - payload.sent);
    },
  },
  preset: {
    worker: {
      concurrentJobs: settings.concurrent_jobs,
      maxPoolSize: 10,
      ...(batched
        ? {
            localQueue: { size: settings.local_queue_size },
            completeJobBatchDelay: 0,
            failJobBatchDelay: 0,
          }
        : {}),
    },
  },
});
console.log("ready");
const timer = setInterval(() => {
  if (count !== told) {
    told = count;
    console.log("count", told, Date.now() / 1000);
  }
}, 20);
process.on("SIGTERM", async () => {
  clearInterval(timer);
  await runner.stop().catch(() => {});
  console.log(JSON.stringify({ count, latencies }));
  process.exit(0);
});
