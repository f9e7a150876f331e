"""The options of `run` and `Runner`: check them, and build what they describe."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypedDict

from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import config
from graphile_worker_py.adding.adder import Around
from graphile_worker_py.checks import check_flag, check_is
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.events import Events
from graphile_worker_py.loading.given import given_tasks
from graphile_worker_py.loading.recurring import given_items, with_items_of
from graphile_worker_py.options import (
    OPTIONS,
    WORKER_OPTION_NAMES,
    ForbiddenFlags,
    LocalQueueOptions,
    WorkerOptions,
)
from graphile_worker_py.options.declaring import Kind, Option
from graphile_worker_py.options.history import HistoryRetention
from graphile_worker_py.options.pools import DEFAULT_NAME, Pool, divided, pool_options, pools_of
from graphile_worker_py.options.process import PROCESS_OPTIONS
from graphile_worker_py.options.shedding import Shedding
from graphile_worker_py.plugins import Plugin, Plugins
from graphile_worker_py.plugins.hooks import Hooks, imported
from graphile_worker_py.postgres.connecting import AsyncPool, checked_conninfo, opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.schema import rights
from graphile_worker_py.tasks.injection import State
from graphile_worker_py.tasks.job_log import keeping_fields
from graphile_worker_py.tasks.program import Provided, SetUp, living, set_up
from graphile_worker_py.tasks.task import Tasks
from graphile_worker_py.workers.connections import connections_of, kept_connections
from graphile_worker_py.workers.in_common import InCommon
from graphile_worker_py.workers.pool import WorkerPool
from graphile_worker_py.workers.stopping import Stopping
from graphile_worker_py.workers.succession import Pools, Succession
from graphile_worker_py.workers.waits import Waits
from graphile_worker_py.workers.wiring import build_pool

# Importing cron takes a third of the time of all other modules; most programs have no crontab.
if TYPE_CHECKING:
    from graphile_worker_py.cron import ParsedCronItem

HISTORY: Final = "graphile_worker_py.history.plugin:History"
CAPTURING_HISTORY: Final = "graphile_worker_py.history.plugin:CapturingHistory"
"""The plugin that keeps history. It is named here only, because the core imports no leaf."""
PAUSING: Final = "graphile_worker_py.pausing.plugin:Pausing"
"""The plugin that heeds pauses."""
SHEDDING: Final = "graphile_worker_py.limits.shedding:LoadShedding"
"""The plugin that lets a pool fetch nothing while it has too much to do."""
LIMITS: Final = "graphile_worker_py.limits.plugin:Limits"
"""The plugin that keeps the limits of tasks."""
BREAKERS: Final = "graphile_worker_py.limits.breakers:Breakers"
"""The plugin that keeps the circuit breakers of tasks."""
MOST_NAMES: Final = 20
"""Maximum number of task names in a log line."""


class RunnerOptions(TypedDict, total=False):
    """The options of `run`, `run_once` and `Runner`, for type checkers; None means not given.

    Either `tasks` or `task_directory` is required. The page about configuration explains each
    option; their entries are in `options` and in `CODE_OPTIONS`.
    """

    tasks: Tasks | ModuleType | str | None
    task_directory: str | Path | None
    crontab: str | None
    crontab_file: str | Path | None
    parsed_cron_items: "Sequence[ParsedCronItem] | None"
    setup: Callable[[], State | None] | SetUp | str | None
    lifespan: Callable[[Any], Any] | str | None
    hooks: Plugins | None
    events: Events | None
    logger: logging.Logger | None
    no_handle_signals: bool | None
    watchdog_exit: bool | None
    shedding: Shedding | None
    health_port: int | None
    health_host: str | None
    schema: str | None
    pools: Mapping[str, Pool] | None
    concurrent_jobs: int | None
    poll_interval: float | None
    max_pool_size: int | None
    prepared_statements: bool | None
    forbidden_flags: ForbiddenFlags | None
    local_queue: LocalQueueOptions | None
    complete_job_batch_delay: float | None
    fail_job_batch_delay: float | None
    recording_durability: str | None
    min_reset_locked_interval: float | None
    max_reset_locked_interval: float | None
    graceful_shutdown_abort_timeout: float | None
    listen_connection_string: str | None
    listen_echo_interval: float | None
    watchdog_timeout: float | None
    dev: bool | None
    no_side_schema: bool | None
    history: str | None
    history_retention: HistoryRetention | Mapping[str, Any] | None
    history_payloads: bool | None
    result_limit: int | None
    heartbeat_interval: float | None
    dead_after: float | None
    max_crashes: int | None
    executable_exit_codes: bool | None
    use_node_time: bool | None
    nan_as_null: bool | None
    worker_id: str | None
    get_queue_name_batch_delay: float | None


def _check_cron_items(name: str, value: object) -> None:
    from graphile_worker_py.cron import ParsedCronItem  # noqa: PLC0415  # see above

    allowed = "a list of what parse_cron_items, parse_crontab or read_crontab return"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    for item in value:
        if not isinstance(item, ParsedCronItem):
            raise ConfigurationError(f"{name} must be {allowed}; got {item!r}")


CODE_OPTIONS: Final = (
    Option(
        name="crontab",
        kind=Kind.TEXT,
        check=partial(check_is, kind=str, how="the text of a crontab"),
        doc="Text of a crontab. At most one of `crontab`, `crontab_file` and `parsed_cron_items` "
        "is allowed.",
    ),
    Option(
        name="parsed_cron_items",
        kind=Kind.OBJECT,
        check=_check_cron_items,
        doc="List of cron items, made with `parse_cron_items`.",
    ),
    Option(
        name="no_handle_signals",
        kind=Kind.YES_NO,
        default=False,
        check=check_flag,
        doc="Install no signal handlers, because the program handles signals.",
    ),
    Option(
        name="watchdog_exit",
        kind=Kind.YES_NO,
        default=False,
        check=check_flag,
        doc="End the process after `watchdog_timeout`, as the command line does. Otherwise an "
        "error is logged.",
    ),
    Option(
        name="shedding",
        kind=Kind.OBJECT,
        check=partial(check_is, kind=Shedding, how="Shedding(...)"),
        doc="`Shedding` with thresholds above which the worker fetches no jobs; in files, the "
        "table `shedding`. Default: none.",
    ),
    Option(
        name="events",
        kind=Kind.OBJECT,
        check=partial(check_is, kind=Events, how="an object made by Events()"),
        doc="`Events` that emits the events of the runner. Default: a new one, `Runner.events`.",
    ),
    Option(
        name="logger",
        kind=Kind.OBJECT,
        check=partial(
            check_is, kind=(logging.Logger, logging.LoggerAdapter), how="a logging.Logger"
        ),
        doc="Logger for all messages. Default: `graphile_worker_py`.",
    ),
)
"""Options that only code can set, because they are objects or concern the calling program."""

_CHECKED_WHEN_BUILT: Final = ("tasks", "hooks", "setup", "lifespan")
_CHECKS: Final = {
    each.name: each.check
    for each in (*PROCESS_OPTIONS, *CODE_OPTIONS)
    if each.name not in _CHECKED_WHEN_BUILT
}


def _given(options: RunnerOptions) -> dict[str, Any]:
    """The options that are set, after checks of all that need no other option."""
    names = RunnerOptions.__annotations__
    unknown = set(options) - set(names)
    if unknown:
        raise config.unknown_option(min(unknown), sorted(names))
    given = {name: value for name, value in options.items() if value is not None}
    for name, check in _CHECKS.items():
        if name in given:
            check(name, given[name])
    return given


class Setup:
    """The checked options of a runner, and the parts that are built from them.

    Raises:
        ConfigurationError: An option is unknown, or its value is not allowed.
    """

    def __init__(
        self,
        source: str | AsyncPool | None,
        options: RunnerOptions,
        *,
        waits: Waits | None = None,
        once: bool = False,
    ) -> None:
        given = _given(options)
        self._source = config.source(source, AsyncConnectionPool)
        logger: logging.Logger = given.get("logger", logging.getLogger("graphile_worker_py"))
        self.logger = keeping_fields(logger)
        self.events: Events = given.get("events", Events())
        self.handles_signals = not given.get("no_handle_signals", False)
        self._waits = waits
        self._once = once
        self._watchdog_exit: bool = given.get("watchdog_exit", False)
        self.health_port: int | None = given.get("health_port")
        self.health_host: str = given.get("health_host", OPTIONS["health_host"].default)
        self._options: WorkerOptions = config.worker_options(
            {name: value for name, value in given.items() if name in WORKER_OPTION_NAMES}
        )
        if self._options.listen_connection_string is not None:
            checked_conninfo(self._options.listen_connection_string, "listen_connection_string")
        self._set_up = set_up(given["setup"]) if "setup" in given else None
        self._tasks = given_tasks(given, self.logger)
        pools = pools_of(given["pools"]) if "pools" in given else {DEFAULT_NAME: Pool()}
        self._divided = divided(self._tasks, pools)
        self.options_by_pool = pool_options(self._options, pools)
        self._check_processes_are_set_up()
        self._lifespan = given.get("lifespan")
        leaves: list[Plugin | str] = [*self._leaves()]
        if "shedding" in given:
            leaves.append(imported(SHEDDING)(given["shedding"]))
        self.hooks = Hooks(given.get("hooks", ()), leaves=leaves)
        self.hooks.setup(self.events)
        self._given_items = given_items(given)
        self.cron_items = with_items_of(self._tasks.values(), self._given_items)

    def _leaves(self) -> tuple[str, ...]:
        """The optional parts of the package that take part."""
        tasks = self._tasks.values()
        limited = [task for task in tasks if task.settings.get("limits")]
        breaks = (BREAKERS,) if any("breaker" in task.settings for task in tasks) else ()
        if self._options.no_side_schema:
            for task in limited:
                raise ConfigurationError(
                    f"task {task.identifier!r} has limits, which need the side schema: leave out "
                    f"no_side_schema"
                )
            return breaks
        captures = any("capture_logs" in task.settings for task in tasks)
        history = CAPTURING_HISTORY if captures else HISTORY
        return (history, PAUSING, *breaks, *((LIMITS,) if limited else ()))

    def _check_processes_are_set_up(self) -> None:
        if self._set_up is None or self._set_up.path is not None:
            return
        for task in self._tasks.values():
            if task.is_process:
                raise ConfigurationError(
                    f"setup must be a function of a module that can be imported, because the "
                    f"process of task {task.identifier!r} calls it, too"
                )

    def living(self, runner: Any, stopping: Stopping) -> AbstractAsyncContextManager[State]:
        """The program's `lifespan`, which gets the runner; for as long as jobs may run."""
        if self._lifespan is None:
            return nullcontext(State())
        return living(self._lifespan, runner, stopping.forced)

    @property
    def has_side_schema(self) -> bool:
        """Whether the side schema may be used."""
        return not self._options.no_side_schema

    @property
    def about(self) -> str:
        """The tasks, the schema and the number of jobs at a time, for a log line."""
        names = sorted(self._tasks)
        shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
        count = sum(each.concurrent_jobs for each in self.options_by_pool.values())
        return (
            f"{len(names)} task(s) of schema {self._options.schema!r}, {count} "
            f"job{'s' if count > 1 else ''} at a time: {shown}"
        )

    def refuse_cron(self) -> None:
        """Refuse recurring jobs; those that tasks have by their `cron` are left out.

        Raises:
            ConfigurationError: There are some.
        """
        if self._given_items:
            raise ConfigurationError(
                "run_once adds no recurring jobs: leave out crontab, crontab_file and "
                "parsed_cron_items, or use run"
            )

    def warn_of_missing_tasks(self) -> None:
        """Log the tasks of recurring jobs that this worker does not have."""
        missing = {item.task: item for item in self.cron_items if item.task not in self._tasks}
        if missing:
            named = (
                f"{name!r} (line {item.line})" if item.line else repr(name)
                for name, item in missing.items()
            )
            self.logger.warning(
                "This worker adds recurring jobs for tasks that it does not have, so another "
                "worker must run them: %s",
                ", ".join(named),
            )

    @property
    def around_adding(self) -> Around:
        """What happens around adding jobs."""
        nan_as_null = self._options.nan_as_null
        return self.hooks.around_adding(self.events, nan_as_null=nan_as_null)

    @property
    def uses_own_clock(self) -> bool:
        """Whether this process's clock decides what is due."""
        return self._options.use_node_time

    @property
    def needs(self) -> rights.Needs:
        """The rights that the role needs."""
        return rights.SCHEDULING if self.cron_items else rights.WORKING

    def opened_pool(self) -> Any:
        """The connection pool, as an async context manager."""
        return opened_pool(
            self._source,
            max_size=self._options.max_pool_size - kept_connections(self.options_by_pool.values()),
            prepared_statements=self._options.prepared_statements,
        )

    def database(self, pool: AsyncPool) -> Database:
        """The database behind a connection pool."""
        return Database(
            pool,
            schema=self._options.schema,
            prepared_statements=self._options.prepared_statements is not False,
            use_node_time=self._options.use_node_time,
            owns_pool=isinstance(self._source, str),
        )

    def worker_pools(self, database: Database, state: State) -> Pools:
        """The worker pools, which do not run yet; `lifespan` yielded the state.

        Raises:
            ConfigurationError: A task asks for something that the program does not provide.
        """
        provided = Provided(state=state)
        if self._set_up is not None:
            ours, path = self._set_up.state, self._set_up.path
            state = ours.with_all_of(state)
            provided = Provided(state=state, in_processes=ours, setup=path)
        in_common = InCommon(database, self._options, events=self.events, waits=self._waits)
        make = partial(self._worker_pool, database, provided, in_common)
        names = [DEFAULT_NAME] if self._once else list(self._divided)
        return Pools({name: Succession(partial(make, name), logger=self.logger) for name in names})

    def _worker_pool(
        self, database: Database, provided: Provided, in_common: InCommon, name: str
    ) -> WorkerPool:
        # A pool that ends when none of its jobs is due would leave what others add then.
        once, most = self._once, self._options.max_pool_size
        return build_pool(
            database,
            self._tasks if once else {task: self._tasks[task] for task in self._divided[name]},
            self._options if once else self.options_by_pool[name],
            logger=self.logger,
            events=self.events,
            hooks=self.hooks,
            in_common=in_common,
            connections=(most if once else connections_of(name, self.options_by_pool, most=most)),
            once=once,
            ends_process=self._watchdog_exit,
            waits=self._waits,
            provided=provided,
            name=name,
        )
