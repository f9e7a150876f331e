"""A session that tasks borrow, and how what they did to it is undone."""

from collections import deque
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from psycopg import AsyncConnection, Connection, IsolationLevel, errors, generators
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from graphile_worker_py.postgres.idle import has_ended
from graphile_worker_py.records import Record

RESET_PATIENCE: Final = 5.0
"""Seconds after which a session that is not reset is closed."""
LIFETIME: Final = 3600.0
"""Seconds after which a session is not used again, as in a pool."""

# Not `discard all`, which would drop the statements that psycopg has prepared. One string, so
# that it takes one round trip.
_RESET: Final = (
    b"reset session authorization; reset role; reset all; close all; unlisten *;"
    b" discard sequences; discard temp; "
)
_UNLOCK: Final = (
    b"select null where pg_catalog.pg_advisory_unlock_all() is null"
    b" union all select name from pg_catalog.pg_prepared_statements"
)
"""Releases advisory locks, and names the prepared statements; planning it is most of its cost."""
_UNLOCK_NAME: Final = b"graphile_worker_py_unlock"
_UNLOCK_KEY: Final = (_UNLOCK, ())
"""As psycopg keeps it among the statements it has prepared, so that both agree on what is."""

_IN_TRANSACTION: Final = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
_SUCCESS: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

ConnT = TypeVar("ConnT", bound=AsyncConnection[Any] | Connection[Any])


class _Client(Record):
    """How a connection object behaves, apart from its session on the server."""

    autocommit: bool
    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    attributes: dict[str, Any]
    prepare_threshold: int | None
    prepared_max: int | None
    adapters: AdaptersMap
    notice_handlers: list[Any]
    notify_handlers: list[Any]

    @classmethod
    def of(cls, conn: AsyncConnection[Any] | Connection[Any]) -> "_Client":
        """How a connection behaves now."""
        return cls(
            autocommit=conn._autocommit,
            isolation_level=conn._isolation_level,
            read_only=conn._read_only,
            deferrable=conn._deferrable,
            attributes={name: value for name, value in vars(conn).items() if name[0] != "_"},
            prepare_threshold=conn._prepared.prepare_threshold,
            prepared_max=conn.prepared_max,
            adapters=AdaptersMap(conn.adapters),
            notice_handlers=list(conn._notice_handlers),
            notify_handlers=list(conn._notify_handlers),
        )

    def restore(self, conn: AsyncConnection[Any] | Connection[Any]) -> None:
        """Let a connection behave like this again; it must not be in a transaction."""
        # First: a method may have been replaced.
        own = vars(conn)
        for name in [name for name in own if name[0] != "_" and name not in self.attributes]:
            del own[name]
        own.update(self.attributes)
        conn._autocommit = self.autocommit
        conn._isolation_level = self.isolation_level
        conn._read_only = self.read_only
        conn._deferrable = self.deferrable
        conn._begin_statement = b""
        conn._prepared.prepare_threshold = self.prepare_threshold
        conn.prepared_max = self.prepared_max
        if not _adapts_like(conn.adapters, self.adapters):
            conn._adapters = AdaptersMap(self.adapters)
        conn._notice_handlers[:] = self.notice_handlers
        conn._notify_handlers[:] = self.notify_handlers


def _adapts_like(one: AdaptersMap, other: AdaptersMap) -> bool:
    # Maps share what neither has changed, so that comparing them is quick.
    return (
        one._dumpers == other._dumpers
        and one._dumpers_by_oid == other._dumpers_by_oid
        and one._loaders == other._loaders
        and one.types._registry == other.types._registry
    )


class Session(Generic[ConnT]):
    """A session that tasks borrow, one after the other.

    Args:
        conn: Its connection.
        is_kept: Whether only tasks have it from now on. It may then have a prepared statement of
            ours, which makes a reset cheaper.

    Attributes:
        conn: Its connection.
    """

    __slots__ = ("_client", "_prepares", "_since", "conn")

    def __init__(self, conn: ConnT, *, is_kept: bool) -> None:
        self.conn = conn
        self._client = _Client.of(conn)
        self._prepares = is_kept and conn.prepare_threshold is not None
        self._since = monotonic()

    @property
    def is_usable(self) -> bool:
        """Whether another task can have it, after it was idle."""
        return not self.is_old and not has_ended(self.conn)

    @property
    def is_old(self) -> bool:
        """Whether no other task should have it."""
        return monotonic() - self._since >= LIFETIME

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way that would have to be committed or waited for."""
        conn = self.conn
        return (
            conn.pgconn.transaction_status == TransactionStatus.IDLE
            and not conn._num_transactions
            and conn._tpc is None
            and conn._pipeline is None
            and not conn.lock.locked()
        )

    def reset(self) -> PQGen[bool]:
        """Undo what a task did to the session. The caller has the lock of the connection.

        Yields what to wait for, as psycopg's generators do.

        Returns:
            Whether all is as it was. Otherwise the session must be closed.

        Raises:
            psycopg.Error: The server refuses.
        """
        conn, pgconn = self.conn, self.conn.pgconn
        if conn.closed or pgconn.pipeline_status != PipelineStatus.OFF:
            return False
        if pgconn.transaction_status in _IN_TRANSACTION:
            yield from conn._rollback_gen()
        self._client.restore(conn)
        prepared = conn._prepared._names
        if (yield from self._undo()) != set(prepared.values()):
            # The task has prepared some itself, or dropped those of psycopg.
            conn._prepared.clear()
            conn._prepared._to_flush.clear()
            yield from _sent(pgconn, b"deallocate all")
        if self._prepares:
            if _UNLOCK_KEY not in prepared:
                pgconn.send_prepare(_UNLOCK_NAME, _UNLOCK)
                yield from _answered(pgconn)
                prepared[_UNLOCK_KEY] = _UNLOCK_NAME
            prepared.move_to_end(_UNLOCK_KEY)  # psycopg drops the first one
        conn._notifies_backlog = deque()
        return pgconn.transaction_status == TransactionStatus.IDLE

    def _undo(self) -> PQGen[set[bytes | None]]:
        pgconn = self.conn.pgconn
        if _UNLOCK_KEY in self.conn._prepared._names:
            try:
                return _names((yield from _sent(pgconn, _RESET + b"execute " + _UNLOCK_NAME)))
            except errors.InvalidSqlStatementName:
                pass  # the task has dropped it
        return _names((yield from _sent(pgconn, _RESET + _UNLOCK)))


def _names(results: list[PGresult]) -> set[bytes | None]:
    last = results[-1]
    return {last.get_value(row, 0) for row in range(last.ntuples)}


def _sent(pgconn: PGconn, statements: bytes) -> PQGen[list[PGresult]]:
    """Send statements, and return their results."""
    pgconn.send_query(statements)
    return (yield from _answered(pgconn))


def _answered(pgconn: PGconn) -> PQGen[list[PGresult]]:
    results: list[PGresult] = yield from generators.execute(pgconn)
    last = results[-1]
    if last.status not in _SUCCESS:
        raise errors.error_from_result(last, encoding=pgconn._encoding)
    return results
