"""Statements as values: their text, their values, and how their rows are read."""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Generic, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, BaseConnection, RawCursor, errors, sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader, PyFormat
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.array import BaseListDumper, ListBinaryDumper, ListDumper
from psycopg.types.string import ByteaBinaryLoader

from graphile_worker_py.errors import one_line
from graphile_worker_py.records import Record

logger = logging.getLogger(__name__)

T = TypeVar("T")
SCHEMA_PLACEHOLDER: Final = ":GRAPHILE_WORKER_SCHEMA"
DOLLAR_QUOTE: Final = "$function$"
"""What migrations quote the bodies of functions with."""
BEGIN: Final = "select"
"""Begins a transaction on a connection that is not in autocommit mode, as any statement does."""
STALE: Final = errors.FeatureNotSupported
"""Raised for a prepared statement whose result columns have changed since it was prepared."""
UNPREPARED: Final = (
    errors.InvalidSqlStatementName,
    errors.DuplicatePreparedStatement,
    errors.ProtocolViolation,
)
"""Raised where a pooler handed our session to another client: our prepared statements are missing.

A statement of the same name may exist with another number of values: a protocol violation.
"""


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """A statement with its values, and how its rows are read.

    Args:
        text: SQL with `$1` placeholders; `:GRAPHILE_WORKER_SCHEMA` stands for the schema.
        values: One for each placeholder. A list of nulls only is sent as an empty one.
        read: Makes the result from all rows.
        prepare: False for a statement that is sent too rarely to be worth preparing.
        lasts: Seconds for which a program that asks often may use the result again; 0 for none.
        after: A statement that is sent before it, in the same transaction. Only `Database.send`
            does that, on a connection that is in no transaction.
    """

    text: LiteralString
    values: Sequence[Any]
    read: Callable[[list[tuple[Any, ...]]], T]
    prepare: bool = True
    lasts: float = 0.0
    after: "Query[Any] | None" = None

    def __post_init__(self) -> None:
        if any(type(value) is list and None in value for value in self.values):
            values = tuple(
                _ListWithNulls(value) if type(value) is list and None in value else value
                for value in self.values
            )
            object.__setattr__(self, "values", values)


class _ListWithNulls(list[Any]):
    """A list that is sent in binary: with `array_nulls` off, the text `NULL` is no null."""


class _NullsDumper(ListBinaryDumper):
    def upgrade(self, obj: list[Any], format: PyFormat) -> BaseListDumper:  # noqa: A002  # psycopg's
        if all(value is None for value in obj):
            return _OnlyNullsDumper(self.cls, self._tx)
        return super().upgrade(obj, format)


class _OnlyNullsDumper(ListDumper):
    """Of unknown type; `unnest` next to others fills an empty list with nulls."""

    def dump(self, _obj: list[Any]) -> Buffer:
        return b"{}"


psycopg.adapters.register_dumper(_ListWithNulls, _NullsDumper)


class Pipelined(Record, kw_only=False):
    """Statements that do not depend on each other's results; the result is a list of theirs.

    While the server works on one, the next one is taken from `queries`.
    """

    queries: Iterable[Query[Any]]


class CopyIn(Record, kw_only=False):
    """A COPY statement and the data to write; each block is taken when it is needed."""

    query: Query[None]
    blocks: Iterable[str]


class Script(Record, kw_only=False):
    """Statements without values, separated by semicolons."""

    text: LiteralString


class Pause(Record, kw_only=False):
    """Seconds to wait before the next step."""

    seconds: float


class Transaction(Record, kw_only=False):
    """Steps to send within a transaction; their result is the result."""

    steps: "Steps[Any]"


Step: TypeAlias = Query[Any] | Pipelined | CopyIn | Script | Pause | Transaction
Steps: TypeAlias = Generator[Step, Any, T]
"""What to send in turn: the generator is sent each result, and its own result is returned.

`Database.drive` and `SyncDatabase.drive` send it, with and without an event loop.
"""


def no_result(_rows: list[tuple[Any, ...]]) -> None:
    """Read nothing, for statements whose rows do not matter."""


def array_text(values: Iterable[int | str]) -> str:
    """An array as PostgreSQL writes it, which is sent faster than a list."""
    texts = [str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return "{" + ",".join([f'"{text}"' for text in texts]) + "}"


class _RecodingLoader(Loader):
    """Load JSON as UTF-8 from a connection with another client encoding."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        encoding = "utf-8" if self.connection is None else self.connection.info.encoding
        return bytes(data).decode(encoding).encode()


class _JsonbLoader(_RecodingLoader):
    """Load the JSON text of a jsonb value, which follows one version byte (always 1)."""

    def load(self, data: Buffer) -> bytes:
        return super().load(bytes(data)[1:])


def load_raw(cursor: AsyncRawCursor[Any] | RawCursor[Any]) -> None:
    """Leave JSON and timestamps undecoded: `Job` decodes them when they are first read."""
    # The loader of bytea does that without a Python call for each value.
    utf8 = cursor.connection.info.encoding == "utf-8"
    cursor.adapters.register_loader("json", ByteaBinaryLoader if utf8 else _RecodingLoader)
    cursor.adapters.register_loader("jsonb", _JsonbLoader)
    cursor.adapters.register_loader("timestamptz", ByteaBinaryLoader)


def quoted(schema: str) -> str:
    """The schema's name as an SQL identifier, safe for any name."""
    return sql.Identifier(schema).as_string()


def _dollar_quote_for(schema: str) -> str:
    """A dollar quote that the schema's name does not contain: it would end a function's body."""
    candidates = (f"$function{'_' * length}$" for length in count())
    return next(quote for quote in candidates if quote not in schema)


class Statements:
    """Statement texts with the schema's name filled in, each text once."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._quoted = quoted(schema)
        self._dollar_quote = _dollar_quote_for(schema)
        self._texts: dict[str, bytes] = {}

    def __getitem__(self, text: LiteralString) -> bytes:
        try:
            return self._texts[text]
        except KeyError:
            filled = text.replace(DOLLAR_QUOTE, self._dollar_quote)
            self._texts[text] = filled.replace(SCHEMA_PLACEHOLDER, self._quoted).encode()
            return self._texts[text]


def raw_cursor(conn: AsyncConnection[Any]) -> AsyncRawCursor[Any]:
    """A cursor for `Query`: `$1` placeholders, tuples, undecoded values."""
    cursor = AsyncRawCursor(conn, row_factory=tuple_row)
    load_raw(cursor)
    return cursor


def goes_without_preparing(
    cursor: AsyncRawCursor[Any] | RawCursor[Any], error: psycopg.Error, *, warned: bool
) -> bool:
    """Whether a statement can be sent again unprepared; not if its failure undid a transaction."""
    if cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    if not warned:
        logger.warning(
            "Statements are no longer prepared: a pooler between worker and database does not "
            "track them (%s). Set prepared_statements=False to start that way",
            one_line(error),
        )
    return True


def can_copy(conn: BaseConnection[Any]) -> bool:
    """Whether a connection can run COPY now; not in pipeline mode."""
    return conn.pgconn.pipeline_status == PipelineStatus.OFF


def ends_with_first_block(conn: BaseConnection[Any]) -> bool:
    """Whether a `transaction()` block of ours would commit what is the caller's to commit.

    It would on a connection that begins its transactions itself, and has not begun one yet.
    """
    return not conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE


def has_rows(cursor: AsyncRawCursor[Any] | RawCursor[Any]) -> bool:
    """Whether a statement returns rows, even if none; cheaper than `cursor.description`."""
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0
