"""What a program may do with jobs without running them: add and administer."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar, Unpack

from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import aio, config
from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.checks import check_flag, check_is, check_whole
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import PayloadT, SpecOptions, TaskName
from graphile_worker_py.looking.back import LooksBack
from graphile_worker_py.looking.now import LooksNow
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.connecting import AsyncPool, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import AsyncGiven, taken
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.sql import admin
from graphile_worker_py.sql import cleanup as cleaning
from graphile_worker_py.sql.admin import Unlocked
from graphile_worker_py.sql.cleanup import CleanupPreview, CleanupTask
from graphile_worker_py.steering.limiting import LimitSteering
from graphile_worker_py.steering.steering import Steering

T = TypeVar("T")


class WorkerUtils(JobAdder, Steering, LimitSteering, LooksNow, LooksBack):
    """Adds and administers jobs; an async context manager.

    Entering it installs or upgrades the schema where that is needed, as Graphile Worker does.
    Where nothing is to be done, the role needs no right to do it. A role that would see no rows
    gets a `MissingRightsError`.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller's, or None
            for `DATABASE_URL` or libpq's variables.
        schema: Schema of the job tables; None means `GRAPHILE_WORKER_SCHEMA`, else
            `graphile_worker`.
        max_pool_size: Most connections to hold.
        prepared_statements: Whether statements are prepared on the server. None: unless there is
            a pooler before it.
        use_node_time: Whether jobs that are added without a time are to run now by the clock of
            this process, instead of the database's.
        nan_as_null: Whether NaN and infinities in payloads are stored as null, as Graphile Worker
            does, instead of being refused.
        migrate: Whether entering installs or upgrades the schema. False only checks it: a schema
            that is missing raises `MigrationError`, and nothing in the database changes.
        hooks: Plugins that wrap adding jobs and migrations; see `Plugin`.
        events: Where to emit `JobsAdded`; None means that nothing subscribes but `hooks`.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    def __init__(
        self,
        source: str | AsyncPool | None = None,
        *,
        schema: str | None = None,
        max_pool_size: int = 10,
        prepared_statements: bool | None = None,
        use_node_time: bool = False,
        nan_as_null: bool = False,
        migrate: bool = True,
        hooks: Plugins = (),
        events: Events | None = None,
    ) -> None:
        self._source = config.source(source, AsyncConnectionPool)
        check_whole("max_pool_size", max_pool_size, smallest=1)
        if prepared_statements is not None:
            check_flag("prepared_statements", prepared_statements)
        check_flag("use_node_time", use_node_time)
        check_flag("nan_as_null", nan_as_null)
        check_flag("migrate", migrate)
        self._schema = config.schema_name(schema)
        self._max_pool_size = max_pool_size
        self._prepared_statements = prepared_statements
        self._use_node_time = use_node_time
        self._nan_as_null = nan_as_null
        self._migrates = migrate
        self._hooks = Hooks(hooks)
        if events is not None:
            check_is("events", events, Events, how="an object made by Events()")
        self.events = Events() if events is None else events
        """Where to subscribe to what happens."""
        self._hooks.setup(self.events)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        pool = await self._stack.enter_async_context(
            opened_pool(
                self._source,
                max_size=self._max_pool_size,
                prepared_statements=self._prepared_statements,
            )
        )
        database = Database(
            pool,
            schema=self._schema,
            prepared_statements=self._prepared_statements is not False,
            use_node_time=self._use_node_time,
        )
        around = self._hooks.around_adding(self.events, nan_as_null=self._nan_as_null)
        super().__init__(database, around)
        try:
            with aio.keeping_cancellation():
                if self._migrates:
                    await self.migrate()
                    await migrate.check_role(database, rights.LOOKING)
                else:
                    await database.drive(migrate.check_installed(self._schema))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close_waiter()
        await self._stack.aclose()

    @property
    def pool(self) -> AsyncPool:
        """The connection pool, for transactions that add jobs with other data."""
        return self._database.pool

    async def migrate(self) -> None:
        """Install or upgrade the schema; nothing happens if it is up to date.

        Raises:
            MigrationError: It can't be done; the message says why.
        """
        await migrate.migrate(self._database, self._hooks)

    async def complete_jobs(
        self, ids: Iterable[int | str], *, conn: AsyncGiven | None = None
    ) -> list[Job]:
        """Delete jobs as if they had succeeded.

        Jobs that a worker has locked within the last four hours, and ids that nobody has, are
        skipped; so they are by `permanently_fail_jobs` and `reschedule_jobs`.

        Args:
            ids: Ids of the jobs.
            conn: Connection to use, within its transaction; None means one from the pool. It is
                one of psycopg, or an `AsyncSession` or `AsyncConnection` of SQLAlchemy over it.
                All methods take it alike.

        Returns:
            The jobs that were deleted, by id.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not do it.
        """
        return await self._run(admin.complete_jobs(ids), conn)

    async def permanently_fail_jobs(
        self,
        ids: Iterable[int | str],
        reason: str | None = None,
        *,
        conn: AsyncGiven | None = None,
    ) -> list[Job]:
        """Give jobs up: they keep their rows, and are not tried again.

        Args:
            ids: Ids of the jobs.
            reason: Their `last_error`; None means `Manually marked as failed`.
            conn: As for `complete_jobs`.

        Returns:
            The jobs that were changed, as they are now, by id.
        """
        return await self._run(admin.permanently_fail_jobs(ids, reason), conn)

    async def reschedule_jobs(
        self,
        ids: Iterable[int | str],
        *,
        run_at: datetime | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        max_attempts: int | None = None,
        conn: AsyncGiven | None = None,
    ) -> list[Job]:
        """Change when and how often jobs run. None leaves a value as it is; 0 is a value.

        Workers are not told: they find the jobs when they next poll.

        Args:
            ids: Ids of the jobs.
            run_at: Not before this time, an aware datetime.
            priority: Smaller runs first.
            attempts: How often a job counts as tried; 0 gives it all its attempts back.
            max_attempts: It is given up after this many failures, at least 1.
            conn: As for `complete_jobs`.

        Returns:
            The jobs that were changed, as they are now, by id.
        """
        query = admin.reschedule_jobs(
            ids, run_at=run_at, priority=priority, attempts=attempts, max_attempts=max_attempts
        )
        return await self._run(query, conn)

    async def remove_job(self, job_key: str, *, conn: AsyncGiven | None = None) -> Job | None:
        """Delete the job with a key. One that is running loses its key, and is not tried again.

        A running job goes on, which is logged as a warning; `cancel_jobs` ends it.

        Returns:
            The job as it was when it was deleted, or, if it goes on running, as it is now: without
            key, and with the pool that runs it as `locked_by`. None if no job has the key.
        """
        return await self._run(admin.remove_job(job_key), conn)

    async def force_unlock_workers(
        self,
        pool_ids: Iterable[str],
        *,
        force: bool = False,
        conn: AsyncGiven | None = None,
    ) -> Unlocked:
        """Release the jobs and queues of dead worker pools. Jobs of a living pool would run twice.

        Args:
            pool_ids: Their ids, as in `Job.locked_by`; `workers` lists them.
            force: Also release those of pools whose heartbeat shows that they are alive. Pools of
                Node have no heartbeat.
            conn: As for `complete_jobs`.

        Returns:
            The numbers of jobs and queues that the pools had locked.

        Raises:
            GraphileWorkerError: A pool is alive, and `force` is not given.
        """
        if force:
            return await self._run(admin.force_unlock_workers(pool_ids), conn)
        return await self._run_steps(admin.unlock_dead_workers(pool_ids, self._schema), conn)

    async def cleanup(
        self,
        tasks: Iterable[CleanupTask | str] | None = None,
        *,
        task_identifiers_to_keep: Iterable[str] | None = None,
        older_than: timedelta | str | None = None,
        conn: AsyncGiven | None = None,
    ) -> dict[CleanupTask, int]:
        """Delete jobs that were given up, and task identifiers and queues without jobs.

        Best done while no worker runs and no transaction is adding jobs: a job that is not
        committed yet can't be seen, and is never run if its task or queue is deleted.

        Args:
            tasks: What to do (`CleanupTask`); always done in the order of that enum. None means
                `GC_JOB_QUEUES`, and `GC_TASK_IDENTIFIERS` too if it is said what to keep.
            task_identifiers_to_keep: Not deleted by `GC_TASK_IDENTIFIERS`.
            older_than: Jobs that failed for the last time within this time are kept: a `timedelta`,
                or a text such as `30d`. A job may count as up to six hours younger than it is.
            conn: As for `complete_jobs`. Without it each of the tasks is committed by itself.

        Returns:
            How many rows each of the tasks deleted.
        """
        queries = cleaning.cleanup(tasks, task_identifiers_to_keep, older_than)
        return {task: await self._run(query, conn) for task, query in queries.items()}

    async def preview_cleanup(
        self,
        tasks: Iterable[CleanupTask | str] | None = None,
        *,
        task_identifiers_to_keep: Iterable[str] | None = None,
        older_than: timedelta | str | None = None,
        conn: AsyncGiven | None = None,
    ) -> dict[CleanupTask, CleanupPreview]:
        """Count the rows that `cleanup` with the same arguments would delete now.

        Returns:
            The count for each of the tasks. `cleanup` may delete more task identifiers and queues:
            those whose last jobs it deletes itself.
        """
        queries = cleaning.preview(tasks, task_identifiers_to_keep, older_than)
        return {task: await self._run(query, conn) for task, query in queries.items()}

    async def _run_steps(self, steps: Steps[T], conn: AsyncGiven | None) -> T:
        own = None if conn is None else await taken(conn)
        return await self._database.drive(steps, conn=own)

    async def _run(self, query: Query[T], conn: AsyncGiven | None) -> T:
        own = None if conn is None else await taken(conn)
        return await self._database.run_patiently(query, conn=own)


async def add_job_adhoc(
    source: str | AsyncPool | None,
    identifier: str | TaskName[PayloadT],
    payload: PayloadT | None = None,
    *,
    schema: str | None = None,
    use_node_time: bool = False,
    **options: Unpack[SpecOptions],
) -> Job:
    """Add one job on connections made for it; for scripts. See `WorkerUtils.add_job`.

    Args:
        source: As for `WorkerUtils`.
        identifier: The task, or its name.
        payload: As for `WorkerUtils.add_job`.
        schema: As for `WorkerUtils`.
        use_node_time: As for `WorkerUtils`.
        options: As for `WorkerUtils.add_job`.
    """
    async with WorkerUtils(
        source, schema=schema, max_pool_size=2, use_node_time=use_node_time
    ) as utils:
        return await utils.add_job(identifier, payload, **options)
