"""Extension points: plugins that take part in a step, and may change or veto it.

Events observe, hooks take part. A step is wrapped by all plugins that override its method, the
first one outermost. Steps that no plugin wraps cost nothing.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from inspect import iscoroutinefunction
from typing import Any, Final, TypeAlias, TypeVar

from psycopg import AsyncConnection

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.tasks.importing import import_fault

T = TypeVar("T")

ENTRY_POINTS: Final = "graphile_worker_py.plugins"
"""Group of entry points under which packages offer their plugins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStep:
    """What a plugin is told about the schema that is prepared or migrated.

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
        forbidden_flags: Jobs with one of these flags are left for others; None means none.
    """

    pool_id: str
    count: int
    forbidden_flags: Sequence[str] | None


class Plugin:
    """Base of plugins: override the methods you need, the others cost nothing.

    Each method wraps a step. It goes on with `await proceed(…)`, once, and may do something before
    and after. What it raises is raised by the step.
    """

    def setup(self, events: Events) -> None:
        """Subscribe to events; called once, before a runner starts."""

    async def bootstrap(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Around making the schema and its migrations table; only where they are missing."""
        await proceed(step)

    async def migrate(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        """Around migrations; at every start, also if there are none to apply."""
        await proceed(step)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Around each fetch.

        Proceed with a changed request (`dataclasses.replace`) to fetch fewer jobs or to leave
        some for others; return `Fetched([], more=False)` to fetch none now. The next look is at
        the next announcement, or after the poll interval. Jobs that `proceed` has locked, and that
        are not in what is returned, go back with their attempt; all do where this raises.
        """
        return await proceed(request)

    async def run_job(self, job: Job, proceed: Callable[[Job], Awaitable[Any]]) -> Any:
        """Around each call of a task; returns what the task returned.

        An exception fails the job, whoever raises it. Without `proceed` the task is not called,
        and the job counts as done.
        """
        return await proceed(job)


Plugins: TypeAlias = Iterable[Plugin | type[Plugin] | str]
"""Plugins as users give them: objects, classes, or names of entry points."""


class Hooks:
    """The plugins of a runner, ready to wrap steps.

    Args:
        plugins: See `Plugins`.

    Raises:
        ConfigurationError: One is not a plugin, or no installed package offers it.
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
                    f"setup of plugin {plugin!r} must be a plain function: nobody awaits it"
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

    def run_job(self, inner: Callable[[Job], Awaitable[Any]]) -> Callable[[Job], Awaitable[Any]]:
        """The call of a task, within the plugins that wrap it."""
        return self._wrapped("run_job", inner)

    def _wrapped(
        self, step: str, inner: Callable[[Any], Awaitable[T]]
    ) -> Callable[[Any], Awaitable[T]]:
        for plugin in reversed(self._overriding(step)):
            inner = partial(_call, getattr(plugin, step), inner)
        return inner

    def _overriding(self, step: str) -> list[Plugin]:
        default = getattr(Plugin, step)
        return [plugin for plugin in self.plugins if getattr(type(plugin), step) is not default]


async def _call(wrapper: Callable[..., Awaitable[T]], inner: Any, subject: Any) -> T:
    return await wrapper(subject, inner)


def _plugin(given: object) -> Plugin:
    if isinstance(given, str):
        given = _installed(given)
    if isinstance(given, type) and issubclass(given, Plugin):
        try:
            given = given()
        except Exception as error:
            raise ConfigurationError(
                f"plugin {given!r} can't be made: {import_fault(error)}"
            ) from error
    if not isinstance(given, Plugin):
        raise ConfigurationError(
            f"{given!r} is not a plugin: give an object or a subclass of Plugin, or the name of "
            f"an entry point in the group {ENTRY_POINTS}"
        )
    return given


def _installed(name: str) -> object:
    offered = metadata.entry_points(group=ENTRY_POINTS)
    found = [point for point in offered if point.name == name]
    if not found:
        names = ", ".join(sorted({point.name for point in offered})) or "none"
        raise ConfigurationError(
            f"no installed package offers a plugin {name!r}; offered are: {names}"
        )
    point = found[0]
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"plugin {name!r} can't be loaded from {point.value!r}: {import_fault(error)}"
        ) from error
