"""Wire the parts: what a program calls to run jobs.

It is long because it is what users see: each function with its options, checks and explanations.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, Unpack

from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import aio, config, events
from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.checks import check_filled, check_flag, check_is, check_path, check_port
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.events import Events
from graphile_worker_py.loading.directory import load_tasks
from graphile_worker_py.observing.log import log_events
from graphile_worker_py.options import (
    HEALTH_HOST,
    WORKER_OPTION_NAMES,
    Check,
    ForbiddenFlags,
    LocalQueueOptions,
    WorkerOptions,
)
from graphile_worker_py.plugins import Hooks, Plugins
from graphile_worker_py.postgres.connecting import AsyncPool, checked_conninfo, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.processes.signals import handle_signals
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.schema.own import install as install_side_schema
from graphile_worker_py.tasks.task import Task, Tasks, check_tasks, task_list
from graphile_worker_py.workers.health import Health
from graphile_worker_py.workers.pool import WorkerPool, own_connections
from graphile_worker_py.workers.succession import Succession

# Reading it takes a third as long as all the rest; most programs have no recurring jobs.
if TYPE_CHECKING:
    from graphile_worker_py.cron import Cron, ParsedCronItem

MOST_NAMES: Final = 20
"""Most names of tasks in a log line."""


class RunnerOptions(TypedDict, total=False):
    """The options of `run`, `run_once` and `Runner`; None means not given.

    `tasks` or `task_directory` must be given. Those that `WorkerOptions` has too are explained
    there.
    """

    tasks: Tasks | None
    """`@task` functions, or callables by identifier."""
    task_directory: str | Path | None
    """Folder, or Python file, with tasks."""
    schema: str | None
    concurrent_jobs: int | None
    poll_interval: float | None
    max_pool_size: int | None
    prepared_statements: bool | None
    crontab: str | None
    """Text of a crontab."""
    crontab_file: str | Path | None
    """File with a crontab. At most one of these three may be given."""
    parsed_cron_items: "Sequence[ParsedCronItem] | None"
    """Cron items made in code with `parse_cron_items`."""
    forbidden_flags: ForbiddenFlags | None
    local_queue: LocalQueueOptions | None
    complete_job_batch_delay: float | None
    fail_job_batch_delay: float | None
    min_reset_locked_interval: float | None
    max_reset_locked_interval: float | None
    graceful_shutdown_abort_timeout: float | None
    listen_connection_string: str | None
    listen_echo_interval: float | None
    watchdog_timeout: float | None
    watchdog_exit: bool | None
    """End the process after `watchdog_timeout`, as the command line does."""
    no_side_schema: bool | None
    heartbeat_interval: float | None
    dead_after: float | None
    max_crashes: int | None
    use_node_time: bool | None
    worker_id: str | None
    get_queue_name_batch_delay: float | None
    no_handle_signals: bool | None
    """Leave signals to the caller."""
    health_port: int | None
    """Port to answer probes on; 0 takes a free one. None has none, nor has `run_once`."""
    health_host: str | None
    """Address to answer probes on; None means 127.0.0.1."""
    hooks: Plugins | None
    """Plugins that take part in what happens: objects, or names of installed entry points."""
    events: Events | None
    """Where to tell events; None makes a new one, `Runner.events`."""
    logger: logging.Logger | None
    """Where to log; None means the logger `graphile_worker_py`."""


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

    def __init__(
        self, source: str | AsyncPool | None = None, **options: Unpack[RunnerOptions]
    ) -> None:
        self._setup = _Setup(source, options)
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
        super().__init__(database)
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
    setup = _Setup(source, options)
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
) -> None:
    """Install the schema, or upgrade it; nothing happens if it is up to date.

    Args:
        source: As for `run`.
        schema: Name of the schema; None means `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.
        side_schema: Whether to install the schema `graphile_worker_py` too, in which worker pools
            register. They do so themselves, if their role may.

    Raises:
        MigrationError: It can't be done; the message says why.
    """
    name = config.schema_name(schema)
    check_flag("side_schema", side_schema)
    where = config.source(source, AsyncConnectionPool)
    async with opened_pool(where, max_size=2) as pool:
        database = Database(pool, schema=name)
        await migrate.migrate(database)
        if side_schema:
            async with pool.connection() as conn:
                await install_side_schema(database, conn)


class _Setup:
    """Options checked, and what is made from them."""

    def __init__(self, source: str | AsyncPool | None, options: RunnerOptions) -> None:
        unknown = set(options) - set(RunnerOptions.__annotations__)
        if unknown:
            raise config.unknown_option(min(unknown), sorted(RunnerOptions.__annotations__))
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        self._source = config.source(source, AsyncConnectionPool)
        _check_kinds(given)
        self.logger: logging.Logger = given.get("logger", logging.getLogger("graphile_worker_py"))
        self.events: Events = given.get("events", Events())
        self.hooks = Hooks(given.get("hooks", ()))
        self.hooks.setup(self.events)
        self.handles_signals = not given.get("no_handle_signals", False)
        self._watchdog_exit: bool = given.get("watchdog_exit", False)
        self.health_port: int | None = given.get("health_port")
        self.health_host: str = given.get("health_host", HEALTH_HOST)
        self._options: WorkerOptions = config.worker_options(
            {name: value for name, value in given.items() if name in WORKER_OPTION_NAMES}
        )
        if self._options.listen_connection_string is not None:
            checked_conninfo(self._options.listen_connection_string, "listen_connection_string")
        self._tasks = _tasks(given, self.logger)
        self.cron_items = _cron_items(given)

    @property
    def about(self) -> str:
        """What there is to do, in words."""
        names = sorted(self._tasks)
        shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
        return f"{len(names)} task(s) of schema {self._options.schema!r}: {shown}"

    @property
    def needs(self) -> rights.Needs:
        """What the role must be allowed to do."""
        return rights.SCHEDULING if self.cron_items else rights.WORKING

    def opened_pool(self) -> Any:
        """The connection pool, as an async context manager."""
        return opened_pool(
            self._source,
            max_size=self._options.max_pool_size - own_connections(self._options),
            prepared_statements=self._options.prepared_statements,
        )

    def database(self, pool: AsyncPool) -> Database:
        """The database behind a pool."""
        return Database(
            pool,
            schema=self._options.schema,
            prepared_statements=self._options.prepared_statements is not False,
            use_node_time=self._options.use_node_time,
        )

    def succession(self, database: Database, *, once: bool = False) -> Succession:
        """A worker pool, not running yet, and those that are to take its place."""
        return Succession(lambda: self._worker_pool(database, once=once), logger=self.logger)

    def _worker_pool(self, database: Database, *, once: bool) -> WorkerPool:
        return WorkerPool(
            database,
            self._tasks,
            self._options,
            logger=self.logger,
            events=self.events,
            hooks=self.hooks,
            once=once,
            ends_process=self._watchdog_exit,
        )


def _check_kinds(given: dict[str, Any]) -> None:
    """Check the options that no pool has, each by itself."""
    checks: dict[str, Check] = {
        "task_directory": check_path,
        "crontab": partial(check_is, kind=str, how="the text of a crontab"),
        "crontab_file": check_path,
        "parsed_cron_items": _check_cron_items,
        "watchdog_exit": check_flag,
        "no_handle_signals": check_flag,
        "health_port": check_port,
        "health_host": check_filled,
        "events": partial(check_is, kind=Events, how="an object made by Events()"),
        "logger": partial(
            check_is,
            kind=(logging.Logger, logging.LoggerAdapter),
            how="a logging.Logger",
        ),
    }
    for name, check in checks.items():
        if name in given:
            check(name, given[name])


def _check_cron_items(name: str, value: object) -> None:
    from graphile_worker_py.cron import ParsedCronItem  # noqa: PLC0415  # see above

    allowed = "a list of what parse_cron_items, parse_crontab or read_crontab return"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    for item in value:
        if not isinstance(item, ParsedCronItem):
            raise ConfigurationError(f"{name} must be {allowed}; {item!r} is none")


def _tasks(given: dict[str, Any], logger: logging.Logger) -> dict[str, Task[Any]]:
    if "tasks" in given and "task_directory" in given:
        raise ConfigurationError("tasks and task_directory were both given; give one of them")
    if "task_directory" in given:
        tasks = load_tasks(given["task_directory"], logger=logger)
    elif "tasks" in given:
        tasks = task_list(given["tasks"])
    else:
        raise ConfigurationError("neither tasks nor task_directory was given")
    check_tasks(tasks.values())
    return tasks


def _cron_items(given: dict[str, Any]) -> "Sequence[ParsedCronItem]":
    sources = [name for name in ("crontab", "crontab_file", "parsed_cron_items") if name in given]
    if not sources:
        return ()
    from graphile_worker_py.cron import parse_crontab, read_crontab  # noqa: PLC0415  # see above

    match sources:
        case ["crontab"]:
            return parse_crontab(given["crontab"])
        case ["crontab_file"]:
            return read_crontab(given["crontab_file"])
        case ["parsed_cron_items"]:
            return tuple(given["parsed_cron_items"])
    raise ConfigurationError(f"{' and '.join(sources)} were given; give one of them")


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
