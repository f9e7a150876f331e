"""Run jobs until stopped: `run` and `Runner`; and install the schema they need."""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self, Unpack

from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import aio, config, events
from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.checks import check_flag
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import GraphileWorkerError, StoppedError
from graphile_worker_py.events import Events
from graphile_worker_py.observing.log import log_events
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.connecting import AsyncPool, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.processes.signals import handle_signals
from graphile_worker_py.runner_options import HISTORY, LIMITS, PAUSING, RunnerOptions, Setup
from graphile_worker_py.schema import migrate
from graphile_worker_py.schema.own import install as install_side_schema
from graphile_worker_py.sql.checkup import read_allowed_connections
from graphile_worker_py.steering.steering import Steering
from graphile_worker_py.workers.connections import formula
from graphile_worker_py.workers.health import Health
from graphile_worker_py.workers.stopping import Stopping
from graphile_worker_py.workers.succession import Pools
from graphile_worker_py.workers.waits import Waits

# Importing cron takes a third of the time of all other modules; most programs have no crontab.
if TYPE_CHECKING:
    from graphile_worker_py.cron import Cron


class Runner(JobAdder, Steering):
    """Runs jobs in the background of an `async with` block.

    Entering it connects, installs or upgrades the schema, and starts to run jobs. Leaving the block
    stops gracefully: running jobs finish.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller, or None
            for `DATABASE_URL` or libpq's variables.
        options: See `RunnerOptions`.

    Raises:
        ConfigurationError: An option is unknown, or its value is not allowed.
        StoppedError: While the block is entered: a signal stopped the start.
    """

    _waits: ClassVar[Waits] = Waits()

    def __init__(
        self, source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]
    ) -> None:
        self._setup = Setup(source, options, waits=self._waits)
        self._stack = AsyncExitStack()
        self._working: asyncio.Task[None] | None = None
        self._stopping = Stopping(self._setup.logger)
        self._health_url: str | None = None
        self._cron: Cron | None = None

    @property
    def events(self) -> Events:
        """The events of this runner, to subscribe to."""
        return self._setup.events

    @property
    def pool_id(self) -> str:
        """Id of the worker pool, of several the first one: the `locked_by` of its jobs."""
        return self._started_pool().pool_id

    @property
    def pool_ids(self) -> dict[str, str]:
        """The ids of the worker pools by their names."""
        return {pool.name: pool.pool_id for pool in self._started_pool().pools}

    def health(self) -> Health:
        """The state of the worker pool, its last contact with the database, its last error.

        Of several pools that of one which is not live, or not ready, if there is one.
        """
        return self._started_pool().health()

    def healths(self) -> dict[str, Health]:
        """The health of each worker pool by its name."""
        return {pool.name: pool.health() for pool in self._started_pool().pools}

    @property
    def health_url(self) -> str | None:
        """Address that answers health probes; None without `health_port`."""
        return self._health_url

    @property
    def about(self) -> str:
        """The tasks and the schema, for a log line."""
        return self._setup.about

    async def __aenter__(self) -> Self:
        if self._working is not None:
            raise GraphileWorkerError("this Runner was started before; make a new one")
        try:
            # First of all, so that a signal is not lost while the migrations of another process
            # take their time: the first process of a container ignores signals by default.
            if self._setup.handles_signals:
                self._stack.enter_context(handle_signals(stop=self._on_stop, kill=self._on_kill))
            async with aio.until(self._stopping.early):
                await self._start()
            self._stopping.started()
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
            # A cancellation turns the graceful stop into a forced one, which still ends in order.
            await aio.run_to_end(self.stop(), on_cancel=self._started_pool().kill)
        finally:
            await self._close_waiter()
            await self._stack.aclose()

    async def stop(self, reason: str = "Runner is stopping") -> None:
        """Stop gracefully: fetch no more jobs, let running jobs finish, record their outcomes.

        It waits for running jobs, so a job must not await it.

        Raises:
            WorkerPoolError: The worker pool did not stop cleanly.
        """
        self._started_pool().stop(reason)
        await self.wait()

    async def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop at once: running jobs are cancelled, and returned with their attempt.

        Raises:
            WorkerPoolError: The worker pool did not stop cleanly.
        """
        self._started_pool().kill(reason)
        await self.wait()

    async def wait(self) -> None:
        """Wait until the runner has stopped, for whatever reason.

        Raises:
            WorkerPoolError: The worker pool failed, or did not stop cleanly.
            IncompatibleSchemaError: The schema changed while the worker pool ran.
        """
        if self._working is None:
            raise GraphileWorkerError("this Runner was not started: use `async with`")
        # A cancellation of the waiting task must not reach the work.
        await asyncio.shield(self._working)

    async def _start(self) -> None:
        setup = self._setup
        with aio.keeping_cancellation():
            if setup.health_port is not None:
                await self._answer_probes(setup.health_host, setup.health_port)
            pool = await self._stack.enter_async_context(setup.opened_pool())
            database = setup.database(pool)
            super().__init__(database, setup.around_adding)
            await migrate.migrate(database, setup.hooks)
            await migrate.check_role(database, setup.needs)
            await self._check_connections(database)
            living = setup.living(self, self._stopping)
            state = await self._stack.enter_async_context(living)
        self._stack.callback(log_events(setup.events, setup.logger))
        self._stopping.pool = setup.worker_pools(database, state)
        if setup.cron_items:
            from graphile_worker_py.cron import Cron  # noqa: PLC0415  # see above

            setup.warn_of_missing_tasks()
            clock = utc_now if setup.uses_own_clock else None
            self._cron = Cron(
                database,
                setup.cron_items,
                events=setup.events,
                clock=clock,
                publishes=setup.has_side_schema,
            )
        self._working = asyncio.create_task(self._work(), name="graphile-worker-py runner")

    async def _check_connections(self, database: Database) -> None:
        """Log how many connections the pools may open, and whether the server allows them."""
        pools = list(self._setup.options_by_pool.values())
        most, parts = formula(pools, shared=database.pool.max_size)
        allowed = await database.run(read_allowed_connections())
        self._setup.logger.log(
            logging.INFO if most <= allowed else logging.WARNING,
            "Up to %d connections: %s; the server allows %d",
            most,
            parts,
            allowed,
        )

    async def _answer_probes(self, host: str, port: int) -> None:
        from graphile_worker_py.observing.probes import health_server  # noqa: PLC0415  # see above

        server = health_server(
            lambda: None if (pools := self._stopping.pool) is None else pools.health(),
            host=host,
            port=port,
            pages=self._setup.hooks.pages(),
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
        self._stopping.stop(name)

    def _on_kill(self, name: str) -> None:
        self.events.emit(events.ForcefulShutdown(signal=name))
        self._stopping.kill(name)

    def _started_pool(self) -> Pools:
        if self._stopping.pool is None:
            raise GraphileWorkerError("this Runner was not started: use `async with`")
        return self._stopping.pool


async def run(source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]) -> None:
    """Run jobs until SIGINT or SIGTERM, or until cancelled.

    The first signal stops gracefully: running jobs finish. The second one cancels them and returns
    them to the database. A cancellation stops gracefully, too.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller, or None
            for `DATABASE_URL` or libpq's variables.
        options: See `RunnerOptions`.

    Raises:
        ConfigurationError: An option is unknown, or its value is not allowed.
        psycopg.OperationalError: The database can't be reached at the start.
        MigrationError: The schema can't be installed or upgraded.
        MissingRightsError: The role may not run jobs, or would not see them.
        IncompatibleSchemaError: The schema is newer than this release can work on.
        WorkerPoolError: The worker pool failed, or did not stop cleanly.
    """
    # A signal during the start is a stop like any other.
    with suppress(StoppedError):
        async with Runner(source, **options) as runner:
            await runner.wait()


async def run_migrations(
    source: str | AsyncPool | None = None,
    *,
    schema: str | None = None,
    side_schema: bool = False,
    hooks: Plugins = (),
) -> None:
    """Install or upgrade the schema, unless it is up to date.

    Args:
        source: As for `run`.
        schema: Name of the schema; None means `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.
        side_schema: Also install the schema `graphile_worker_py`, in which worker pools register.
            Worker pools install it themselves if their role may.
        hooks: Plugins that take part in `bootstrap` and `migrate`.

    Raises:
        MigrationError: The schema can't be installed or upgraded; the message says why.
    """
    name = config.schema_name(schema)
    check_flag("side_schema", side_schema)
    # The tables of leaves are registered when their plugins are loaded.
    plugins = Hooks(hooks, leaves=(HISTORY, LIMITS, PAUSING) if side_schema else ())
    where = config.source(source, AsyncConnectionPool)
    with aio.keeping_cancellation():
        async with opened_pool(where, max_size=2) as pool:
            database = Database(pool, schema=name)
            await migrate.migrate(database, plugins)
            if side_schema:
                async with pool.connection() as conn:
                    await install_side_schema(database, conn)


async def _run_beside(cron: "Cron", pool: Pools) -> None:
    """Run cron for as long as a pool runs; an error of cron stops the pool gracefully.

    Raises the first error as it is: an exception group would not be a `WorkerPoolError`.
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
