"""What workers and signals tell, and what becomes of a worker that breaks down."""

import sys
import time

import pytest

from graphile_worker_py import Events, Runner
from graphile_worker_py.events import (
    Event,
    JobSuccess,
    PoolFatalError,
    WorkerCreate,
    WorkerEvent,
    WorkerFatalError,
    WorkerGetJobStart,
    WorkerRelease,
    WorkerStop,
)
from tests.support.processes import Processes
from tests.support.running import Jobs, Told

pytestmark = pytest.mark.any_server

SIGNALLED = """
import asyncio
from graphile_worker_py import Events, Runner

async def hang(payload):
    print("began", flush=True)
    await asyncio.Event().wait()

def tell(event):
    print(event.name, event.signal, flush=True)

async def main():
    events = Events()
    events.subscribe("gracefulShutdown", tell)
    events.subscribe("forcefulShutdown", tell)
    async with Runner(tasks={"hang": hang}, events=events) as runner:
        await runner.wait()

asyncio.run(main())
"""


async def test_a_worker_tells_when_it_is_made_asks_for_a_job_and_is_to_stop(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    async with Runner(dsn, tasks={"work": print, "other": print}, events=told.events) as runner:
        await told.seen(WorkerGetJobStart, count=2)
        assert told.of(WorkerRelease) == []
    (created,) = told.of(WorkerCreate)
    assert created.tasks == ("work", "other")
    assert [event.name for event in told.of(WorkerEvent)] == [
        "worker:create",
        "worker:getJob:start",
        "job:start",
        "job:success",
        "job:complete",
        "worker:getJob:start",
        "worker:release",
        "worker:stop",
    ]
    about = {(event.worker_id, event.pool_id) for event in told.of(WorkerEvent)}
    assert about == {(created.worker_id, runner.pool_id)}


class FaultyEvents(Events):
    """Events of somebody's own, at fault once a job has succeeded."""

    def emit(self, event: Event) -> None:
        """Tell it, unless it is the success of a job."""
        if event.name == JobSuccess.name:
            raise LookupError("at fault")
        super().emit(event)


async def test_a_worker_that_breaks_down_is_told_and_stops_its_pool(dsn: str) -> None:
    """Nothing that a task does breaks a worker: it needs a fault of its surroundings."""
    jobs, told = Jobs(dsn), list[Event]()
    events = FaultyEvents()
    events.subscribe(Event, told.append)
    job_id = jobs.add("work", queue_name="q")
    with pytest.raises(LookupError, match="at fault"):
        async with Runner(dsn, tasks={"work": print}, concurrent_jobs=2, events=events) as runner:
            await runner.wait()
    broken = next(event for event in told if isinstance(event, WorkerFatalError))
    assert str(broken.error) == "at fault"
    stopped = {event.worker_id: event.error for event in told if isinstance(event, WorkerStop)}
    assert len(stopped) == 2
    assert stopped.pop(broken.worker_id) is broken.error
    assert [*stopped.values()] == [None]
    (fatal,) = [event for event in told if isinstance(event, PoolFatalError)]
    assert (fatal.error, fatal.action) == (broken.error, "run a worker")
    # Otherwise a job that breaks its worker would break the next one, too, for ever.
    job = jobs.one(job_id)
    assert job["attempts"] == 1
    assert job["last_error"].endswith("while it handled this job: LookupError: at fault")
    assert jobs.locked() == []


def test_signals_are_told_with_their_names(dsn: str, processes: Processes) -> None:
    Jobs(dsn).add("hang")
    process = processes.start([sys.executable, "-c", SIGNALLED], env={"DATABASE_URL": dsn})
    process.wait_for("began")
    process.terminate()
    process.wait_for("gracefulShutdown SIGTERM")
    time.sleep(0.35)  # in which a signal that comes again is taken for the same one
    process.interrupt()
    assert process.wait() == 0
    assert process.lines() == ["began", "gracefulShutdown SIGTERM", "forcefulShutdown SIGINT"]
