"""The way to the database: connections, the schema's name in statements, retries."""

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, LiteralString, TypeVar

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, AsyncRawCursor, Connection, RawCursor, conninfo, sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import tuple_row

from graphile_worker_py.backoff import backoff_for, is_outage
from graphile_worker_py.errors import ConfigurationError, message_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
AsyncPool = psycopg_pool.AsyncConnectionPool[Any]

SCHEMA_PLACEHOLDER: Final = ":GRAPHILE_WORKER_SCHEMA"
APPLICATION_NAME: Final = "graphile_worker_py"
CONNECT_TIMEOUT: Final = 10
# In an outage the pool would try to connect at ever longer intervals. It is to give up soon, and so
# is who waits for it: then whoever needs a connection has it try at once, at our own intervals.
RECONNECT_PATIENCE: Final = 4.0
CONNECTION_PATIENCE: Final = 6.0
CLOSE_PATIENCE: Final = 1.0
TRIES: Final = 100


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """A statement with its values, and how its rows are read.

    Args:
        text: SQL with `$1` placeholders; `:GRAPHILE_WORKER_SCHEMA` stands for the schema.
        values: One for each placeholder.
        read: Makes the result from all rows.
    """

    text: LiteralString
    values: Sequence[Any]
    read: Callable[[list[tuple[Any, ...]]], T]


class _BytesLoader(Loader):
    """Leave a value as it came; whoever looks at it decodes it."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class _RecodingLoader(Loader):
    """Bring JSON into UTF-8 on a connection that has it in another encoding."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        encoding = "utf-8" if self.connection is None else self.connection.info.encoding
        return bytes(data).decode(encoding).encode()


class _JsonbLoader(_RecodingLoader):
    """JSON text of a jsonb value: behind a byte with the version of the format, always 1."""

    def load(self, data: Buffer) -> bytes:
        return super().load(bytes(data)[1:])


def _load_raw(cursor: AsyncRawCursor[Any] | RawCursor[Any]) -> None:
    utf8 = cursor.connection.info.encoding == "utf-8"
    cursor.adapters.register_loader("json", _BytesLoader if utf8 else _RecodingLoader)
    cursor.adapters.register_loader("jsonb", _JsonbLoader)
    cursor.adapters.register_loader("timestamptz", _BytesLoader)


def quoted(schema: str) -> str:
    """The schema's name as it stands in SQL, safe for any name."""
    return sql.Identifier(schema).as_string()


class Statements:
    """Statement texts with the schema filled in, each filled in once."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._quoted = quoted(schema)
        self._texts: dict[str, bytes] = {}

    def __getitem__(self, text: str) -> bytes:
        try:
            return self._texts[text]
        except KeyError:
            filled = text.replace(SCHEMA_PLACEHOLDER, self._quoted).encode()
            self._texts[text] = filled
            return filled


def checked_conninfo(dsn: str) -> str:
    """Check that libpq understands a connection string, and put our name into it.

    Raises:
        ConfigurationError: It does not; the message shows the string without its password.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"connection string {masked(dsn)!r} can't be understood: expected "
            f"postgresql://user:password@host:port/database or key=value words"
        ) from error
    given.setdefault("fallback_application_name", APPLICATION_NAME)
    given.setdefault("connect_timeout", CONNECT_TIMEOUT)
    # Otherwise it is the database's, which may not have all characters that there are.
    given.setdefault("client_encoding", "UTF8")
    return conninfo.make_conninfo("", **given)


def masked(dsn: str) -> str:
    """A connection string as it may be shown: without passwords."""
    dsn = re.sub(r"(://[^/?#@\s]*?:)[^@/?#]*(@)", r"\1***\2", dsn)
    return re.sub(
        r"((?:ssl)?password\s*=\s*)('(?:\\.|[^'])*'|[^\s&]+)", r"\1***", dsn, flags=re.IGNORECASE
    )


def one_line(error: BaseException) -> str:
    """An error for a log line: its kind and the first line of its message."""
    kind = type(error).__name__
    said = message_of(error).strip().partition("\n")[0]
    return said if said.startswith(kind) else f"{kind}: {said}"


@asynccontextmanager
async def opened_pool(source: str | AsyncPool, *, max_size: int) -> AsyncIterator[AsyncPool]:
    """A pool made for a connection string and closed at the end, or a caller's pool as it is.

    Raises:
        ConfigurationError: The connection string can't be understood.
        psycopg.OperationalError: The database can't be reached; raised at once, with the reason.
    """
    if not isinstance(source, str):
        yield source
        return
    dsn = checked_conninfo(source)
    # A pool reports an unreachable server as a time-out, half a minute later; a plain connection
    # tells at once, and why.
    await (await AsyncConnection.connect(dsn)).close()
    pool = psycopg_pool.AsyncConnectionPool(
        dsn,
        kwargs={"autocommit": True},
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
        reconnect_timeout=RECONNECT_PATIENCE,
    )
    await pool.open()
    try:
        yield pool
    finally:
        # In an outage it may be about to connect, which is not waited for.
        await pool.close(timeout=CLOSE_PATIENCE)


@contextmanager
def opened_sync_pool(
    source: str | psycopg_pool.ConnectionPool[Any], *, max_size: int
) -> Iterator[psycopg_pool.ConnectionPool[Any]]:
    """`opened_pool` for programs without an event loop."""
    if not isinstance(source, str):
        yield source
        return
    dsn = checked_conninfo(source)
    Connection.connect(dsn).close()
    with psycopg_pool.ConnectionPool(
        dsn,
        kwargs={"autocommit": True},
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
    ) as pool:
        yield pool


async def connection_target(pool: AsyncPool) -> tuple[str, dict[str, Any]]:
    """Where a pool's connections go: connection string and keyword arguments."""
    dsn = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
    return (
        await dsn if inspect.isawaitable(dsn) else dsn,
        dict((await kwargs if inspect.isawaitable(kwargs) else kwargs) or {}),
    )


async def connect_like(pool: AsyncPool) -> AsyncConnection[Any]:
    """A connection of its own, to where the pool's connections go; autocommit.

    Raises:
        psycopg.OperationalError: The database can't be reached.
    """
    dsn, kwargs = await connection_target(pool)
    return await AsyncConnection.connect(dsn, **{**kwargs, "autocommit": True})


class Database:
    """A schema in a database, reached through a pool of connections.

    Args:
        pool: Where connections come from; opened and closed by others.
        schema: Name of the schema.
        prepared_statements: Whether statements are prepared on the server.
    """

    def __init__(self, pool: AsyncPool, *, schema: str, prepared_statements: bool = True) -> None:
        self.pool = pool
        self.statements = Statements(schema)
        # Prepared at the first use: each statement of ours is sent many times.
        self._prepare = prepared_statements

    @property
    def schema(self) -> str:
        """Name of the schema."""
        return self.statements.schema

    async def run(self, query: Query[T], *, conn: AsyncConnection[Any] | None = None) -> T:
        """Send one statement, on a caller's connection or on one from the pool.

        A caller's connection is used as it is: within its transaction, and without retries.
        """
        if conn is not None:
            return await self._send(conn, query)
        try:
            async with self.pool.connection() as own:
                return await self._send(own, query)
        except psycopg.OperationalError as error:
            if is_outage(error):
                # Where one connection was lost, others were. They would be handed out one by one
                # and cost a failure each.
                await self.pool.check()
            raise

    async def run_retrying(self, query: Query[T], *, what: str) -> T:
        """Send one statement, again if it lost a race or the database is away for a while.

        For statements that may be sent twice without harm. `what` names the work in the log.
        """
        failures = 0
        while True:
            try:
                return await self.run(query)
            except (psycopg.Error, OSError) as error:
                backoff = backoff_for(error)
                failures += 1
                if backoff is None or failures >= TRIES:
                    raise
                delay = backoff.delay(failures)
                logger.warning("Could not %s (%s); again in %.1f s", what, one_line(error), delay)
                await asyncio.sleep(delay)

    async def _send(self, conn: AsyncConnection[Any], query: Query[T]) -> T:
        async with AsyncRawCursor(conn, row_factory=tuple_row) as cursor:
            _load_raw(cursor)
            await cursor.execute(
                self.statements[query.text], query.values, prepare=self._prepare, binary=True
            )
            return query.read(await cursor.fetchall() if cursor.description else [])


class SyncDatabase:
    """`Database` for programs without an event loop; one connection at a time from a pool."""

    def __init__(
        self,
        pool: psycopg_pool.ConnectionPool[Any],
        *,
        schema: str,
        prepared_statements: bool = True,
    ) -> None:
        self.pool = pool
        self.statements = Statements(schema)
        self._prepare = prepared_statements

    def run(self, query: Query[T], *, conn: Connection[Any] | None = None) -> T:
        """Send one statement, on a caller's connection or on one from the pool."""
        if conn is not None:
            return self._send(conn, query)
        with self.pool.connection() as own:
            return self._send(own, query)

    def _send(self, conn: Connection[Any], query: Query[T]) -> T:
        with RawCursor(conn, row_factory=tuple_row) as cursor:
            _load_raw(cursor)
            cursor.execute(
                self.statements[query.text], query.values, prepare=self._prepare, binary=True
            )
            return query.read(cursor.fetchall() if cursor.description else [])
