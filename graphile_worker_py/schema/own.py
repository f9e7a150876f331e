"""Install and upgrade the side schema `graphile_worker_py`.

Its core tables belong to worker pools. A leaf, which is an optional part of the package or a
plugin, may keep tables there too. It registers its migrations when it is imported, and they are
applied together with those of the core. A leaf whose migrations can't be applied does not keep
workers from registering.
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection, errors

from graphile_worker_py.errors import ConfigurationError, one_line
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.schema import trust
from graphile_worker_py.sql import own_schema
from graphile_worker_py.sql.time_limits import limit_transaction
from graphile_worker_py.sql.trust import read_strangers

logger = logging.getLogger(__name__)

MISSING: Final = (errors.UndefinedTable, errors.InvalidSchemaName)
"""Errors of a statement where the schema was not installed, or was dropped."""
TRIES: Final = 3
LOCK_PATIENCE: Final = 3.0
"""Seconds that an installation waits for each lock that another session holds."""
PATIENCE: Final = 30.0
"""Seconds that each of its statements may take, and that it may pause."""
_CLASHES: Final = (errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateSchema)
_LEAF_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")

REGISTERED: Final[dict[str, tuple[tuple[LiteralString, ...], ...]]] = {}
"""The migrations of leaves. They are declarations of code, the same for all pools of a process."""


def register_migrations(leaf: str, migrations: Sequence[Sequence[LiteralString]]) -> None:
    """Register the tables of a leaf; called when the module of the leaf is imported.

    The migrations are applied in order, in one transaction, when a worker pool registers, and by
    `run_migrations(side_schema=True)`. Each is recorded by its number, from 1, and is applied only
    once. So a released one must not change; append another one. It may only add, because older
    releases may run next to newer ones.

    A leaf must not use its tables before `leaf_revisions` says that they are there: the role may
    lack the right to create them, or the side schema may be switched off.

    Args:
        leaf: Name of the leaf: lower-case letters, digits and underscores.
        migrations: The statements of each migration. Tables are named `graphile_worker_py.….`

    Raises:
        ConfigurationError: The name is not allowed, or is registered with other migrations.
    """
    if not _LEAF_NAME.fullmatch(leaf):
        raise ConfigurationError(
            f"name of a leaf must be of lower-case letters, digits and underscores, not {leaf!r}"
        )
    given = tuple(tuple(texts) for texts in migrations)
    if REGISTERED.setdefault(leaf, given) != given:
        raise ConfigurationError(f"leaf {leaf!r} is already registered with other migrations")


async def install(database: Database, conn: AsyncConnection[Any]) -> None:
    """Bring the schema to the revisions of this release, or do nothing if it is up to date.

    Safe to run from many processes at once.

    Args:
        database: The database.
        conn: A connection to it, outside a transaction.

    Raises:
        ConfigurationError: The jobs themselves are in a schema of that name.
        MigrationError: The schema, or a part of it, belongs to a role that is not to be trusted.
        psycopg.errors.InsufficientPrivilege: The role may not create it, or not read it.
        psycopg.Error: The database can't be reached, or refuses.
    """
    if database.schema == own_schema.NAME:
        raise ConfigurationError(
            f"the jobs are in the schema {own_schema.NAME!r}, which is the name of the one for "
            f"worker pools"
        )
    # Another role may create the schema at any moment as long as it does not exist.
    exists = await check_trust(database, conn)
    if not exists or await _revision(database, conn) < own_schema.LATEST:
        await _until_no_clash(partial(_install, database, conn))
    if REGISTERED:
        await _install_leaves(database, conn)


async def check_trust(database: Database, conn: AsyncConnection[Any]) -> bool:
    """Check that the schema, if it exists, belongs to roles that may be trusted.

    Returns:
        Whether it exists.

    Raises:
        MigrationError: It belongs to another role.
    """
    exists = await database.run(own_schema.read_schema_exists(), conn=conn)
    if exists:
        steps = trust.check_trust(own_schema.NAME, beside=database.schema)
        await database.drive(steps, conn=conn)
    return exists


async def leaf_revisions(
    database: Database, *, conn: AsyncConnection[Any] | None = None
) -> dict[str, int]:
    """Read how many migrations of each leaf were applied; a leaf without any is left out.

    Where the role may not read that, or another role has planted the schema, it is as if there
    were none.
    """
    strangers = read_strangers(own_schema.NAME, beside=database.schema)
    if await database.run(strangers, conn=conn):
        return {}
    # Asked for first: a statement that fails would end the transaction of a caller's connection.
    if not await database.run(own_schema.read_leaf_table_is_readable(), conn=conn):
        return {}
    return await database.run(own_schema.read_leaf_revisions(), conn=conn)


def is_ready(leaf: str | None, applied: Mapping[str, int]) -> bool:
    """Whether all registered migrations of a leaf were applied; a plugin without leaf is ready."""
    if leaf is None:
        return True
    return leaf in REGISTERED and applied.get(leaf, 0) >= len(REGISTERED[leaf])


async def _until_no_clash(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again if another installer was faster.

    The first installation has no row to lock. Of several installers one creates the schema; the
    others wait for its transaction, and then clash.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            await attempt()
        except _CLASHES:
            if not tries_left:
                raise
        except errors.LockNotAvailable as error:
            raise errors.LockNotAvailable(
                f"another session has locked tables of the schema {own_schema.NAME}"
            ) from error
        else:
            return


@asynccontextmanager
async def _installing(database: Database, conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """A transaction that only one installer is in, if the table of migrations exists."""
    limits = limit_transaction(lock=LOCK_PATIENCE, statement=PATIENCE, idle=PATIENCE)
    async with conn.transaction():
        await database.run(limits, conn=conn)
        if await database.run(own_schema.read_table_exists(), conn=conn):
            await database.run(own_schema.lock_migrations(), conn=conn)
        yield


async def _install(database: Database, conn: AsyncConnection[Any]) -> None:
    run = database.run
    async with _installing(database, conn):
        if not await check_trust(database, conn):
            await run(own_schema.create_schema(), conn=conn)
        revision = await _revision(database, conn)
        for number, texts in enumerate(own_schema.MIGRATIONS, start=1):
            if number > revision:
                for text in texts:
                    await run(own_schema.statement(text), conn=conn)
                await run(own_schema.record_revision(number), conn=conn)


async def _install_leaves(database: Database, conn: AsyncConnection[Any]) -> None:
    applied = await leaf_revisions(database, conn=conn)
    for leaf, migrations in REGISTERED.items():
        if applied.get(leaf, 0) >= len(migrations):
            continue
        try:
            await _until_no_clash(partial(_install_leaf, database, conn, leaf))
        except psycopg.Error as error:
            if conn.closed:
                raise
            logger.warning(
                "Could not create the tables of %r in the schema graphile_worker_py (%s); it works "
                "without them",
                leaf,
                one_line(error),
            )


async def _install_leaf(database: Database, conn: AsyncConnection[Any], leaf: str) -> None:
    run = database.run
    async with _installing(database, conn):
        if not await run(own_schema.read_leaf_table_exists(), conn=conn):
            await run(own_schema.create_leaf_table(), conn=conn)
        revision = (await leaf_revisions(database, conn=conn)).get(leaf, 0)
        for number, texts in enumerate(REGISTERED[leaf], start=1):
            if number > revision:
                for text in texts:
                    await run(own_schema.statement(text), conn=conn)
                await run(own_schema.record_leaf_revision(leaf, number), conn=conn)


async def _revision(database: Database, conn: AsyncConnection[Any]) -> int:
    """The revision of the core's tables; 0 where they are missing."""
    # Asked for first: a statement that fails would end the transaction of a caller's connection.
    if not await database.run(own_schema.read_table_exists(), conn=conn):
        return 0
    return await database.run(own_schema.read_revision(), conn=conn)
