"""Extension points: plugins take part in a step, and may change it or refuse it.

Events observe, plugins take part. Each step is wrapped by all plugins that override its method;
the first plugin is the outermost. A step that no plugin wraps costs nothing.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

from psycopg import AsyncConnection

from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql.get_jobs import Fetched, get_jobs
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.tasks.context import JobContext


class SchemaStep(Record):
    """What a plugin learns about the schema that is prepared or migrated.

    Attributes:
        conn: The connection on which it happens, in autocommit mode.
        schema: Name of the schema.
        server_version: PostgreSQL's version number, 180006 for 18.6.
    """

    conn: AsyncConnection[Any]
    schema: str
    server_version: int


class FetchRequest(Record):
    """A fetch that is about to happen.

    Attributes:
        pool_id: Id of the pool.
        count: Most jobs to lock.
        forbidden_flags: Jobs with one of these flags are not fetched; None forbids no flag.
        tasks: Identifiers of the tasks whose jobs are fetched.
        lock: Makes the statement that locks the jobs. Parts of this package have others; it is not
            for plugins of users, because it has to know the tables.
    """

    pool_id: str
    count: int
    forbidden_flags: Sequence[str] | None
    tasks: frozenset[str]
    lock: Callable[..., Query[Fetched | None]] = get_jobs


class PartEnd(StrEnum):
    """When a pool that stops ends a part of it."""

    WITH_FETCHING = "with fetching"
    """As soon as no more jobs are fetched, while running jobs finish."""
    AFTER_OUTCOMES = "after outcomes"
    """Once the outcomes of all jobs are recorded."""


class Part(Record):
    """A coroutine that runs as long as a worker pool does.

    Attributes:
        name: Names it in logs.
        run: Called when the pool starts. The pool cancels it at its end; if it raises, the pool
            stops with that error.
        ends: When a stopping pool cancels it.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    ends: PartEnd = PartEnd.AFTER_OUTCOMES


class Rider(Record):
    """A statement that is part of those that record outcomes: both are committed, or neither.

    It can write rows elsewhere, call functions, and add jobs. It can't fail or delay an outcome:
    after an error the outcome is recorded without it, and the error is counted. If the error shows
    that its tables or rights are missing, it is left out for a minute.

    Attributes:
        name: Names it in logs and in the health of the pool.
        bind: Called with each batch of outcomes of one kind; returns the statement and its values,
            or None if there is nothing to do. It must be quick, and may not raise.
    """

    name: str
    bind: Callable[[Sequence[Settled]], BoundRider | None]


class Chore(Record):
    """Work that one pool of the schema, the leader, does for all of them.

    Attributes:
        name: What it does, as a verb with its object: it completes `Could not …` in the log.
        interval: Seconds between two runs; the first one follows as soon as a pool leads.
        run: Called with a connection of the pool, in autocommit mode; it must leave the settings
            of the session as they are. It is cut off after a minute, so it works in small chunks.
            Two pools may do it at the same moment.
        leaf: As for the plugin, which it is taken from.
    """

    name: str
    interval: float
    run: Callable[[AsyncConnection[Any]], Awaitable[None]]
    leaf: str | None = None


class Beating(Record):
    """What a plugin does after each heartbeat.

    Attributes:
        name: As for a `Chore`.
        leaf: The leaf whose tables it needs; None if it needs none.
        beat: Called with the connection of the heartbeat.
    """

    name: str
    leaf: str | None
    beat: Callable[[AsyncConnection[Any]], Awaitable[None]]


Shown: TypeAlias = tuple[str, bytes]
"""The content type and the body of a page on the health port."""
Page: TypeAlias = Callable[[], Shown | Awaitable[Shown]]
"""Makes a page on the health port; it may be async."""


class Plugin:
    """Base of plugins: override the methods that you need; the others cost nothing.

    Most methods wrap a step. They go on with `await proceed(…)`, once, and may act before and
    after it. What they raise is raised by the step.

    Attributes:
        leaf: Name under which the plugin has registered migrations of the side schema; None if it
            has no tables there. Where they were not applied, `recovered` and `beat` are not called.
    """

    leaf: str | None = None

    def setup(self, events: Events) -> None:
        """Subscribe to events; called once, before a runner starts or utils are opened."""

    async def bootstrap(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Around the creation of the schema and its migrations table, where they are missing.

        Called by the program that creates them, with its plugins: a `Runner`, `WorkerUtils` or
        `run_migrations`. A program that starts later finds them and calls `migrate` only.
        """
        await proceed(step)

    async def migrate(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Around migrations; at every start with the plugin, even if there are none to apply."""
        await proceed(step)

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        proceed: Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]],
    ) -> Sequence[Job]:
        """Around adding jobs; a single job is a list of one.

        Proceed with changed specs (`dataclasses.replace`) to add other jobs, as many as were
        given. Raise to add none. In `SyncWorkerUtils` no event loop runs: a method of a plugin
        that awaits anything but `proceed` raises an error there.
        """
        return await proceed(specs)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Around each fetch.

        Proceed with a changed request (`dataclasses.replace`) to fetch fewer jobs, or to leave
        some to other pools; return `Fetched([], more=False)` to fetch none now. The next fetch
        follows the next announcement, or the poll interval. Jobs that `proceed` has locked and
        that are not in the returned `Fetched` are returned with their attempt; all of them are if
        this raises.
        """
        return await proceed(request)

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Around each call of a task; returns what the task returned.

        An exception fails the job, whether the task or the plugin raises it. Without `proceed`
        the task is not called, and the job counts as done.

        Args:
            ctx: The job with its worker and pool, and what an async task can do with them; for
                tasks of every kind.
            proceed: Calls the task.
        """
        return await proceed(ctx)

    def parts(self, pool: Any) -> Iterable[Part]:  # noqa: ARG002  # for those that override it
        """Coroutines that run as long as a worker pool does; called once when the pool starts.

        Args:
            pool: The `WorkerPool`: `pool_id`, `running`, and `stop`.
        """
        return ()

    def riders(self, pool: Any) -> Iterable[Rider]:  # noqa: ARG002  # for those that override it
        """Statements that record more than the outcome of a job; called once when the pool starts.

        Args:
            pool: As for `parts`.
        """
        return ()

    def settled(self, pool: Any, batch: Sequence[Settled]) -> None:
        """Count outcomes; called with those of one kind that were recorded together.

        It must be quick, because the pool waits for it. An error that it raises is logged.

        Args:
            pool: As for `parts`.
            batch: The outcomes. Those of jobs that were taken from the pool are not among them.
        """

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        """Act after each answered heartbeat, every two seconds by default.

        All plugins share a quarter of `dead_after`, two seconds by default. An error is logged and
        counted in the health of the pool; it does not fail the heartbeat.

        Args:
            pool: As for `parts`.
            conn: The connection of the heartbeat, in autocommit mode.
        """

    def chores(self, pool: Any) -> Iterable[Chore]:  # noqa: ARG002  # for those that override it
        """Work that one pool of the schema does for all; called once when the pool starts.

        Args:
            pool: As for `parts`.
        """
        return ()

    def trouble(self, pool: Any) -> str | None:
        """What the plugin can't do at the moment, and why; None if all is well.

        For the health of the pool, so it must be quick, and may not raise.

        Args:
            pool: As for `parts`.
        """

    def pages(self) -> Mapping[str, Page]:
        """Pages on the health port, by path; called once when a runner with `health_port` starts.

        A page is made on the event loop, so it must be quick, unless it is async; the client waits
        for at most two seconds. An error answers with status 500.
        The paths of the probes stay theirs.
        """
        return {}

    async def recovered(self, conn: AsyncConnection[Any], pools: Sequence[DeadPool]) -> None:
        """Release what dead pools held, in the transaction that frees their jobs.

        Each call has its own savepoint. If it raises or takes longer than ten
        seconds, the savepoint is rolled back, the error is logged and counted in the event
        `PoolRecovered`, and the jobs are freed all the same.

        Args:
            conn: The connection, within that transaction. The plugin must not end it.
            pools: The pools that died.
        """


Plugins: TypeAlias = Iterable[Plugin | type[Plugin] | str]
"""Plugins as users give them: objects, classes, paths `module:attribute`, or entry points."""
