"""Jobs are added on connections of asyncpg, in their transactions."""

import re
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, TypeVar, assert_never

import asyncpg
import psycopg
from psycopg import Connection

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import as_timestamp
from graphile_worker_py.postgres import given
from graphile_worker_py.postgres.query import (
    CopyIn,
    Pause,
    Pipelined,
    Query,
    Script,
    Statements,
    Step,
    Steps,
    Transaction,
)
from graphile_worker_py.postgres.together import Together
from graphile_worker_py.sql import fragments

T = TypeVar("T")

# A connection may have codecs of its own for JSON, which must not be applied to texts that are
# JSON already. So JSON travels as text, and comes back as the bytes that a `Job` decodes.
_JSON_VALUE: Final = re.compile(r"(\$\d+)::pg_catalog\.json\b")
_JOB: Final = re.sub(
    r"job\.(payload|flags)",
    r"pg_catalog.convert_to(job.\1::pg_catalog.text, 'UTF8')",
    fragments.JOB,
)


class Adapter(given.Adapter):
    """Finds the connection of asyncpg in what callers pass."""

    async def taken(self, conn: Any) -> "AsyncpgConnection":
        """See `given.Adapter.taken`."""
        if not isinstance(conn, asyncpg.Connection):
            raise ConfigurationError(
                f"conn must be a connection of asyncpg, not {conn!r}: a pool lends one by "
                f"`async with pool.acquire() as conn`"
            )
        return AsyncpgConnection(conn)

    def taken_blocking(self, conn: Any) -> Connection[Any]:
        """See `given.Adapter.taken_blocking`."""
        raise ConfigurationError(
            f"{conn!r} needs an event loop: use WorkerUtils, not SyncWorkerUtils"
        )


class AsyncpgConnection(given.OtherConnection):
    """A caller's connection of asyncpg, or one from a pool of asyncpg's."""

    # asyncpg has no types of its own for mypy; what it returns is checked by the tests.
    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def drive(self, steps: Steps[T], statements: Statements, *, in_transaction: bool) -> T:
        """See `OtherConnection.drive`."""
        try:
            if not in_transaction:
                return await self._drive(steps, statements)
            async with self._conn.transaction():
                return await self._drive(steps, statements)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _translated(error) from error

    async def _drive(self, steps: Steps[T], statements: Statements) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._take(step, statements)
                except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                    translated = _translated(error)
                    translated.__cause__ = error
                    step = steps.throw(translated)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _take(self, step: Step, statements: Statements) -> Any:
        match step:
            case Together() | Pipelined():  # asyncpg can't read arrays of unnamed rows
                return [await self._run(query, statements) for query in step.queries]
            case Query():
                return await self._run(step, statements)
            case Transaction():
                return await self.drive(step.steps, statements, in_transaction=True)
            case CopyIn() | Script() | Pause():
                raise NotImplementedError(f"{type(step).__name__} is not needed to add jobs")
            case _:
                assert_never(step)

    async def _run(self, query: Query[T], statements: Statements) -> T:
        text = _text(statements[query.text])
        records = await self._conn.fetch(text, *query.values)
        return query.read([tuple(map(_raw, record)) for record in records])


@lru_cache(maxsize=256)
def _text(statement: bytes) -> str:
    text = statement.decode().replace(fragments.JOB, _JOB)
    return _JSON_VALUE.sub(r"\1::pg_catalog.text::pg_catalog.json", text)


def _raw(value: Any) -> Any:
    """A value as `Job` has it in its row: times are decoded when they are first read."""
    return as_timestamp(value) if isinstance(value, datetime) else value


def _translated(error: Exception) -> psycopg.Error:
    """The error of psycopg that means the same: `add_job` documents these."""
    sqlstate = getattr(error, "sqlstate", None)
    message = f"{error}"
    if sqlstate is None:
        return psycopg.InterfaceError(message)
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(sqlstate)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(message)
