"""The plugins of a program, made from what users give, and ready to wrap steps."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from graphile_worker_py.adding.adder import Around
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import (
    Beating,
    Chore,
    FetchRequest,
    Page,
    Part,
    Plugin,
    Plugins,
    Rider,
    SchemaStep,
)
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.importing import import_fault

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECOVERED_PATIENCE: Final = 10.0
"""Seconds that `Plugin.recovered` may take."""
ENTRY_POINTS: Final = "graphile_worker_py.plugins"
"""Group of entry points under which packages offer their plugins."""


class Hooks:
    """Plugins, ready to wrap steps.

    Args:
        plugins: See `Plugins`.
        leaves: Plugins, or their paths, that are optional parts of this package; they are the
            outermost.

    Raises:
        ConfigurationError: One is not a plugin, or can't be imported.
    """

    def __init__(self, plugins: Plugins = (), *, leaves: Iterable[Plugin | str] = ()) -> None:
        if isinstance(plugins, str | bytes | Plugin) or not isinstance(plugins, Iterable):
            raise ConfigurationError(f"hooks must be a list of plugins, not {plugins!r}")
        self.plugins = [_plugin(each) for each in (*leaves, *plugins)]

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

    def around_adding(self, events: Events | None, *, nan_as_null: bool = False) -> Around:
        """What happens around adding jobs: plugins that wrap it, and subscribers of events."""
        wrap = partial(self._wrapped, "add_jobs") if self._overriding("add_jobs") else None
        return Around(wrap=wrap, events=events, nan_as_null=nan_as_null)

    def parts(self, pool: Any) -> list[Part]:
        """The coroutines that plugins want to run as long as a worker pool does."""
        return [part for plugin in self._overriding("parts") for part in plugin.parts(pool)]

    def riders(self, pool: Any) -> list[Rider]:
        """The statements that plugins add to those that record outcomes."""
        return [rider for plugin in self._overriding("riders") for rider in plugin.riders(pool)]

    def beating(self, pool: Any) -> list[Beating]:
        """What plugins do after each heartbeat of a pool."""
        return [
            Beating(
                name=f"run {type(plugin).__name__}.beat",
                leaf=plugin.leaf,
                beat=partial(plugin.beat, pool),
            )
            for plugin in self._overriding("beat")
        ]

    def chores(self, pool: Any) -> list[Chore]:
        """What plugins let the leader do."""
        return [
            replace(chore, leaf=plugin.leaf)
            for plugin in self._overriding("chores")
            for chore in plugin.chores(pool)
        ]

    def pages(self) -> dict[str, Page]:
        """The pages of plugins, by path; of two with one path, the first."""
        found: dict[str, Page] = {}
        for plugin in self._overriding("pages"):
            for path, page in plugin.pages().items():
                found.setdefault(path, page)
        return found

    def settled(self, pool: Any) -> list[Callable[[Sequence[Settled]], None]]:
        """What plugins do with outcomes that were recorded."""
        return [partial(plugin.settled, pool) for plugin in self._overriding("settled")]

    def troubles(self, pool: Any) -> tuple[str, ...]:
        """What plugins can't do for a pool at the moment."""
        return tuple(
            trouble
            for plugin in self._overriding("trouble")
            if (trouble := plugin.trouble(pool)) is not None
        )

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

    def wraps(self, *steps: str) -> bool:
        """Whether a plugin wraps one of these steps."""
        return any(self._overriding(step) for step in steps)

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
        given = imported(given)
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


def imported(name: str) -> Any:
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
