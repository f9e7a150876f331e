"""Install and upgrade the schema, also while Node workers do the same."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import psycopg
from psycopg import AsyncConnection, errors

from graphile_worker_py import aio
from graphile_worker_py.errors import (
    IncompatibleSchemaError,
    MigrationError,
    UnsupportedPostgresError,
)
from graphile_worker_py.plugins import SchemaStep
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import STATEMENT_DEADLINE, ended_after
from graphile_worker_py.postgres.query import Pause, Script, Steps, Transaction
from graphile_worker_py.schema import rights, trust
from graphile_worker_py.sql import migrations, notifications
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.sql.migrations import (
    BASELINE_REVISION,
    BREAKING_REVISIONS,
    LATEST_REVISION,
    Found,
    Revisions,
)

logger = logging.getLogger(__name__)

OLDEST_POSTGRES: Final = 120000

# Errors of an installer that lost a race with another one.
_CLASHES: Final = (
    errors.UniqueViolation,
    errors.DuplicateSchema,
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.DuplicateColumn,
)
# Errors of reading the revisions where nothing was installed, or only a part.
_NOT_INSTALLED: Final = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)

_CLASH_PAUSE: Final = 0.4
_BOOTSTRAP_TRIES: Final = 10
# A Node worker installs one revision after the other. A schema at revisions 1 to 17 is either being
# installed right now, or old. It is old if its revision did not change for this many seconds.
_INSTALL_PATIENCE: Final = 3.0
# Another installer may legitimately take hours, but the log should say what the process waits for.
WARN_AFTER: Final = 10.0


async def migrate(
    database: Database, hooks: Hooks | None = None, *, warn_after: float = WARN_AFTER
) -> None:
    """Bring the schema to the revision of this release, or do nothing if it is up to date.

    Safe to run from many processes at once, Python and Node alike.

    Args:
        database: The database, and the schema's name in it.
        hooks: Plugins that wrap the steps; None means none.
        warn_after: Seconds after which the log says that it is still under way.

    Raises:
        UnsupportedPostgresError: The server is older than PostgreSQL 12.
        IncompatibleSchemaError: The schema is newer than this release can work on, or older than
            it can upgrade.
        MissingRightsError: The role may not read the schema.
        MigrationError: The role may not create the schema or its objects.
    """
    async with database.connection() as conn:
        waiting = asyncio.get_running_loop().call_later(warn_after, _warn, database.schema)
        # Each revision needs a separate transaction, whatever the caller's pool is set to.
        autocommit = conn.autocommit
        await conn.set_autocommit(True)
        try:
            if hooks is not None and hooks.wraps("bootstrap", "migrate"):
                await _migrate_within_hooks(database, conn, hooks)
            else:
                await database.drive(_migrated(database.schema), conn=conn)
        except errors.InsufficientPrivilege as error:
            await database.drive(_explained(error, database.schema, conn.info), conn=conn)
        finally:
            waiting.cancel()
            if not conn.closed:
                await aio.finish(conn.set_autocommit(autocommit))


def migrate_blocking(database: SyncDatabase) -> None:
    """`migrate` without an event loop, and without plugins."""
    schema = database.statements.schema
    waiting = threading.Timer(WARN_AFTER, _warn, [schema])
    waiting.daemon = True
    with database.connection() as conn:
        waiting.start()
        autocommit = conn.autocommit
        conn.set_autocommit(True)
        try:
            database.drive(_migrated(schema), conn=conn)
        except errors.InsufficientPrivilege as error:
            database.drive(_explained(error, schema, conn.info), conn=conn)
        finally:
            waiting.cancel()
            if not conn.closed:
                conn.set_autocommit(autocommit)


def _warn(schema: str) -> None:
    logger.warning(
        "Still installing or checking schema %r; another session may have its tables locked",
        schema,
    )


def _explained(
    error: errors.InsufficientPrivilege, schema: str, info: psycopg.ConnectionInfo
) -> Steps[NoReturn]:
    """Raise the error that says which rights are missing."""
    # If the schema is up to date, the role only needs the right to read it.
    rights.check_grants((yield read_rights(schema, rights.LOOKING)), schema)
    raise MigrationError(
        f"role {info.user!r} may not install or upgrade schema {schema!r} in database "
        f"{info.dbname!r} ({error.diag.message_primary}). Let a role that owns the schema, or that "
        f"has CREATE on the database, run `graphile-worker-py migrate`"
    ) from error


async def check_role(database: Database, needed: rights.Needs) -> None:
    """Check that the role has the rights it needs, and that no rows are hidden from it.

    Raises:
        MissingRightsError: A right is missing, or rows are hidden.
    """
    found = await database.run(read_rights(database.schema, needed))
    rights.check_rights(found, database.schema)


def check_installed(schema: str) -> Steps[None]:
    """Check that a schema is installed and that the role may use it; installs nothing.

    Raises:
        MigrationError: The schema is not installed, or not at a revision that this release
            supports.
        MissingRightsError: The role lacks rights, or would see no rows.
    """
    try:
        revisions = yield migrations.read_revisions()
    except _NOT_INSTALLED as error:
        raise MigrationError(
            f"schema {schema!r} is not installed in this database; "
            f"`graphile-worker-py migrate` installs it"
        ) from error
    except errors.InsufficientPrivilege:
        rights.check_grants((yield read_rights(schema, rights.LOOKING)), schema)
        raise
    check_supported(revisions, schema)
    rights.check_rights((yield read_rights(schema, rights.LOOKING)), schema)


async def check_revision(database: Database) -> None:
    """Check that this release can work on the current revision of the schema.

    It uses a new connection: those of the pool may be dead after an outage, borrowed, or changed by
    a task.

    Raises:
        IncompatibleSchemaError: It can't.
    """
    async with (
        database.new_connection() as conn,
        ended_after(STATEMENT_DEADLINE, conn),
    ):
        revisions = await database.run(migrations.read_revisions(), conn=conn)
    check_supported(revisions, database.schema)


async def _migrate_within_hooks(
    database: Database, conn: AsyncConnection[Any], hooks: Hooks
) -> None:
    """`_migrated`, within the plugins that wrap its steps."""
    schema, drive = database.schema, partial(database.drive, conn=conn)

    def step(server_version: int) -> SchemaStep:
        return SchemaStep(conn=conn, schema=schema, server_version=server_version)

    def driving(steps: Steps[None]) -> Callable[[SchemaStep], Awaitable[None]]:
        return lambda _: drive(steps)

    await drive(_found(schema))
    for _ in range(_BOOTSTRAP_TRIES):
        revisions = await drive(_read())
        if revisions is not None:
            break
        found = await drive(_found(schema))
        try:
            await hooks.bootstrap(step(found.server_version), driving(_bootstrapped(found, schema)))
        except _CLASHES:
            await asyncio.sleep(_clash_pause())
    else:
        raise _contended(schema)
    await hooks.migrate(step(revisions.server_version), driving(_upgraded(revisions, schema)))


def _migrated(schema: str) -> Steps[None]:
    """Install or upgrade the schema, on a connection in autocommit mode."""
    for _ in range(_BOOTSTRAP_TRIES):
        found = yield from _found(schema)
        revisions = (yield from _read()) if found.exists else None
        if revisions is not None:
            break
        try:
            yield from _bootstrapped(found, schema)
        except _CLASHES:
            yield Pause(_clash_pause())
    else:
        raise _contended(schema)
    yield from _upgraded(revisions, schema)


def _clash_pause() -> float:
    return _CLASH_PAUSE + random.uniform(0, 0.2)  # noqa: S311


def _contended(schema: str) -> MigrationError:
    return MigrationError(
        f"schema {schema!r} could not be prepared: other sessions kept changing it"
    )


def _found(schema: str) -> Steps[Found]:
    """Read what there is, and check server and owners."""
    found: Found = yield migrations.find(schema)
    _check_postgres(found.server_version)
    if found.exists and not found.has_jobs:
        # Before anything in it is read: even that might run code of another role.
        yield from trust.check_trust(schema)
    return found


def _read() -> Steps[Revisions | None]:
    """Read the revisions; None if nothing was installed, or only a part."""
    try:
        return (yield migrations.read_revisions())  # type: ignore[no-any-return]
    except _NOT_INSTALLED:
        return None


def _bootstrapped(found: Found, schema: str) -> Steps[None]:
    """Create the schema and its table of revisions."""
    yield Transaction(_bootstrap(schema, exists=found.exists))


def _bootstrap(schema: str, *, exists: bool) -> Steps[None]:
    if exists:
        # It may have been created a moment ago.
        yield from trust.check_trust(schema)
    else:
        yield migrations.create_schema()
    yield Script(migrations.BOOTSTRAP)
    yield migrations.mark_breaking()


def _upgraded(revisions: Revisions, schema: str) -> Steps[None]:
    """Apply the migrations that are missing."""
    if revisions.latest is None or revisions.latest < LATEST_REVISION:
        fresh = False
        if revisions.latest is None:
            fresh = yield from _applied(range(1, BASELINE_REVISION + 1), schema, fresh=True)
        latest = yield from _baseline(schema)
        for revision in range(latest + 1, LATEST_REVISION + 1):
            yield from _applied([revision], schema, fresh=fresh)
        revisions = yield migrations.read_revisions()
    check_supported(revisions, schema)


def _applied(revisions: Sequence[int], schema: str, *, fresh: bool) -> Steps[bool]:
    """Apply one file, which brings the schema to the last of these revisions.

    Returns:
        False if another installer was ahead.
    """
    latest = max(revisions)
    try:
        yield Transaction(_apply(revisions, fresh=fresh))
    except errors.UniqueViolation as error:
        if error.diag.table_name != "migrations":
            raise
        logger.debug("Revision %s was recorded by another installer", latest)
        return False
    logger.info("Schema %r is at revision %s", schema, latest)
    return True


def _apply(revisions: Sequence[int], *, fresh: bool) -> Steps[None]:
    latest = max(revisions)
    breaking = latest in BREAKING_REVISIONS
    # The rows come first: another installer, in any language, waits here on the primary key, and
    # then clashes before it has changed anything.
    yield migrations.record_revisions(revisions)
    yield Script(read_migration(latest))  # pyright: ignore[reportArgumentType]  # a file of ours
    # A fresh schema has no workers yet. The channel is shared by all schemas of the database, so
    # the word "breaking" would only stop the workers of the others.
    if not (fresh and breaking):
        yield notifications.announce_migration(latest, breaking=breaking)


def _baseline(schema: str) -> Steps[int]:
    """Wait while another installer works towards the baseline; returns the revision reached."""
    revision: int | None = None
    deadline = 0.0
    while True:
        revisions = yield migrations.read_revisions()
        latest: int = revisions.latest or 0
        if latest >= BASELINE_REVISION:
            return latest
        if latest != revision:
            revision, deadline = latest, time.monotonic() + _INSTALL_PATIENCE
        elif time.monotonic() > deadline:
            raise IncompatibleSchemaError(
                f"schema {schema!r} is at revision {revision}, from before Graphile Worker 0.16; "
                f"upgrade it with Node first: npx graphile-worker@0.18.0 --schema-only"
            )
        yield Pause(0.05)


def read_migration(revision: int) -> str:
    """Read the script that brings the schema to this revision."""
    name = f"{revision:06}.sql"
    package = Path(__file__).parent.parent
    # The wheel contains the files. In a checkout they are in the folder next to the package.
    for folder in (package / "migrations", package.parent / "sql"):
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8")
    raise MigrationError(f"migration {name} is missing: the installation is incomplete")


def _check_postgres(server_version: int) -> None:
    if server_version < OLDEST_POSTGRES:
        raise UnsupportedPostgresError(
            f"PostgreSQL {server_version // 10000} is too old: 12 or newer is needed"
        )


def check_supported(revisions: Revisions, schema: str) -> None:
    """Check that this release can work on a schema of these revisions.

    Raises:
        IncompatibleSchemaError: It can't.
    """
    breaking = revisions.latest_breaking
    if breaking is not None and breaking > LATEST_REVISION:
        raise IncompatibleSchemaError(
            f"schema {schema!r} is at revision {revisions.latest}, with a breaking change at "
            f"{breaking}; this release works up to {LATEST_REVISION}. Upgrade graphile-worker-py"
        )
    if revisions.latest is not None and revisions.latest > LATEST_REVISION:
        logger.warning(
            "Schema %r is at revision %s, newer than %s, but without a breaking change; continuing",
            schema,
            revisions.latest,
            LATEST_REVISION,
        )
