"""What the jobs of a worker pool share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from graphile_worker_py.adding.adder import NOTHING_AROUND, Around
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.thread_sessions import ThreadSessions
from graphile_worker_py.sql.job_state import Left
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.completing import CompletingStatement
from graphile_worker_py.tasks.program import NOTHING_PROVIDED, Provided
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task


class PoolContext:
    """What the jobs of a worker pool share.

    Args:
        pool_id: Id of the pool.
        tasks: Its tasks, by identifier.
        database: Where the jobs are.
        logger: Where tasks log to.
        queue_names: Looks up names of serial queues.
        adding: What plugins do around adding jobs.
        most_completing: How many tasks may complete their jobs in transactions at once; others
            wait for their turn. Each of them keeps a connection of the pool.
        provided: What the program provides for tasks that ask for it.

    Attributes:
        thread_sessions: Lends connections to tasks in threads.
        complete: Makes the statement that records a batch of completed jobs; None without a worker.
        find_left: Finds what earlier attempts of a job have left; None without the tables for it.
        abort_reason: Why jobs that begin now should end at once; None while they may run.
    """

    __slots__ = (
        "abort_reason",
        "adding",
        "complete",
        "completing",
        "database",
        "find_left",
        "logger",
        "pool_id",
        "provided",
        "queue_names",
        "tasks",
        "thread_sessions",
    )

    def __init__(
        self,
        *,
        pool_id: str,
        tasks: Mapping[str, Task[Any]],
        database: Database,
        logger: logging.Logger,
        queue_names: QueueNames,
        adding: Around = NOTHING_AROUND,
        most_completing: int = 1,
        provided: Provided = NOTHING_PROVIDED,
    ) -> None:
        self.complete: Callable[[Sequence[Settled]], CompletingStatement] | None = None
        self.find_left: Callable[[Job], Awaitable[Left]] | None = None
        self.thread_sessions = ThreadSessions()
        self.completing = asyncio.Semaphore(most_completing)
        self.pool_id = pool_id
        self.tasks = tasks
        self.database = database
        self.logger = logger
        self.queue_names = queue_names
        self.adding = adding
        self.provided = provided
        self.abort_reason: AbortReason | None = None
