"""`useNodeTime` and `use_node_time`: processes whose clock is an hour ahead, on one database."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from graphile_worker_py import WorkerUtils, clock, run_once
from tests.support.node import LATEST, Node
from tests.support.running import Jobs

AHEAD = timedelta(hours=1)
# What is imported sees the clock as it is by then.
PROGRAM = """
const Real = Date;
const now = () => Real.now() + 3_600_000;
globalThis.Date = class extends Real {
  constructor(...given) { given.length > 0 ? super(...given) : super(now()); }
  static now() { return now(); }
};
const { runOnce, makeWorkerUtils } = await import("graphile-worker");
const [connectionString, what] = process.argv.slice(2);
const options = { connectionString, useNodeTime: true };
if (what === "run") {
  await runOnce({ ...options, taskList: { work: () => {} } });
} else {
  const utils = await makeWorkerUtils(options);
  await utils.addJob("added", {});
  await utils.addJobs([{ identifier: "added", payload: {} }]);
  await utils.release();
}
"""


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the clock of this process be ahead."""

    def put_ahead() -> None:
        monkeypatch.setattr(clock, "utc_now", lambda: datetime.now(UTC) + AHEAD)

    return put_ahead


@pytest.mark.parametrize("runner", ["node", "python"])
async def test_what_is_due_is_told_by_the_clock_of_the_process(
    dsn: str, node: Node, wrong_clock: Callable[[], None], runner: str
) -> None:
    jobs = Jobs(dsn)
    now = datetime.now(UTC)
    jobs.add("work", run_at=(now + AHEAD / 2).isoformat())
    jobs.add("work", queue_name="q", run_at=(now + AHEAD / 2).isoformat())
    later = jobs.add("work", run_at=(now + 2 * AHEAD).isoformat())
    if runner == "node":
        node.run(LATEST, PROGRAM, dsn, "run")
    else:
        wrong_clock()
        await run_once(dsn, tasks={"work": print}, use_node_time=True)
    assert jobs.ids() == [later]


async def test_jobs_are_added_for_the_time_of_the_process(
    dsn: str, node: Node, wrong_clock: Callable[[], None]
) -> None:
    wrong_clock()
    async with WorkerUtils(dsn, use_node_time=True) as utils:
        await utils.add_job("added")
    node.run(LATEST, PROGRAM, dsn, "add")
    ahead = [job["run_at"] - job["created_at"] for job in Jobs(dsn).all()]
    assert len(ahead) == 3
    assert all(abs(each - AHEAD) < timedelta(minutes=1) for each in ahead)
