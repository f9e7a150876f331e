"""Call a task as a worker does, for a job that is not in the database."""

import logging
from collections.abc import Sequence
from typing import Any

from graphile_worker_py.adding.adder import NOTHING_AROUND, Around
from graphile_worker_py.checks import check_whole
from graphile_worker_py.clock import utc_now
from graphile_worker_py.events import Events
from graphile_worker_py.executors.executor import Executors
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.job import JOB_COLUMNS, Job, as_timestamp
from graphile_worker_py.job.spec import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, JobSpec
from graphile_worker_py.json_codec import dumps
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.tasks.completing import CompletingStatement
from graphile_worker_py.tasks.injection import NO_STATE, State
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.program import Provided
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task, check_tasks
from graphile_worker_py.workers.caller import Caller

POOL_ID = "graphile_worker_py.testing"
"""Id of the pool and the worker that the contexts of performed jobs name."""


def unsaved_job(spec: JobSpec, *, attempt: int = 1) -> Job:
    """The job that a worker would fetch for a spec, with id 0; nothing is written."""
    now = as_timestamp(utc_now())
    max_attempts = DEFAULT_MAX_ATTEMPTS if spec.max_attempts is None else spec.max_attempts
    values = {
        "id": 0,
        "task_id": 0,
        "payload": spec.payload_json().encode(),
        "priority": DEFAULT_PRIORITY if spec.priority is None else spec.priority,
        "run_at": now if spec.run_at is None else as_timestamp(spec.run_at),
        "attempts": attempt,
        "max_attempts": max(max_attempts, attempt),
        "created_at": now,
        "updated_at": now,
        "key": spec.job_key,
        "locked_at": now,
        "locked_by": POOL_ID,
        "revision": 0,
        "flags": None if spec.flags is None else dumps(dict.fromkeys(spec.flags, True)),
        "is_available": False,
    }
    return Job(tuple(values.get(name) for name in JOB_COLUMNS), spec.identifier)


async def perform(
    database: Database,
    task: Task[Any],
    spec: JobSpec,
    *,
    attempt: int = 1,
    adding: Around = NOTHING_AROUND,
    state: State = NO_STATE,
) -> Any:
    """Call a task for a job that is not in the database.

    The payload goes through JSON, is checked and built as the task annotates it, and the task gets
    a real context. Time limits and executors apply.

    Args:
        database: What the context of the task works on.
        task: The task.
        spec: The job.
        attempt: The number of the attempt, from 1.
        adding: What happens around jobs that the task adds.
        state: What a `lifespan` would yield.

    Returns:
        What the task returned.

    Raises:
        BaseException: What the task raised.
        ConfigurationError: A value is not allowed; the message names it.
    """
    check_whole("attempt", attempt, smallest=1)
    check_tasks([task])
    job = unsaved_job(spec, attempt=attempt)
    context = PoolContext(
        pool_id=POOL_ID,
        tasks={spec.identifier: task},
        database=database,
        logger=logging.getLogger("graphile_worker_py"),
        queue_names=QueueNames(database, delay=0.0),
        adding=adding,
        provided=Provided(state=state),
    )
    context.complete = _completed
    executors = Executors(
        context, most_processes=1, observed=Events(), patience=1.0, process_use=ProcessUse()
    )
    caller = Caller(POOL_ID, pool=context, executors=executors, hooks=Hooks())
    try:
        return await caller.call(job)
    finally:
        await executors.close()


def _completed(settled: Sequence[Settled]) -> CompletingStatement:
    """What completes a job that has no row: a statement that changes nothing."""
    ids = {job.id for job, *_ in settled}
    return CompletingStatement(Query("select 1", (), lambda _rows: ids), None, lambda _: None)
