"""Extension points: plugins take part in a step, and may change it or refuse it.

Events observe, plugins take part. Each step is wrapped by all plugins that override its method;
the first plugin is the outermost. A step that no plugin wraps costs nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from inspect import iscoroutinefunction
from typing import Any, Final, TypeAlias, TypeVar

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from graphile_worker_py.adding.adder import Around
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job, JobSpec
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.importing import import_fault

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECOVERED_PATIENCE: Final = 10.0
"""Seconds that `Plugin.recovered` may take."""
ENTRY_POINTS: Final = "graphile_worker_py.plugins"
"""Group of entry points under which packages offer their plugins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStep:
    """What a plugin learns about the schema that is prepared or migrated.

    Attributes:
        conn: The connection on which it happens, in autocommit mode.
        schema: Name of the schema.
        server_version: PostgreSQL's version number, 180006 for 18.6.
    """

    conn: AsyncConnection[Any]
    schema: str
    server_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """A fetch that is about to happen.

    Attributes:
        pool_id: Id of the pool.
        count: Most jobs to lock.
        forbidden_flags: Jobs with one of these flags are not fetched; None forbids no flag.
        tasks: Identifiers of the tasks whose jobs are fetched.
    """

    pool_id: str
    count: int
    forbidden_flags: Sequence[str] | None
    tasks: frozenset[str]


class PartEnd(StrEnum):
    """When a pool that stops ends a part of it."""

    WITH_FETCHING = "with fetching"
    """As soon as no more jobs are fetched, while running jobs finish."""
    AFTER_OUTCOMES = "after outcomes"
    """Once the outcomes of all jobs are recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rider:
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


class Plugin:
    """Base of plugins: override the methods that you need; the others cost nothing.

    Most methods wrap a step. They go on with `await proceed(…)`, once, and may act before and
    after it. What they raise is raised by the step.

    Attributes:
        leaf: Name under which the plugin has registered migrations of the side schema; None if it
            has no tables there. Where they were not applied, `recovered` is not called.
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

    async def recovered(self, conn: AsyncConnection[Any], pools: Sequence[DeadPool]) -> None:
        """Release what dead pools held, in the transaction that frees their jobs.

        Each call has its own savepoint. If it raises or takes longer than `RECOVERED_PATIENCE`
        seconds, the savepoint is rolled back, the error is logged and counted in the event
        `PoolRecovered`, and the jobs are freed all the same.

        Args:
            conn: The connection, within that transaction. The plugin must not end it.
            pools: The pools that died.
        """


Plugins: TypeAlias = Iterable[Plugin | type[Plugin] | str]
"""Plugins as users give them: objects, classes, paths `module:attribute`, or entry points."""


class Hooks:
    """Plugins, ready to wrap steps.

    Args:
        plugins: See `Plugins`.

    Raises:
        ConfigurationError: One is not a plugin, or can't be imported.
    """

    def __init__(self, plugins: Plugins = ()) -> None:
        if isinstance(plugins, str | bytes | Plugin) or not isinstance(plugins, Iterable):
            raise ConfigurationError(f"hooks must be a list of plugins, not {plugins!r}")
        self.plugins = [_plugin(each) for each in plugins]

    def setup(self, events: Events) -> None:
        """Let plugins subscribe to events.

        Raises:
            ConfigurationError: One can't be set up.
        """
        for plugin in self.plugins:
            if iscoroutinefunction(plugin.setup):
                raise ConfigurationError(
                    f"setup of plugin {plugin!r} must be a plain function: it is not awaited"
                )
            try:
                plugin.setup(events)
            except Exception as error:
                raise ConfigurationError(
                    f"plugin {plugin!r} can't be set up: {import_fault(error)}"
                ) from error

    async def bootstrap(
        self, step: SchemaStep, inner: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Prepare the schema, within the plugins that wrap it."""
        await self._wrapped("bootstrap", inner)(step)

    async def migrate(
        self, step: SchemaStep, inner: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Migrate, within the plugins that wrap it."""
        await self._wrapped("migrate", inner)(step)

    def get_jobs(
        self, inner: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Callable[[FetchRequest], Awaitable[Fetched]]:
        """A fetch, within the plugins that wrap it."""
        return self._wrapped("get_jobs", inner)

    def run_job(
        self, inner: Callable[[Job], Awaitable[Any]], context_of: Callable[[Job], JobContext]
    ) -> Callable[[Job], Awaitable[Any]]:
        """The call of a task, within the plugins that wrap it; contexts are made for them only."""
        if not self._overriding("run_job"):
            return inner
        wrapped = self._wrapped("run_job", lambda ctx: inner(ctx.job))
        return lambda job: wrapped(context_of(job))

    def around_adding(self, events: Events | None) -> Around:
        """What happens around adding jobs: plugins that wrap it, and subscribers of events."""
        wrap = partial(self._wrapped, "add_jobs") if self._overriding("add_jobs") else None
        return Around(wrap=wrap, events=events)

    def parts(self, pool: Any) -> list[Part]:
        """The coroutines that plugins want to run as long as a worker pool does."""
        return [part for plugin in self._overriding("parts") for part in plugin.parts(pool)]

    def riders(self, pool: Any) -> list[Rider]:
        """The statements that plugins add to those that record outcomes."""
        return [rider for plugin in self._overriding("riders") for rider in plugin.riders(pool)]

    @property
    def recovering(self) -> Sequence[Plugin]:
        """The plugins that override `recovered`."""
        return self._overriding("recovered")

    async def recovered(
        self, conn: AsyncConnection[Any], pools: Sequence[DeadPool], *, plugins: Iterable[Plugin]
    ) -> int:
        """Let plugins release what dead pools held; returns how many of them failed."""
        failed = 0
        for plugin in plugins:
            try:
                async with conn.transaction(), asyncio.timeout(RECOVERED_PATIENCE):
                    await plugin.recovered(conn, pools)
                    _check_transaction(conn)
            except Exception:
                failed += 1
                logger.exception("Plugin %r could not release what dead pools held", plugin)
        return failed

    def _wrapped(
        self, step: str, inner: Callable[[Any], Awaitable[T]]
    ) -> Callable[[Any], Awaitable[T]]:
        for plugin in reversed(self._overriding(step)):
            inner = partial(_call, getattr(plugin, step), inner)
        return inner

    def _overriding(self, step: str) -> list[Plugin]:
        default = getattr(Plugin, step)
        return [plugin for plugin in self.plugins if getattr(type(plugin), step) is not default]


def _check_transaction(conn: AsyncConnection[Any]) -> None:
    if conn.info.transaction_status != TransactionStatus.INTRANS:
        raise GraphileWorkerError("the plugin left the transaction failed or ended")


async def _call(wrapper: Callable[..., Awaitable[T]], inner: Any, subject: Any) -> T:
    return await wrapper(subject, inner)


def _plugin(given: object) -> Plugin:
    if isinstance(given, str):
        given = _imported(given)
    if isinstance(given, type) and issubclass(given, Plugin):
        try:
            given = given()
        except Exception as error:
            raise ConfigurationError(
                f"plugin {given!r} can't be made: {import_fault(error)}"
            ) from error
    if not isinstance(given, Plugin):
        raise ConfigurationError(
            f"{given!r} is not a plugin: give an object or a subclass of Plugin, its path "
            f"'module:attribute', or the name of an entry point in the group {ENTRY_POINTS}"
        )
    return given


def _imported(name: str) -> object:
    """What a path `module:attribute`, or the name of an entry point, stands for."""
    point = _path(name) if ":" in name else _installed(name)
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"plugin {name!r} can't be loaded"
            f"{'' if point.value == name else f' from {point.value!r}'}: {import_fault(error)}"
        ) from error


def _path(name: str) -> metadata.EntryPoint:
    names = name.replace(":", ".").split(".")
    if name.count(":") != 1 or not all(each.isidentifier() for each in names):
        raise ConfigurationError(f"plugin {name!r} must be a path such as 'package.module:Class'")
    return metadata.EntryPoint(name, name, ENTRY_POINTS)


def _installed(name: str) -> metadata.EntryPoint:
    offered = metadata.entry_points(group=ENTRY_POINTS)
    found = [point for point in offered if point.name == name]
    if not found:
        names = ", ".join(sorted({point.name for point in offered})) or "none"
        raise ConfigurationError(
            f"no installed package offers a plugin {name!r}; offered are: {names}. "
            f"A plugin in a module is given as 'module:attribute'"
        )
    return found[0]
