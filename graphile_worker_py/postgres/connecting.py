"""Connect to a server: connection strings, pools, single connections."""

import inspect
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, BaseConnection, Connection, conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from graphile_worker_py.errors import ConfigurationError, one_line
from graphile_worker_py.postgres import idle
from graphile_worker_py.postgres.masking import fault_of, masked, without_driver

logger = logging.getLogger(__name__)

AsyncPool = psycopg_pool.AsyncConnectionPool[Any]
_SERVER_PROCESS: Final = "select pg_catalog.pg_backend_pid()"
APPLICATION_NAME: Final = "graphile_worker_py"
CONNECT_TIMEOUT: Final = 10
# Detect a silently lost peer within about a minute, where TCP's defaults take two hours and more:
# by keepalive probes on an idle connection, by unacknowledged data on a busy one.
TCP: Final = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# In an outage the pool retries connecting at ever longer intervals. Giving up soon lets the next
# request for a connection start a fresh try, at our own shorter intervals.
RECONNECT_PATIENCE: Final = 4.0
CLOSE_PATIENCE: Final = 1.0
_CLIENT_OPTIONS: Final = frozenset(
    {"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"}
)
"""What psycopg's connect takes besides the words of a connection string."""


def checked_conninfo(dsn: str, name: str = "connection string") -> str:
    """Check a connection string, and add our application name and time-outs where it has none.

    Raises:
        ConfigurationError: libpq can't parse it; the message shows it without its password.
    """
    misfit = ConfigurationError(
        f"{name} {masked(dsn)!r} can't be understood: expected "
        f"postgresql://user@host:port/database or key=value words"
    )
    if "\0" in dsn:  # where libpq would stop reading
        raise misfit
    try:
        given = conninfo.conninfo_to_dict(without_driver(dsn))
    except (psycopg.ProgrammingError, UnicodeError):
        # Without the cause, which may quote part of a password.
        raise misfit from None
    fault = fault_of(given)
    if fault is not None:
        raise ConfigurationError(
            f"{name} {masked(dsn)!r} can't be right, its {fault}: in a URI, write special "
            f"characters as %40 for @, %3A for :, %2F for /"
        )
    given.setdefault("fallback_application_name", APPLICATION_NAME)
    given.setdefault("connect_timeout", CONNECT_TIMEOUT)
    for name, value in TCP.items():
        given.setdefault(name, value)
    # The default is the database's encoding, which may lack characters.
    given.setdefault("client_encoding", "UTF8")
    return conninfo.make_conninfo("", **given)


@asynccontextmanager
async def opened_pool(
    source: str | AsyncPool, *, max_size: int, prepared_statements: bool | None = None
) -> AsyncIterator[AsyncPool]:
    """Open a pool for a connection string, for the block; a caller's own pool is left as it is.

    Args:
        source: The connection string, or the pool.
        max_size: Most connections of a new pool.
        prepared_statements: Whether a new pool prepares statements on the server; None means yes,
            unless a pooler sits in between.

    Raises:
        ConfigurationError: The connection string can't be parsed.
        psycopg.OperationalError: The database can't be reached; raised at once, with the reason.
    """
    if not isinstance(source, str):
        yield source
        return
    dsn = checked_conninfo(source)
    # A pool reports an unreachable server half a minute later, as a time-out; a plain connection
    # reports it at once, with the reason. It becomes the pool's first connection.
    conn = await AsyncConnection.connect(dsn, autocommit=True)
    if prepared_statements is None:
        prepared_statements = _is_direct(conn, await _server_process(conn))
    options = _connection_options(prepared_statements)
    conn.prepare_threshold = options.get("prepare_threshold", conn.prepare_threshold)
    first = iter([conn])
    pool = idle.AsyncPool(
        dsn,
        connection_class=_beginning_with(first),
        kwargs=options,
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
        reconnect_timeout=RECONNECT_PATIENCE,
    )
    opened_in = os.getpid()
    try:
        await pool.open()
        yield pool
    finally:
        if os.getpid() == opened_in:  # a forked child would end the sessions of its parent
            # In an outage the pool may be connecting; that must not delay the end.
            await pool.close(timeout=CLOSE_PATIENCE)
            for unused in first:
                await unused.close()


def _beginning_with(opened: Iterator[AsyncConnection[Any]]) -> type[AsyncConnection[Any]]:
    """A class that gives out open connections before it connects."""

    class PoolConnection(AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> AsyncConnection[Any]:  # type: ignore[override]
            return next(opened, None) or await AsyncConnection.connect(*args, **kwargs)

    return PoolConnection


@contextmanager
def opened_sync_pool(
    source: str | psycopg_pool.ConnectionPool[Any],
    *,
    max_size: int,
    prepared_statements: bool | None = None,
) -> Iterator[psycopg_pool.ConnectionPool[Any]]:
    """`opened_pool` for programs without an event loop."""
    if not isinstance(source, str):
        yield source
        return
    dsn = checked_conninfo(source)
    conn = Connection.connect(dsn, autocommit=True)
    if prepared_statements is None:
        prepared_statements = _is_direct(conn, _server_process_sync(conn))
    options = _connection_options(prepared_statements)
    conn.prepare_threshold = options.get("prepare_threshold", conn.prepare_threshold)
    first = iter([conn])
    pool = idle.Pool(
        dsn,
        connection_class=_beginning_with_sync(first),
        kwargs=options,
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
    )
    opened_in = os.getpid()
    try:
        pool.open()
        yield pool
    finally:
        if os.getpid() == opened_in:  # as above
            pool.close()
            for unused in first:
                unused.close()


def _beginning_with_sync(opened: Iterator[Connection[Any]]) -> type[Connection[Any]]:
    class PoolConnection(Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Connection[Any]:  # type: ignore[override]
            return next(opened, None) or Connection.connect(*args, **kwargs)

    return PoolConnection


async def _server_process(conn: AsyncConnection[Any]) -> int:
    try:
        async with conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_SERVER_PROCESS)
            return int((await cursor.fetchall())[0][0])
    except BaseException:
        await conn.close()
        raise


def _server_process_sync(conn: Connection[Any]) -> int:
    try:
        with conn.cursor(row_factory=tuple_row) as cursor:
            return int(cursor.execute(_SERVER_PROCESS).fetchall()[0][0])
    except BaseException:
        conn.close()
        raise


async def leads_to_server(conn: AsyncConnection[Any]) -> bool:
    """Whether a connection leads to the server itself, so that its session is ours alone."""
    return await _server_process(conn) == conn.info.backend_pid


def _is_direct(conn: BaseConnection[Any], server_process: int) -> bool:
    """Whether a connection leads to the server, and not to a pooler.

    A pooler has no server process to report to its client, so it makes a number up. It may also
    hand each transaction another session, where a prepared statement's name, which psycopg counts
    per connection, can belong to another statement.
    """
    direct = server_process == conn.info.backend_pid
    if not direct:
        logger.info(
            "A pooler sits between worker and database: statements are not prepared, unless "
            "prepared_statements=True"
        )
    return direct


def _connection_options(prepared_statements: bool) -> dict[str, Any]:  # noqa: FBT001
    # Without a threshold psycopg prepares nothing, whatever a statement asks for.
    return {"autocommit": True, **({} if prepared_statements else {"prepare_threshold": None})}


async def connection_target(pool: AsyncPool) -> tuple[str, dict[str, Any]]:
    """The connection string and keyword arguments of a pool's connections."""
    dsn = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
    return (
        await dsn if inspect.isawaitable(dsn) else dsn,
        dict((await kwargs if inspect.isawaitable(kwargs) else kwargs) or {}),
    )


async def connect_like(pool: AsyncPool) -> AsyncConnection[Any]:
    """A new autocommit connection outside the pool, made and configured as those of the pool.

    Raises:
        psycopg.ProgrammingError: `configure` of the pool left a transaction open.
        psycopg.OperationalError: The database can't be reached, or `configure` failed.
    """
    dsn, kwargs = await connection_target(pool)
    own = isinstance(pool, idle.AsyncPool)  # whose class hands out the first connection
    connect = AsyncConnection.connect if own else pool.connection_class.connect
    if pool._configure is None:
        return await connect(dsn, **{**kwargs, "autocommit": True})
    conn: AsyncConnection[Any] = await connect(dsn, **kwargs)
    try:
        await configure_like(pool, conn)
        await conn.set_autocommit(True)
    except BaseException:
        await conn.close()
        raise
    return conn


async def configure_like(pool: AsyncPool, conn: AsyncConnection[Any]) -> None:
    """Configure a connection as the pool configures its own; nothing if it does not.

    Raises:
        psycopg.ProgrammingError: `configure` left a transaction open.
        psycopg.OperationalError: `configure` failed.
    """
    configure = pool._configure
    if configure is None:
        return
    try:
        await configure(conn)
    except (psycopg.Error, OSError):
        raise
    except Exception as error:
        # Like a connection that fails for another reason: it is tried again.
        raise psycopg.OperationalError(
            f"the function `configure` of the pool failed: {one_line(error)}"
        ) from error
    status = conn.pgconn.transaction_status
    if status != TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(
            f"the function `configure` of the pool left a connection in status "
            f"{TransactionStatus(status).name} ({configure!r}): let it commit at its end"
        )


async def connect_directly(dsn: str) -> AsyncConnection[Any]:
    """A new autocommit connection for a connection string.

    Raises:
        ConfigurationError: The connection string can't be parsed.
        psycopg.OperationalError: The database can't be reached.
    """
    return await AsyncConnection.connect(checked_conninfo(dsn), autocommit=True)


def target_of(pool: psycopg_pool.ConnectionPool[Any]) -> str:
    """Where a pool's connections go, in one connection string."""
    dsn = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = (pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {}
    return conninfo.make_conninfo(
        dsn, **{k: v for k, v in kwargs.items() if k not in _CLIENT_OPTIONS}
    )
