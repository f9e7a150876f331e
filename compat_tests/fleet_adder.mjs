// Calls of the Node package's WorkerUtils, one after the other; prints their results as JSON.
import * as loaded from "graphile-worker";

const { makeWorkerUtils, Logger } = loaded.makeWorkerUtils ? loaded : loaded.default;
const [connectionString, schema, callsText] = process.argv.slice(2);
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString, schema, logger });
const results = [];
for (const [method, ...given] of JSON.parse(callsText)) {
  if (method === "removeJob") {
    const text = "select * from graphile_worker.remove_job($1)";
    results.push((await utils.withPgClient((client) => client.query(text, given))).rows[0]);
  } else {
    const spec = given[2];
    if (spec?.runAt !== undefined) {
      spec.runAt = new Date(spec.runAt);
    }
    results.push(await utils[method](...given));
  }
}
await utils.release();
console.log(JSON.stringify(results));
