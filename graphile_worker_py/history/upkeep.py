"""Chores of the leader: partitions are added ahead of time, and dropped when they are too old."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from psycopg import AsyncConnection, errors

from graphile_worker_py.checks import check_duration
from graphile_worker_py.options.history import HistoryOptions
from graphile_worker_py.plugins import Chore
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.records import Record
from graphile_worker_py.sql import awaited, job_state, partitions
from graphile_worker_py.sql.cancel_jobs import delete_cancelled
from graphile_worker_py.sql.partitions import Attachment, Partition
from graphile_worker_py.sql.time_limits import limit_transaction

CHUNK: Final = 1000
"""Most rows that a statement deletes."""
MOST_CHUNKS: Final = 30
"""Most such statements of a chore, which comes again a minute later."""
LOCK_PATIENCE: Final = 0.05
STATEMENT_PATIENCE: Final = 30.0
MISSING: Final = (
    "history is not kept: its tables in the schema graphile_worker_py are missing, or this role "
    "may not read them; `graphile-worker-py migrate --side-schema` creates them"
)


class _Table(Record):
    """A partitioned table.

    Args:
        name: Its name.
        unit: What a partition is for, a day or a week.
        keep: Seconds for which rows are kept.
    """

    name: str
    unit: str
    keep: float


def _tables(options: HistoryOptions) -> Sequence[_Table]:
    retention = options.history_retention
    completed, failed, counters = (
        check_duration(f"history_retention.{name}", getattr(retention, name))
        for name in ("completed", "failed", "counters")
    )
    return (
        _Table(name="runs_completed", unit="day", keep=completed),
        _Table(name="runs_failed", unit="day", keep=failed),
        _Table(name="task_minutes", unit="week", keep=counters),
    )


def chores(pool: Any) -> list[Chore]:
    """What the leader has to do for the tables of history."""
    database: Database = pool.database
    tables = _tables(pool.options)
    does = {
        "add partitions of history": partial(_add, database, tables),
        "drop old partitions of history": partial(_drop_old, database, tables),
        "delete cancelled jobs": partial(_delete_cancelled, database),
        "delete what is known of jobs that are gone": partial(_forget_gone, database),
    }
    pause = pool.waits.chores
    return [Chore(name=name, interval=pause, run=run) for name, run in does.items()]


async def _add(database: Database, tables: Sequence[_Table], conn: AsyncConnection[Any]) -> None:
    for table in tables:
        async with _in_short(database, conn):
            await database.run(partitions.add_partitions(table.name), conn=conn)


async def _drop_old(
    database: Database, tables: Sequence[_Table], conn: AsyncConnection[Any]
) -> None:
    for table in tables:
        old = partitions.old_partitions(table.name, table.unit, older_than=table.keep)
        parts = await database.run(old, conn=conn)
        with suppress(errors.LockNotAvailable):  # something reads the table; tried again later
            if parts:
                await _drop(database, table.name, parts, conn)


async def _drop(
    database: Database, table: str, parts: Sequence[Partition], conn: AsyncConnection[Any]
) -> None:
    """Drop partitions, without keeping other statements waiting where that is possible."""
    limit = partitions.limit_session(conn.info.backend_pid, table)
    before = await database.run(limit, conn=conn)
    if before is None:
        for part in parts:
            await database.run(partitions.drop_as_owner(part.name), conn=conn)
        return
    try:
        for part in parts:
            if part.attachment is not Attachment.DETACHED:
                detach = partitions.detach_concurrently(table, part)
                await database.run_composed(detach, conn=conn)
            await database.run_composed(partitions.drop(part), conn=conn)
    finally:
        if not conn.closed:
            await database.run(partitions.reset_session(before), conn=conn)


async def _delete_cancelled(database: Database, conn: AsyncConnection[Any]) -> None:
    async with _in_short(database, conn):
        await database.run(delete_cancelled(database.schema, limit=CHUNK), conn=conn)


async def _forget_gone(database: Database, conn: AsyncConnection[Any]) -> None:
    schema = database.schema
    for query in (
        awaited.forget_awaited(schema, limit=CHUNK),
        job_state.forget_gone(schema, limit=CHUNK),
    ):
        for _ in range(MOST_CHUNKS):
            async with _in_short(database, conn):
                deleted = await database.run(query, conn=conn)
            if deleted < CHUNK:
                break


@asynccontextmanager
async def _in_short(database: Database, conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """A transaction that waits shortly for locks."""
    limits = limit_transaction(
        lock=LOCK_PATIENCE, statement=STATEMENT_PATIENCE, idle=STATEMENT_PATIENCE
    )
    async with conn.transaction():
        await database.run(limits, conn=conn)
        yield
