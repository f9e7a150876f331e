"""Run jobs: `run`, `run_once`, `Runner` and `run_migrations`."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self, Unpack

from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import aio, config, events
from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.checks import check_flag
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.events import Events
from graphile_worker_py.observing.log import log_events
from graphile_worker_py.plugins import Hooks, Plugins
from graphile_worker_py.postgres.connecting import AsyncPool, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.processes.signals import handle_signals
from graphile_worker_py.runner_options import RunnerOptions, Setup
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.schema.own import install as install_side_schema
from graphile_worker_py.workers.health import Health
from graphile_worker_py.workers.succession import Succession
from graphile_worker_py.workers.waits import Waits

# Importing cron takes a third of the time of all other modules; most programs have no crontab.
if TYPE_CHECKING:
    from graphile_worker_py.cron import Cron


class Runner(JobAdder):
    """Runs jobs in the background of an `async with` block.

    Entering it connects, installs or upgrades the schema, and starts to work. Leaving the block
    stops gracefully: running jobs finish.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller's, or None
            for `DATABASE_URL` or libpq's variables.
        options: See `RunnerOptions`.

    Raises:
        ConfigurationError: An option is unknown, or its value not allowed.
    """

    _waits: ClassVar[Waits] = Waits()

    def __init__(
        self, source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]
    ) -> None:
        self._setup = Setup(source, options, waits=self._waits)
        self._stack = AsyncExitStack()
        self._working: asyncio.Task[None] | None = None
        self._pool: Succession | None = None
        self._health_url: str | None = None
        self._cron: Cron | None = None

    @property
    def events(self) -> Events:
        """Where to subscribe to what happens."""
        return self._setup.events

    @property
    def pool_id(self) -> str:
        """Id of the worker pool, which is what its jobs are locked by."""
        return self._started_pool().pool_id

    def health(self) -> Health:
        """How it fares: whether it reaches the database, what it does, what last went wrong."""
        return self._started_pool().pool.health()

    @property
    def health_url(self) -> str | None:
        """Where it answers probes; None if it does not."""
        return self._health_url

    @property
    def about(self) -> str:
        """What it works on, in words: its tasks, and the schema of its jobs."""
        return self._setup.about

    async def __aenter__(self) -> Self:
        if self._working is not None:
            raise GraphileWorkerError("this Runner was started before; make a new one")
        try:
            await self._start()
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
        try:
            # Whoever can't wait any longer, and cancels, gets a forced stop, but no loose ends.
            await aio.run_to_end(self.stop(), on_cancel=self._started_pool().kill)
        finally:
            await self._stack.aclose()

    async def stop(self, reason: str = "Runner is stopping") -> None:
        """Stop gracefully: fetch no more, let running jobs finish, record their outcome.

        It waits for running jobs, so a job must not wait for it.

        Raises:
            WorkerPoolError: It did not stop cleanly.
        """
        self._started_pool().stop(reason)
        await self.wait()

    async def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop at once: running jobs are cut off, and returned with their attempt.

        Raises:
            WorkerPoolError: It did not stop cleanly.
        """
        self._started_pool().kill(reason)
        await self.wait()

    async def wait(self) -> None:
        """Wait until the runner has stopped, for whatever reason.

        Raises:
            WorkerPoolError: It could not run on, or not stop cleanly.
            IncompatibleSchemaError: The schema changed while it ran.
        """
        if self._working is None:
            raise GraphileWorkerError("this Runner was not started: use `async with`")
        # Whoever waits may be cancelled; the work is not.
        await asyncio.shield(self._working)

    async def _start(self) -> None:
        setup = self._setup
        if setup.health_port is not None:
            await self._answer_probes(setup.health_host, setup.health_port)
        pool = await self._stack.enter_async_context(setup.opened_pool())
        database = setup.database(pool)
        super().__init__(database, setup.hooks.around_adding(setup.events))
        await migrate.migrate(database, setup.hooks)
        await migrate.check_role(database, setup.needs)
        self._stack.callback(log_events(setup.events, setup.logger))
        self._pool = setup.succession(database)
        if setup.cron_items:
            from graphile_worker_py.cron import Cron  # noqa: PLC0415  # see above

            self._cron = Cron(database, setup.cron_items, events=setup.events)
        if setup.handles_signals:
            self._stack.enter_context(handle_signals(stop=self._on_stop, kill=self._on_kill))
        self._working = asyncio.create_task(self._work(), name="graphile-worker-py runner")

    async def _answer_probes(self, host: str, port: int) -> None:
        from graphile_worker_py.observing.probes import health_server  # noqa: PLC0415  # see above

        server = health_server(
            lambda: None if self._pool is None else self._pool.pool.health(), host=host, port=port
        )
        self._health_url = await self._stack.enter_async_context(server)
        self._setup.logger.info("Answering probes on %s", self._health_url)

    async def _work(self) -> None:
        pool = self._started_pool()
        try:
            if self._cron is None:
                await pool.run()
            else:
                await _run_beside(self._cron, pool)
        finally:
            self.events.emit(events.Stop())

    def _on_stop(self, name: str) -> None:
        self.events.emit(events.GracefulShutdown(signal=name))
        self._started_pool().stop(f"Graceful worker shutdown due to {name}")

    def _on_kill(self, name: str) -> None:
        self.events.emit(events.ForcefulShutdown(signal=name))
        self._started_pool().kill(f"Forced worker shutdown due to {name}")

    def _started_pool(self) -> Succession:
        if self._pool is None:
            raise GraphileWorkerError("this Runner was not started: use `async with`")
        return self._pool


async def run(source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]) -> None:
    """Run jobs until SIGINT or SIGTERM, or until cancelled.

    The first signal stops gracefully: running jobs finish. The second one cuts them off and
    returns them. A cancellation stops gracefully, too.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller's, or None
            for `DATABASE_URL` or libpq's variables.
        options: See `RunnerOptions`.

    Raises:
        ConfigurationError: An option is unknown, or its value not allowed.
        psycopg.OperationalError: The database can't be reached at the start.
        MigrationError: The schema can't be installed or upgraded.
        MissingRightsError: The role may not run jobs, or would not see them.
        IncompatibleSchemaError: The schema is newer than this release can work on.
        WorkerPoolError: It could not run on, or not stop cleanly.
    """
    async with Runner(source, **options) as runner:
        await runner.wait()


async def run_once(source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]) -> None:
    """Run all jobs that are due, and what they add that is due, then return.

    Serial queues are drained. Jobs that fail wait for their next attempt and are not waited for.
    No cron, and no sweep for stale locks.

    Args:
        source: As for `run`.
        options: As for `run`; those about cron are checked and not used.

    Raises:
        As `run`.
    """
    setup = Setup(source, options, waits=Runner._waits)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(setup.opened_pool())
        database = setup.database(pool)
        await migrate.migrate(database, setup.hooks)
        await migrate.check_role(database, rights.WORKING)
        stack.callback(log_events(setup.events, setup.logger))
        workers = setup.succession(database, once=True)
        if setup.handles_signals:
            stack.enter_context(
                handle_signals(
                    stop=lambda name: workers.stop(f"Graceful worker shutdown due to {name}"),
                    kill=lambda name: workers.kill(f"Forced worker shutdown due to {name}"),
                )
            )
        await workers.run()


async def run_migrations(
    source: str | AsyncPool | None = None,
    *,
    schema: str | None = None,
    side_schema: bool = False,
    hooks: Plugins = (),
) -> None:
    """Install the schema, or upgrade it; nothing happens if it is up to date.

    Args:
        source: As for `run`.
        schema: Name of the schema; None means `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.
        side_schema: Whether to install the schema `graphile_worker_py` too, in which worker pools
            register. They do so themselves, if their role may.
        hooks: Plugins that take part in `bootstrap` and `migrate`.

    Raises:
        MigrationError: It can't be done; the message says why.
    """
    name = config.schema_name(schema)
    check_flag("side_schema", side_schema)
    plugins = Hooks(hooks)
    where = config.source(source, AsyncConnectionPool)
    async with opened_pool(where, max_size=2) as pool:
        database = Database(pool, schema=name)
        await migrate.migrate(database, plugins)
        if side_schema:
            async with pool.connection() as conn:
                await install_side_schema(database, conn)


async def _run_beside(cron: "Cron", pool: Succession) -> None:
    """Run cron for as long as a pool runs; what breaks in cron stops the pool in order.

    Raises what broke first as it is: a group of errors would be no `WorkerPoolError`.
    """
    broken: list[Exception] = []

    async def run_cron() -> None:
        try:
            await cron.run()
        except Exception as error:  # raised below
            broken.append(error)
            pool.stop("Cron has failed")

    async with asyncio.TaskGroup() as group:
        group.create_task(run_cron(), name="cron")
        try:
            await pool.run()
        except Exception as error:  # raised below
            broken.append(error)
        finally:
            cron.close()
    if broken:
        raise broken[0]
