// A Node worker whose jobs write down their runs in a file: the database is what is going to fail.
import { appendFileSync } from "node:fs";
import * as loaded from "graphile-worker";

const { run, Logger } = loaded.run ? loaded : loaded.default;
const [connectionString, file, options] = process.argv.slice(2);

function note(what, payload, job) {
  // The clock is the machine's, the same for all processes.
  const at = Number(process.hrtime.bigint()) / 1e9;
  const line = { what, n: payload.n, pool: job.locked_by, attempt: job.attempts, at };
  appendFileSync(file, `${JSON.stringify(line)}\n`);
}

async function work(payload, { job }) {
  note("began", payload, job);
  await new Promise((resolve) => setTimeout(resolve, 20));
  note("ended", payload, job);
}

const runner = await run({
  connectionString,
  ...JSON.parse(options),
  taskList: { work },
  logger: new Logger(() => (level, message) => console.error(level, message)),
});
console.log("ready");
await runner.promise;
