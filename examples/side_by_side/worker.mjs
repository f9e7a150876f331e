// The Node half: see README.md.
import { run } from "graphile-worker";

const runner = await run({
  connectionString: process.env.DATABASE_URL,
  concurrency: 4,
  taskList: {
    resize: async ({ image }, { addJob, job }) => {
      console.log(`node   resize   ${image}`);
      // The next step is a Python task in the same queue, so it waits for its turn.
      await addJob("caption", { image }, { queueName: "images", priority: job.priority });
    },
  },
});
console.log("node   ready");
await runner.promise;
