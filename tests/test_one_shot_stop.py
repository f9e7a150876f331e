"""A run that would end by itself is told to stop: its jobs may end, are aborted, and recorded."""

import sys

import pytest

from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

PROGRAM = """
import asyncio
from graphile_worker_py import LocalQueueOptions, run_once

async def until_aborted(payload, ctx):
    print("began", payload["n"], flush=True)
    await ctx.abort_event.wait()
    if payload["n"]:
        raise RuntimeError("aborted")

asyncio.run(
    run_once(
        tasks={"until_aborted": until_aborted},
        concurrent_jobs=2,
        local_queue=LocalQueueOptions(size=SIZE),
        graceful_shutdown_abort_timeout=0.2,
    )
)
print("ended", flush=True)
"""


@pytest.mark.parametrize("size", [-1, 5])
def test_some_time_into_a_stop_its_jobs_are_aborted_and_their_outcomes_recorded(
    dsn: str, processes: Processes, size: int
) -> None:
    jobs = Jobs(dsn)
    ids = jobs.add_many(5, "until_aborted")
    program = PROGRAM.replace("SIZE", str(size))
    process = processes.start(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], env={"DATABASE_URL": dsn}
    )
    process.wait_for("began", count=2)
    process.terminate()
    assert process.wait() == 0
    assert process.lines() == ["began 0", "began 1", "ended"]
    # The one that returned is done, the one that raised has failed, the others have not begun.
    assert jobs.ids() == ids[1:]
    assert [(job["attempts"], job["last_error"]) for job in jobs.all()] == [
        (1, "aborted"),
        (0, None),
        (0, None),
        (0, None),
    ]
    assert jobs.locked() == []
