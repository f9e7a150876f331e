"""Install and upgrade the schema, also while Node workers do the same."""

import asyncio
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from psycopg import AsyncConnection, errors

from graphile_worker_py import aio
from graphile_worker_py.errors import (
    IncompatibleSchemaError,
    MigrationError,
    UnsupportedPostgresError,
)
from graphile_worker_py.plugins import SchemaStep
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import STATEMENT_DEADLINE, ended_after
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.schema import rights, trust
from graphile_worker_py.sql import migrations, notifications
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.sql.migrations import (
    BASELINE_REVISION,
    BREAKING_REVISIONS,
    LATEST_REVISION,
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
_WARN_AFTER: Final = 10.0


async def migrate(database: Database, hooks: Hooks | None = None) -> None:
    """Bring the schema to the revision of this release, or do nothing if it is up to date.

    Safe to run from many processes at once, Python and Node alike.

    Args:
        database: The database, and the schema's name in it.
        hooks: Plugins that wrap the steps; None means none.

    Raises:
        UnsupportedPostgresError: The server is older than PostgreSQL 12.
        IncompatibleSchemaError: The schema is newer than this release can work on, or older than
            it can upgrade.
        MissingRightsError: The role may not read the schema.
        MigrationError: The role may not create the schema or its objects.
    """
    async with database.pool.connection() as conn:
        waiting = asyncio.get_running_loop().call_later(
            _WARN_AFTER,
            logger.warning,
            "Still installing or checking schema %r; another session may have its tables locked",
            database.schema,
        )
        # Each revision needs a separate transaction, whatever the caller's pool is set to.
        autocommit = conn.autocommit
        await conn.set_autocommit(True)
        try:
            await _Migrator(database, conn, hooks or Hooks()).run()
        except errors.InsufficientPrivilege as error:
            # If the schema is up to date, the role only needs the right to read it.
            query = read_rights(database.schema, rights.LOOKING)
            rights.check_grants(await database.run(query, conn=conn), database.schema)
            raise MigrationError(
                f"role {conn.info.user!r} may not install or upgrade schema "
                f"{database.schema!r} in database {conn.info.dbname!r} "
                f"({error.diag.message_primary}). Let a role that owns the schema, or that has "
                f"CREATE on the database, run `graphile-worker-py migrate`"
            ) from error
        finally:
            waiting.cancel()
            if not conn.closed:
                await aio.finish(conn.set_autocommit(autocommit))


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


class _Migrator:
    """One run of the migrator on one connection."""

    def __init__(self, database: Database, conn: AsyncConnection[Any], hooks: Hooks) -> None:
        self._database = database
        self._conn = conn
        self._hooks = hooks

    async def run(self) -> None:
        schema, conn = self._database.schema, self._conn
        found = await self._database.run(migrations.find(schema), conn=conn)
        _check_postgres(found.server_version)
        if found.exists and not found.has_jobs:
            # Before anything in it is read: even that might run code of another role.
            await self._database.drive(trust.check_trust(schema), conn=conn)
        revisions = await self._read_or_bootstrap()
        await self._hooks.migrate(
            self._step(revisions.server_version), lambda _: self._migrate(revisions)
        )

    async def _migrate(self, revisions: Revisions) -> None:
        if revisions.latest is None or revisions.latest < LATEST_REVISION:
            revisions = await self._upgrade(revisions)
        check_supported(revisions, self._database.schema)

    async def _upgrade(self, revisions: Revisions) -> Revisions:
        fresh = False
        if revisions.latest is None:
            fresh = await self._apply(range(1, BASELINE_REVISION + 1), fresh=True)
        latest = await self._wait_for_baseline()
        for revision in range(latest + 1, LATEST_REVISION + 1):
            await self._apply([revision], fresh=fresh)
        return await self._read()

    async def _read(self) -> Revisions:
        return await self._database.run(migrations.read_revisions(), conn=self._conn)

    async def _read_or_bootstrap(self) -> Revisions:
        """Read the revisions; create their table first where it is missing."""
        for _ in range(_BOOTSTRAP_TRIES):
            try:
                return await self._read()
            except _NOT_INSTALLED:
                pass
            try:
                await self._bootstrap_within_hooks()
            except _CLASHES:
                await asyncio.sleep(_CLASH_PAUSE + random.uniform(0, 0.2))  # noqa: S311
        raise MigrationError(
            f"schema {self._database.schema!r} could not be prepared: other sessions kept "
            f"changing it"
        )

    def _step(self, server_version: int) -> SchemaStep:
        return SchemaStep(
            conn=self._conn, schema=self._database.schema, server_version=server_version
        )

    async def _bootstrap_within_hooks(self) -> None:
        query = migrations.find(self._database.schema)
        found = await self._database.run(query, conn=self._conn)
        await self._hooks.bootstrap(
            self._step(found.server_version), lambda _: self._bootstrap(schema_exists=found.exists)
        )

    async def _bootstrap(self, *, schema_exists: bool) -> None:
        async with self._conn.transaction():
            if schema_exists:
                # It may have been created a moment ago.
                steps = trust.check_trust(self._database.schema)
                await self._database.drive(steps, conn=self._conn)
            else:
                await self._database.run(migrations.create_schema(), conn=self._conn)
            await self._database.run_script(migrations.BOOTSTRAP, conn=self._conn)
            await self._database.run(migrations.mark_breaking(), conn=self._conn)

    async def _apply(self, revisions: Sequence[int], *, fresh: bool) -> bool:
        """Apply one file, which brings the schema to the last of these revisions.

        Returns:
            False if another installer was ahead.
        """
        latest = max(revisions)
        breaking = latest in BREAKING_REVISIONS
        run = self._database.run
        try:
            async with self._conn.transaction():
                # The rows come first: another installer, in any language, waits here on the
                # primary key, and then clashes before it has changed anything.
                await run(migrations.record_revisions(revisions), conn=self._conn)
                script = read_migration(latest)  # a file of this package
                await self._database.run_script(
                    script,  # pyright: ignore[reportArgumentType]
                    conn=self._conn,
                )
                # A fresh schema has no workers yet. The channel is shared by all schemas of the
                # database, so the word "breaking" would only stop the workers of the others.
                if not (fresh and breaking):
                    announcement = notifications.announce_migration(latest, breaking=breaking)
                    await run(announcement, conn=self._conn)
        except errors.UniqueViolation as error:
            if error.diag.table_name != "migrations":
                raise
            logger.debug("Revision %s was recorded by another installer", latest)
            return False
        logger.info("Schema %r is at revision %s", self._database.schema, latest)
        return True

    async def _wait_for_baseline(self) -> int:
        """Wait while another installer works towards the baseline; returns the revision reached."""
        loop = asyncio.get_running_loop()
        revision: int | None = None
        deadline = 0.0
        while True:
            revisions = await self._read()
            latest = revisions.latest or 0
            if latest >= BASELINE_REVISION:
                return latest
            if latest != revision:
                revision, deadline = latest, loop.time() + _INSTALL_PATIENCE
            elif loop.time() > deadline:
                raise IncompatibleSchemaError(
                    f"schema {self._database.schema!r} is at revision {revision}, from before "
                    f"Graphile Worker 0.16; upgrade it with Node first: "
                    f"npx graphile-worker@0.18.0 --schema-only"
                )
            await asyncio.sleep(0.05)


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
