"""Connections that callers pass as `conn`: psycopg's, and those of libraries with an adapter.

An adapter is found by the name of the package that the connection's class comes from, among the
entry points of the group `graphile_worker_py.connections`. It is imported when such a connection is
first passed; a connection of psycopg's costs one check of its type.
"""

from abc import ABC, abstractmethod
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

from psycopg import AsyncConnection, Connection

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.query import Statements, Steps


class AsyncpgConnection(Protocol):
    """How type checkers know a connection of asyncpg, or one from its pool."""

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    def get_server_pid(self) -> int:
        """Id of the server's process."""
        ...


if TYPE_CHECKING:
    from sqlalchemy import Connection as AlchemyConnection
    from sqlalchemy.ext.asyncio import (
        AsyncConnection as AsyncAlchemyConnection,
    )
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    AsyncGiven: TypeAlias = (
        AsyncConnection[Any]
        | AsyncSession
        | async_scoped_session[Any]
        | AsyncAlchemyConnection
        | AsyncpgConnection
    )
    SyncGiven: TypeAlias = Connection[Any] | Session | scoped_session[Any] | AlchemyConnection
else:
    # None of these libraries is needed to run.
    AsyncGiven = Any
    SyncGiven = Any

T = TypeVar("T")

ENTRY_POINTS: Final = "graphile_worker_py.connections"
"""Group of entry points: the name is a package, the value an `Adapter` for its connections."""


class OtherConnection(ABC):
    """A connection of another driver than psycopg, on which jobs can be added."""

    @abstractmethod
    async def drive(self, steps: Steps[T], statements: Statements, *, in_transaction: bool) -> T:
        """Send what a generator yields, and return its result. See `Database.drive`.

        It need not know `CopyIn`, `Script` and `Pause`. The generator is thrown errors of psycopg.

        Args:
            steps: The generator.
            statements: Makes texts of statements.
            in_transaction: Whether the steps belong together: all of them count, or none.
        """


class Adapter(ABC):
    """Finds the driver's connection in what callers pass. Made once, without arguments."""

    @abstractmethod
    async def taken(self, conn: Any) -> AsyncConnection[Any] | OtherConnection:
        """The connection for programs with an event loop.

        Raises:
            ConfigurationError: It has none that can be used; the message says what to pass.
        """

    @abstractmethod
    def taken_blocking(self, conn: Any) -> Connection[Any]:
        """The connection for programs without an event loop. See `taken`."""


async def taken_to_add(conn: AsyncGiven) -> AsyncConnection[Any] | OtherConnection:
    """The connection on which a caller wants to add jobs.

    Raises:
        ConfigurationError: It can't be used.
    """
    if isinstance(conn, AsyncConnection):
        return conn
    adapter = _adapter(conn)
    if adapter is None:
        raise ConfigurationError(
            f"conn must be a psycopg.AsyncConnection here, not {conn!r}; "
            f"SyncWorkerUtils takes a psycopg.Connection"
        )
    return await adapter.taken(conn)


async def taken(conn: AsyncGiven) -> AsyncConnection[Any]:
    """The connection on which a caller wants to send any statement.

    Raises:
        ConfigurationError: It can't be used.
    """
    found = await taken_to_add(conn)
    if isinstance(found, OtherConnection):
        raise ConfigurationError(
            "only add_job, add_jobs and add_jobs_from take connections of asyncpg: for other "
            "methods conn must be a connection of psycopg, or a session over one"
        )
    return found


def taken_blocking(conn: SyncGiven) -> Connection[Any]:
    """The connection of a caller without an event loop.

    Raises:
        ConfigurationError: It can't be used.
    """
    if isinstance(conn, Connection):
        return conn
    adapter = _adapter(conn)
    if adapter is None:
        raise ConfigurationError(
            f"conn must be a psycopg.Connection here, not {conn!r}; "
            f"WorkerUtils takes a psycopg.AsyncConnection"
        )
    return adapter.taken_blocking(conn)


def _adapter(conn: object) -> Adapter | None:
    packages = dict.fromkeys(base.__module__.partition(".")[0] for base in type(conn).__mro__)
    return next(filter(None, map(_adapter_for, packages)), None)


@cache
def _adapter_for(package: str) -> Adapter | None:
    found = metadata.entry_points(group=ENTRY_POINTS, name=package)
    return cast("Adapter", next(iter(found)).load()()) if found else None
