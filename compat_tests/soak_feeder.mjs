// Adds the jobs that others ask for in ledger.requests, with the Node package, until stopped.
import { makeWorkerUtils, Logger } from "graphile-worker";

const [connectionString] = process.argv.slice(2);
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString, logger });
const TAKE = `
delete from ledger.requests where id in (select id from ledger.requests order by id limit 50)
returning id, call`;
let stopped = false;
process.on("SIGTERM", () => {
  stopped = true;
});
console.log("ready");
let lost = 0;
for (;;) {
  const { rows } = await utils.withPgClient((client) => client.query(TAKE));
  rows.sort((one, other) => one.id - other.id);
  for (const { call } of rows) {
    const [method, ...given] = call;
    let result = await utils[method](...given);
    // A key whose job is being fetched at that very moment: nothing was added.
    while (result.id === null) {
      lost += 1;
      result = await utils[method](...given);
    }
  }
  if (rows.length === 0) {
    if (stopped) {
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
await utils.release();
console.log("lost", lost);
