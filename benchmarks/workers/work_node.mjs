// A measured Node worker; it prints the same lines as progress.py.
import { run, Logger } from "graphile-worker";

const [dsn, settingsText] = process.argv.slice(2);
const settings = JSON.parse(settingsText);
let count = 0;
let told = 0;
let last = 0;
const latencies = [];
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const seen = () => {
  count += 1;
  last = now();
};

const batched = settings.local_queue_size > 0;
const runner = await run({
  connectionString: dsn,
  noHandleSignals: true,
  logger: new Logger(() => () => {}),
  taskList: {
    noop: async (_payload, helpers) => {
      if (settings.borrows) await helpers.query("select 1");
      seen();
    },
    timed: async (payload) => {
      latencies.push(now() - payload.sent);
      seen();
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
    console.log("count", told, last);
  }
}, 20);
process.on("SIGTERM", async () => {
  clearInterval(timer);
  await runner.stop().catch(() => {});
  console.log(JSON.stringify({ count, latencies }));
  process.exit(0);
});
