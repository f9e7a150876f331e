"""A session that locks a table for as long as it likes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

JOBS = "graphile_worker._private_jobs"
POOLS = "graphile_worker_py.pools"


@asynccontextmanager
async def table_locked(dsn: str, table: str = JOBS) -> AsyncIterator[None]:
    """Within the block no other session gets at a table, as while one rewrites it."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute(f"lock table {table} in access exclusive mode".encode())
        yield
        await conn.rollback()
