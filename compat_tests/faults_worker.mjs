// A Node worker of a crew; the twin of tests/faults/member.py. Its jobs write down their runs in a
// file, for the database may be what fails.
import { appendFileSync } from "node:fs";
import { EventEmitter } from "node:events";
import * as loaded from "graphile-worker";

const { run, Logger } = loaded.run ? loaded : loaded.default;
const [connectionString, file, options] = process.argv.slice(2);
let runs = 0;

function note(run, what, more) {
  // The clock is the machine's, the same for all processes.
  const at = Number(process.hrtime.bigint()) / 1e9;
  appendFileSync(file, `${JSON.stringify({ run, what, at, ...more })}\n`);
}

async function work(payload, { job }) {
  const run = runs++;
  note(run, "began", { n: payload.n, pool: job.locked_by, attempt: job.attempts });
  await new Promise((resolve) => setTimeout(resolve, 20));
  note(run, "ended");
}

const events = new EventEmitter();
events.on("pool:create", ({ workerPool }) => console.log(`pool ${workerPool.id}`));
const runner = await run({
  connectionString,
  ...JSON.parse(options),
  taskList: { work },
  events,
  logger: new Logger(() => (level, message) => console.error(level, message)),
});
await runner.promise;
