// A Node worker whose jobs say what they are to do; the twin of fleet_worker.py.
import { EventEmitter } from "node:events";
import * as loaded from "graphile-worker";

const { run, runOnce, Logger } = loaded.run ? loaded : loaded.default;
const [settingsText] = process.argv.slice(2);
const { once, ...options } = JSON.parse(settingsText);

const BEGIN = `
insert into ledger.runs (job_id, side, task, name, queue, attempt, payload)
values ($1, 'node', $2, $3, $4, $5, $6::json) returning id`;
const END = "update ledger.runs set ended = clock_timestamp(), error = $2 where id = $1";

async function recorded(payload, helpers, work) {
  const { job } = helpers;
  const queue = await helpers.getQueueName();
  const { rows } = await helpers.query(BEGIN, [
    job.id, job.task_identifier, payload.name ?? null, queue, job.attempts,
    JSON.stringify(payload),
  ]);
  let error = null;
  try {
    await work();
  } catch (raised) {
    error = raised;
  }
  await helpers.query(END, [rows[0].id, error && error.message.replaceAll("\0", "")]);
  if (error) {
    throw error;
  }
}

// "fail": each time; "fail_until": in all attempts before this one.
function failIfTold(told, job) {
  if (told.fail !== undefined) {
    throw new Error(told.fail);
  }
  if (told.fail_until !== undefined && job.attempts < told.fail_until) {
    throw new Error(`attempt ${job.attempts}`);
  }
}

async function step(payload, helpers) {
  await recorded(payload, helpers, async () => {
    if (payload.hold !== undefined) {
      await helpers.query("select pg_advisory_xact_lock_shared($1)", [payload.hold]);
    }
    if (payload.ms !== undefined) {
      await new Promise((resolve) => setTimeout(resolve, payload.ms));
    }
    failIfTold(payload, helpers.job);
  });
}

async function batch(items, helpers) {
  await recorded(items, helpers, async () => {});
  return items.map(async (item) => {
    failIfTold(item, helpers.job);
  });
}

const events = new EventEmitter();
events.on("pool:gracefulShutdown", () => console.log("stopping"));
events.on("pool:gracefulShutdown:error", () => console.log("stop failed"));
const settings = {
  ...options,
  events,
  taskList: { step, other: step, batch },
  logger: new Logger(() => (level, message) => console.error(level, message)),
};
if (once) {
  events.on("worker:getJob:empty", () => console.log("no job found"));
  await runOnce(settings);
} else {
  const runner = await run(settings);
  console.log("ready");
  await runner.promise;
}
