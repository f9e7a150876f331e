"""The way to the database: connections, the schema's name in statements, deadlines, retries.

It is long because nobody else touches a connection: what is known of how connections fail is here.
"""

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, LiteralString, Self, TypeAlias, TypeVar

import psycopg
import psycopg_pool
from psycopg import (
    AsyncConnection,
    AsyncPipeline,
    AsyncRawCursor,
    BaseConnection,
    Connection,
    Pipeline,
    RawCursor,
    conninfo,
    errors,
    sql,
)
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.string import ByteaBinaryLoader

from graphile_worker_py import clock
from graphile_worker_py.backoff import backoff_for, delay_after
from graphile_worker_py.errors import ConfigurationError, message_of
from graphile_worker_py.postgres.masking import fault_of, masked

logger = logging.getLogger(__name__)

T = TypeVar("T")
Session = tuple[int, str]
"""A session by its process and its beginning, which no other has on any server."""
AsyncPool = psycopg_pool.AsyncConnectionPool[Any]

_SERVER_PROCESS: Final = "select pg_backend_pid()"
_END_SESSION: Final = """
select pg_terminate_backend(pid)
from pg_stat_get_activity($1::int4) where extract(epoch from backend_start)::text = $2::text
"""
END_INTERVAL: Final = 0.05
"""Seconds between two looks whether a session has ended."""
SCHEMA_PLACEHOLDER: Final = ":GRAPHILE_WORKER_SCHEMA"
APPLICATION_NAME: Final = "graphile_worker_py"
CONNECT_TIMEOUT: Final = 10
# A peer that is gone without a word is noticed within this many seconds, where libpq would wait for
# two hours and more: by probes where nothing is on its way, else by what is not acknowledged.
TCP: Final = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# In an outage the pool would try to connect at ever longer intervals. It is to give up soon, and so
# is who waits for it: then whoever needs a connection has it try at once, at our own intervals.
RECONNECT_PATIENCE: Final = 4.0
CONNECTION_PATIENCE: Final = 6.0
CLOSE_PATIENCE: Final = 1.0
STALE: Final = errors.FeatureNotSupported
"""What a prepared statement meets whose result has other columns than when it was prepared."""
UNPREPARED: Final = (
    errors.InvalidSqlStatementName,
    errors.DuplicatePreparedStatement,
    errors.ProtocolViolation,
)
"""Somebody in between gave the session to others: it has not the statements that we prepared.

What it has under the name of one may take another number of values: a violation of the protocol.
"""
STATEMENT_DEADLINE: Final = 60.0
"""Seconds after which a statement that was not answered is given up."""
CANCEL_PATIENCE: Final = 2.0
"""Seconds that the server gets to end a statement, before the connection is cut."""


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """A statement with its values, and how its rows are read.

    Args:
        text: SQL with `$1` placeholders; `:GRAPHILE_WORKER_SCHEMA` stands for the schema.
        values: One for each placeholder.
        read: Makes the result from all rows.
        seldom: Whether it is not sent often enough to be worth a round trip that prepares it.
    """

    text: LiteralString
    values: Sequence[Any]
    read: Callable[[list[tuple[Any, ...]]], T]
    seldom: bool = False


Steps: TypeAlias = Generator[Query[Any], Any, T]
"""Statements to be sent one after the other; each result is sent back, the last one returned."""


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
    # Values stay as they came, and whoever looks at them decodes them. The loader of bytea does
    # just that, without a call of Python for each value.
    utf8 = cursor.connection.info.encoding == "utf-8"
    cursor.adapters.register_loader("json", ByteaBinaryLoader if utf8 else _RecodingLoader)
    cursor.adapters.register_loader("jsonb", _JsonbLoader)
    cursor.adapters.register_loader("timestamptz", ByteaBinaryLoader)


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


def checked_conninfo(dsn: str, name: str = "connection string") -> str:
    """Check that libpq understands a connection string, and put our name into it.

    Raises:
        ConfigurationError: It does not; the message shows the string without its password.
    """
    misfit = ConfigurationError(
        f"{name} {masked(dsn)!r} can't be understood: expected "
        f"postgresql://user@host:port/database or key=value words"
    )
    if "\0" in dsn:  # where libpq would stop reading
        raise misfit
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):
        # Without the cause, which may quote a part of a password.
        raise misfit from None
    fault = fault_of(given)
    if fault is not None:
        raise ConfigurationError(
            f"{name} {masked(dsn)!r} can't be right, its {fault}: what is special in a URI must be "
            f"written as %40 for @, %3A for :, %2F for /"
        )
    given.setdefault("fallback_application_name", APPLICATION_NAME)
    given.setdefault("connect_timeout", CONNECT_TIMEOUT)
    for name, value in TCP.items():
        given.setdefault(name, value)
    # Otherwise it is the database's, which may not have all characters that there are.
    given.setdefault("client_encoding", "UTF8")
    return conninfo.make_conninfo("", **given)


def one_line(error: BaseException) -> str:
    """An error for a log line: its kind and the first line of its message."""
    kind = type(error).__name__
    said = message_of(error).strip().partition("\n")[0]
    return said if said.startswith(kind) else f"{kind}: {said}"


@asynccontextmanager
async def opened_pool(
    source: str | AsyncPool, *, max_size: int, prepared_statements: bool | None = None
) -> AsyncIterator[AsyncPool]:
    """A pool made for a connection string and closed at the end, or a caller's pool as it is.

    Args:
        source: The connection string, or the pool.
        max_size: Most connections of a pool that is made.
        prepared_statements: Whether a pool that is made has its statements prepared on the server.
            None: unless there is a pooler in between.

    Raises:
        ConfigurationError: The connection string can't be understood.
        psycopg.OperationalError: The database can't be reached; raised at once, with the reason.
    """
    if not isinstance(source, str):
        yield source
        return
    dsn = checked_conninfo(source)
    # A pool reports an unreachable server as a time-out, half a minute later; a plain connection
    # tells at once, and why. It is the pool's first one then.
    conn = await AsyncConnection.connect(dsn, autocommit=True)
    if prepared_statements is None:
        prepared_statements = _is_direct(conn, await _server_process(conn))
    options = _connection_options(prepared_statements)
    conn.prepare_threshold = options.get("prepare_threshold", conn.prepare_threshold)
    first = iter([conn])

    class PoolConnection(AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> AsyncConnection[Any]:  # type: ignore[override]
            return next(first, None) or await AsyncConnection.connect(*args, **kwargs)

    pool = psycopg_pool.AsyncConnectionPool(
        dsn,
        connection_class=PoolConnection,
        kwargs=options,
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
        reconnect_timeout=RECONNECT_PATIENCE,
    )
    try:
        await pool.open()
        yield pool
    finally:
        # In an outage it may be about to connect, which is not waited for.
        await pool.close(timeout=CLOSE_PATIENCE)
        for unused in first:
            await unused.close()


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

    class PoolConnection(Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Connection[Any]:  # type: ignore[override]
            return next(first, None) or Connection.connect(*args, **kwargs)

    pool = psycopg_pool.ConnectionPool(
        dsn,
        connection_class=PoolConnection,
        kwargs=options,
        min_size=0,
        max_size=max_size,
        open=False,
        name=APPLICATION_NAME,
    )
    try:
        with pool:
            yield pool
    finally:
        for unused in first:
            unused.close()


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
    """Whether a connection leads to the server itself, so that its session is nobody else's."""
    return await _server_process(conn) == conn.info.backend_pid


def _is_direct(conn: BaseConnection[Any], server_process: int) -> bool:
    """Whether a connection leads to the server, and not to a pooler.

    A pooler can't tell its clients the number of a server process that is theirs: it makes one up.
    Nor may they get the same one twice; then a statement's name, which psycopg counts by
    connection, can be that of another statement.
    """
    direct = server_process == conn.info.backend_pid
    if not direct:
        logger.info(
            "There is a pooler before the database: statements are not prepared, unless "
            "prepared_statements says so"
        )
    return direct


def _connection_options(prepared_statements: bool) -> dict[str, Any]:  # noqa: FBT001
    # Without a threshold psycopg prepares nothing, whatever a statement asks for.
    return {"autocommit": True, **({} if prepared_statements else {"prepare_threshold": None})}


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


async def connect_directly(dsn: str) -> AsyncConnection[Any]:
    """A connection of its own, to where a connection string leads; autocommit.

    Raises:
        ConfigurationError: The connection string can't be understood.
        psycopg.OperationalError: The database can't be reached.
    """
    return await AsyncConnection.connect(checked_conninfo(dsn), autocommit=True)


def hang_up(conn: AsyncConnection[Any]) -> None:
    """Cut a connection, at once: whoever waits for an answer on it gets an OperationalError.

    A cancellation would not do. psycopg takes it as a reason to ask the server to end the
    statement, and waits for that, which takes seconds where the server can't be reached.
    """
    with suppress(OSError, psycopg.Error):  # it was lost already
        # Shut down, not closed: its number stays taken for as long as somebody looks at it.
        way = socket.socket(fileno=conn.pgconn.socket)
        try:
            way.shutdown(socket.SHUT_RDWR)
        finally:
            way.detach()


@contextmanager
def hung_up_after(seconds: float, conn: AsyncConnection[Any]) -> Iterator[None]:
    """Cut a connection if the block lasts longer.

    Raises:
        psycopg.OperationalError: It did.
    """
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        hang_up(conn)

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except psycopg.Error as error:
        if is_late:
            raise _no_answer(seconds) from error
        raise
    finally:
        timer.cancel()


@asynccontextmanager
async def ended_after(seconds: float, conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """End what the server does for the block if that lasts longer: on request, else by force.

    Raises:
        psycopg.OperationalError: It did.
    """
    limit = asyncio.timeout(seconds)
    try:
        with hung_up_after(seconds + CANCEL_PATIENCE, conn):
            async with limit:
                yield
    except (TimeoutError, psycopg.OperationalError) as error:
        if limit.expired():
            raise _no_answer(seconds) from error
        raise


def _no_answer(seconds: float) -> psycopg.OperationalError:
    return psycopg.OperationalError(f"the database did not answer within {seconds:g} s")


class Database:
    """A schema in a database, reached through a pool of connections.

    Args:
        pool: Where connections come from; opened and closed by others.
        schema: Name of the schema.
        prepared_statements: Whether statements are prepared on the server.
        use_node_time: Whether the clock of this process counts, not the server's.
    """

    def __init__(
        self,
        pool: AsyncPool,
        *,
        schema: str,
        prepared_statements: bool = True,
        use_node_time: bool = False,
    ) -> None:
        self.pool = pool
        self._use_node_time = use_node_time
        self.statements = Statements(schema)
        # Prepared at the first use: most statements of ours are sent many times.
        self._prepare = prepared_statements

    @property
    def schema(self) -> str:
        """Name of the schema."""
        return self.statements.schema

    def now(self) -> datetime | None:
        """The time by which it is decided what is due; None leaves it to the server."""
        return clock.utc_now() if self._use_node_time else None

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool, borrowed for the block; it is waited for so many seconds."""
        async with self.pool.connection(timeout) as conn:
            try:
                yield conn
            except psycopg.Error as error:
                if isinstance(error, errors.ReadOnlySqlTransaction):
                    # A session that began while the database was read-only may be so for ever, and
                    # one to a server that became a standby leads to the wrong one. New ones do not.
                    await conn.close()
                if conn.closed:
                    # Where one connection was lost, others were. They would be handed out one by
                    # one and cost a failure each. They are not tested: that takes a minute for
                    # each that leads nowhere.
                    await self.pool.drain()
                raise

    @asynccontextmanager
    async def connection_in_any_case(self, patience: float) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool; or a new one, if tasks have borrowed all of them for long."""
        async with AsyncExitStack() as stack:
            try:
                conn = await stack.enter_async_context(self.connection(patience))
            except psycopg_pool.PoolTimeout:
                conn = await stack.enter_async_context(self.new_connection())
            yield conn

    @asynccontextmanager
    async def new_connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection beside those of the pool, for the block."""
        conn = await connect_like(self.pool)
        try:
            yield conn
        finally:
            await conn.close()

    async def run(
        self,
        query: Query[T],
        *,
        conn: AsyncConnection[Any] | None = None,
        within: float | None = None,
    ) -> T:
        """Send one statement, on a caller's connection or on one from the pool.

        A caller's connection is used as it is: within its transaction, without retries, and for
        as long as it takes.

        Args:
            query: The statement.
            conn: The caller's connection.
            within: Seconds that it may take on one from the pool; None means
                `STATEMENT_DEADLINE`.

        Raises:
            psycopg.OperationalError: It was not answered in time, or the database can't be reached.
            psycopg.Error: It failed.
        """
        if conn is not None:
            return await self._send(conn, query)
        return await self._borrow_and_send(
            query, within=STATEMENT_DEADLINE if within is None else within
        )

    async def run_patiently(
        self, query: Query[T], *, conn: AsyncConnection[Any] | None = None
    ) -> T:
        """Send one statement that may take its time, as one that reads or changes whole tables."""
        if conn is not None:
            return await self._send(conn, query)
        return await self._borrow_and_send(query, within=None)

    async def run_retrying(self, query: Query[T], *, what: str, line: "Line | None" = None) -> T:
        """Send one statement, again if it lost a race or the database is away for a while.

        For statements that may be sent twice without harm. `what` names the work in the log.
        """
        failures = 0
        while True:
            try:
                return await (line or self).run(query)
            except (psycopg.Error, OSError) as error:
                failures += 1
                delay = delay_after(error, failures=failures)
                if delay is None:
                    raise
                logger.warning("Could not %s (%s); again in %.1f s", what, one_line(error), delay)
                await asyncio.sleep(delay)

    async def run_each(self, queries: Iterable[Query[None]], *, conn: AsyncConnection[Any]) -> None:
        """Send statements that return rows, one after the other, on a connection.

        While the server works on one, the result of the one before is read and the next is made,
        so `queries` had better make them as it goes. It may not wait for what they bring.
        """
        async with AsyncExitStack() as stack:
            # libpq before 14 has no pipelines; then `execute` waits for the server.
            if AsyncPipeline.is_supported():
                await stack.enter_async_context(conn.pipeline())
            sent: tuple[AsyncRawCursor[Any], Query[None]] | None = None
            for query in queries:
                # Waits for all rows but decodes only one: the server is to go on at once.
                rows = await sent[0].fetchmany(1) if sent else []
                cursor = _raw_cursor(conn)
                await self._execute(cursor, query)
                if sent:
                    sent[1].read(rows + await sent[0].fetchall())
                sent = cursor, query
            if sent:
                sent[1].read(await sent[0].fetchall())

    async def copy_in(
        self, query: Query[None], blocks: Iterable[str], *, conn: AsyncConnection[Any]
    ) -> None:
        """Send a COPY statement, and what it is to write, on a connection."""
        cursor = _raw_cursor(conn)
        async with cursor, cursor.copy(self.statements[query.text]) as copy:
            for block in blocks:
                await copy.write(block)

    async def _borrow_and_send(self, query: Query[T], *, within: float | None) -> T:
        try:
            return await self._send_within(within, query)
        except STALE:
            # All that the pool has may be so.
            await self.pool.drain()
            return await self._send_within(within, query)

    async def _send_within(self, seconds: float | None, query: Query[T]) -> T:
        async with self.connection() as conn:
            if seconds is None:
                return await self._send(conn, query)
            async with ended_after(seconds, conn):
                return await self._send(conn, query)

    async def _send(self, conn: AsyncConnection[Any], query: Query[T]) -> T:
        async with _raw_cursor(conn) as cursor:
            return await self.send(cursor, query)

    async def send(self, cursor: AsyncRawCursor[Any], query: Query[T]) -> T:
        """Send one statement through a cursor that leaves values as they come."""
        await self._execute(cursor, query)
        if cursor.pgresult is None:
            # A caller's pipeline, in which nothing is answered before its end, or that of a block.
            async with cursor.connection.pipeline():
                pass
        return query.read(await cursor.fetchall() if _has_rows(cursor) else [])

    async def _execute(self, cursor: AsyncRawCursor[Any], query: Query[Any]) -> None:
        text = self.statements[query.text]
        prepare = self._prepare and not query.seldom
        try:
            await cursor.execute(text, query.values, prepare=prepare, binary=True)
        except UNPREPARED as error:
            if not prepare or not _goes_without_preparing(cursor, error, told=not self._prepare):
                raise
            self._prepare = False
            await cursor.execute(text, query.values, prepare=False, binary=True)


class Line:
    """A connection that one part of a worker keeps for its statements; a context manager.

    It is made when it is first needed, and anew after it was lost. So the part does not queue
    with tasks for the connections of the pool, and pays for a connection once.

    A statement that was not answered may arrive, or go on, when it was given up long ago: it would
    lock jobs of which nobody knows. So before the next one is sent, the session of the one that was
    lost is ended, if it is still there.

    Args:
        database: Where it leads to.
        begin: Makes the first statement of each connection, from the number of the server process
            that the connection knows. It prepares the session, and tells which it is.
    """

    def __init__(
        self, database: Database, *, begin: Callable[[int], Query[Session | None]]
    ) -> None:
        self._database = database
        self._begin = begin
        self._cursor: AsyncRawCursor[Any] | None = None
        self._session: Session | None = None
        self._lost: list[Session] = []
        self._turn = asyncio.Lock()
        self._runs_for: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    async def run(self, query: Query[T]) -> T:
        """Send one statement; the next one is sent when it is answered.

        Raises:
            psycopg.OperationalError: It was not answered within `STATEMENT_DEADLINE`, or the
                database can't be reached.
            psycopg.Error: It failed.
        """
        async with self._turn:
            self._runs_for = asyncio.current_task()
            try:
                return await self._run(query)
            except STALE:
                return await self._run(query)

    async def end_statement(self, of: asyncio.Task[Any] | None) -> None:
        """End the statement of a task, if it is under way: on request, else by force.

        `run` raises `QueryCanceled` then, or what it raises where a connection is lost.
        """
        cursor = self._cursor
        if cursor is None or not self._turn.locked() or self._runs_for is not of:
            return
        with suppress(psycopg.Error):  # the server can't be reached
            await cursor.connection.cancel_safe(timeout=CANCEL_PATIENCE)
        try:
            async with asyncio.timeout(CANCEL_PATIENCE), self._turn:
                pass  # it has ended
        except TimeoutError:
            hang_up(cursor.connection)

    async def _run(self, query: Query[T]) -> T:
        cursor = self._cursor or await self._connect()
        try:
            with hung_up_after(STATEMENT_DEADLINE, cursor.connection):
                return await self._database.send(cursor, query)
        except psycopg.Error as error:
            if _is_of_session(error):
                await self._drop()
            raise
        finally:
            if (
                self._cursor is cursor
                and cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE
            ):
                # Lost, or cut off in the middle of a statement.
                self._lost += [] if self._session is None else [self._session]
                await self._drop()

    async def _connect(self) -> AsyncRawCursor[Any]:
        async with asyncio.timeout(STATEMENT_DEADLINE):
            conn = await connect_like(self._database.pool)
        try:
            with hung_up_after(STATEMENT_DEADLINE, conn):
                cursor = _raw_cursor(conn)
                session = await self._database.send(cursor, self._begin(conn.info.backend_pid))
                await self._end_lost(cursor)
        except BaseException:
            await conn.close()
            raise
        self._session, self._cursor = session, cursor
        return cursor

    async def _end_lost(self, cursor: AsyncRawCursor[Any]) -> None:
        while self._lost:
            end = Query(_END_SESSION, self._lost[-1], bool, seldom=True)
            try:
                if await self._database.send(cursor, end):
                    await asyncio.sleep(END_INTERVAL)  # it was still there
                    continue
            except errors.InsufficientPrivilege as error:
                logger.debug("Could not end a session that was lost (%s)", one_line(error))
            self._lost.pop()

    async def _drop(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


def _is_of_session(error: psycopg.Error) -> bool:
    """Whether another session may do better at once with the very same statement."""
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return True  # as in `Database.connection`
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return False
    return backoff_for(error) is None


def _raw_cursor(conn: AsyncConnection[Any]) -> AsyncRawCursor[Any]:
    cursor = AsyncRawCursor(conn, row_factory=tuple_row)
    _load_raw(cursor)
    return cursor


def _goes_without_preparing(
    cursor: AsyncRawCursor[Any] | RawCursor[Any], error: psycopg.Error, *, told: bool
) -> bool:
    """Whether a statement can be sent again unprepared: not if it has undone a transaction."""
    if cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    if told:
        return True  # it was under way when another one met the same
    logger.warning(
        "Statements are not prepared any more, because a pooler does not keep track of them (%s); "
        "prepared_statements=False says so from the beginning",
        one_line(error),
    )
    return True


def can_copy(conn: BaseConnection[Any]) -> bool:
    """Whether a connection takes a COPY statement now."""
    return conn.pgconn.pipeline_status == PipelineStatus.OFF


def _has_rows(cursor: AsyncRawCursor[Any] | RawCursor[Any]) -> bool:
    """Whether a statement returns rows, be there some or none; `description` tells, but dearly."""
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0


class SyncDatabase:
    """`Database` for programs without an event loop; one connection at a time from a pool."""

    def __init__(
        self,
        pool: psycopg_pool.ConnectionPool[Any],
        *,
        schema: str,
        prepared_statements: bool = True,
        use_node_time: bool = False,
    ) -> None:
        self.pool = pool
        self.statements = Statements(schema)
        self._prepare = prepared_statements
        self._use_node_time = use_node_time

    def now(self) -> datetime | None:
        """The time at which jobs without a time are to run; None leaves it to the server."""
        return clock.utc_now() if self._use_node_time else None

    def run(self, query: Query[T], *, conn: Connection[Any] | None = None) -> T:
        """Send one statement, on a caller's connection or on one from the pool."""
        if conn is not None:
            return self._send(conn, query)
        try:
            return self._borrow_and_send(query)
        except STALE:
            self.pool.drain()
            return self._borrow_and_send(query)

    def run_each(self, queries: Iterable[Query[None]], *, conn: Connection[Any]) -> None:
        """Send statements one after the other. See `Database.run_each`."""
        with ExitStack() as stack:
            if Pipeline.is_supported():
                stack.enter_context(conn.pipeline())
            sent: tuple[RawCursor[Any], Query[None]] | None = None
            for query in queries:
                rows = sent[0].fetchmany(1) if sent else []
                cursor = RawCursor(conn, row_factory=tuple_row)
                self._execute(cursor, query)
                if sent:
                    sent[1].read(rows + sent[0].fetchall())
                sent = cursor, query
            if sent:
                sent[1].read(sent[0].fetchall())

    def copy_in(self, query: Query[None], blocks: Iterable[str], *, conn: Connection[Any]) -> None:
        """Send a COPY statement, and what it is to write, on a connection."""
        cursor = RawCursor(conn)
        with cursor, cursor.copy(self.statements[query.text]) as copy:
            for block in blocks:
                copy.write(block)

    def _borrow_and_send(self, query: Query[T]) -> T:
        with self.pool.connection() as conn:
            return self._send(conn, query)

    def _send(self, conn: Connection[Any], query: Query[T]) -> T:
        with RawCursor(conn, row_factory=tuple_row) as cursor:
            self._execute(cursor, query)
            if cursor.pgresult is None:
                with conn.pipeline():
                    pass
            return query.read(cursor.fetchall() if _has_rows(cursor) else [])

    def _execute(self, cursor: RawCursor[Any], query: Query[Any]) -> None:
        _load_raw(cursor)
        text = self.statements[query.text]
        prepare = self._prepare and not query.seldom
        try:
            cursor.execute(text, query.values, prepare=prepare, binary=True)
        except UNPREPARED as error:
            if not prepare or not _goes_without_preparing(cursor, error, told=not self._prepare):
                raise
            self._prepare = False
            cursor.execute(text, query.values, prepare=False, binary=True)
