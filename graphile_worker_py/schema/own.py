"""Install and upgrade the schema of our own, `graphile_worker_py`."""

from typing import Any, Final

from psycopg import AsyncConnection, errors

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import own_schema

MISSING: Final = (errors.UndefinedTable, errors.InvalidSchemaName)
"""What a statement meets where the schema was not installed, or was dropped."""
TRIES: Final = 3
_CLASHES: Final = (errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateSchema)


async def install(database: Database, conn: AsyncConnection[Any]) -> None:
    """Bring the schema to the revision of this release, or do nothing if it is there.

    Safe to run from many processes at once.

    Args:
        database: Where.
        conn: A connection to it, outside a transaction.

    Raises:
        ConfigurationError: The jobs themselves are in a schema of that name.
        psycopg.errors.InsufficientPrivilege: The role may not create it, or not look at it.
        psycopg.Error: The database can't be reached, or refuses.
    """
    if database.schema == own_schema.NAME:
        raise ConfigurationError(
            f"the jobs are in the schema {own_schema.NAME!r}, which is the name of the one for "
            f"worker pools"
        )
    if await _revision(database, conn) >= own_schema.LATEST:
        return
    for tries_left in reversed(range(TRIES)):
        try:
            await _install(database, conn)
        except _CLASHES:
            # Transactions that see one state of the data only do not see who was ahead.
            if not tries_left:
                raise
        else:
            return


async def _install(database: Database, conn: AsyncConnection[Any]) -> None:
    run = database.run
    async with conn.transaction():
        await run(own_schema.lock_migrations(), conn=conn)
        if not await run(own_schema.read_schema_exists(), conn=conn):
            await run(own_schema.create_schema(), conn=conn)
        revision = await _revision(database, conn)
        for number, texts in enumerate(own_schema.MIGRATIONS, start=1):
            if number > revision:
                for text in texts:
                    await run(own_schema.statement(text), conn=conn)
                await run(own_schema.record_revision(number), conn=conn)


async def _revision(database: Database, conn: AsyncConnection[Any]) -> int:
    """The revision of the schema; 0 where it is not there."""
    # Asked for first: a statement that fails would end the transaction of a caller's connection.
    if not await database.run(own_schema.read_table_exists(), conn=conn):
        return 0
    return await database.run(own_schema.read_revision(), conn=conn)
