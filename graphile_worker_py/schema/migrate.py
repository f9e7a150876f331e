"""Install and upgrade the schema, next to Node workers that may be doing the same."""

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
from graphile_worker_py.plugins import Hooks, SchemaStep
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.schema import rights
from graphile_worker_py.sql import migrations, notifications
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.sql.migrations import Revisions

logger = logging.getLogger(__name__)

LATEST_REVISION: Final = 20
BASELINE_REVISION: Final = 18
BREAKING_REVISIONS: Final = frozenset({1, 3, 11, 13, 14, 16, 19})
OLDEST_POSTGRES: Final = 120000

# What an installer meets when another one was a moment ahead of it.
_CLASHES: Final = (
    errors.UniqueViolation,
    errors.DuplicateSchema,
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.DuplicateColumn,
)
# What reading the revisions meets where nothing was installed, or only half.
_NOT_INSTALLED: Final = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)

_CLASH_PAUSE: Final = 0.4
_BOOTSTRAP_TRIES: Final = 10
# A Node worker installs revision after revision. One that is between 1 and 17 is either being
# installed right now, or old; what did not move for so many seconds is old.
_INSTALL_PATIENCE: Final = 3.0
# Another installer may rightly take hours. But nobody should have to guess what is waited for.
_TELL_AFTER: Final = 10.0


async def migrate(database: Database, hooks: Hooks | None = None) -> None:
    """Bring the schema to revision 20, or do nothing if it is there.

    Safe to run from many processes at once, Python and Node alike.

    Args:
        database: Where.
        hooks: Plugins that wrap the steps; None means none.

    Raises:
        UnsupportedPostgresError: The server is older than PostgreSQL 12.
        IncompatibleSchemaError: The schema is newer than this release can work on, or older than
            it can upgrade.
        MissingRightsError: The role may not even look at the schema.
        MigrationError: The role may not create the schema or its objects.
    """
    async with database.pool.connection() as conn:
        waiting = asyncio.get_running_loop().call_later(
            _TELL_AFTER,
            logger.warning,
            "Schema %r is still looked at, or changed; maybe somebody else has its tables locked",
            database.schema,
        )
        # Each revision is a transaction of its own, whatever the owner of the pool prefers.
        autocommit = conn.autocommit
        await conn.set_autocommit(True)
        try:
            await _Migrator(database, conn, hooks or Hooks()).run()
        except errors.InsufficientPrivilege as error:
            # What is up to date needs no rights but to look at it.
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
    """Check that the role may do what is needed, and sees what is there.

    Raises:
        MissingRightsError: It does not.
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
    """Check that this release can work on the schema as it is now.

    Raises:
        IncompatibleSchemaError: It can't.
    """
    check_supported(await database.run(migrations.read_revisions()), database.schema)


class _Migrator:
    """One run of the migrator on one connection."""

    def __init__(self, database: Database, conn: AsyncConnection[Any], hooks: Hooks) -> None:
        self._database = database
        self._conn = conn
        self._hooks = hooks

    async def run(self) -> None:
        revisions = await self._read_or_bootstrap()
        _check_postgres(revisions.server_version)
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
        """Read the revisions, with the table for them made where it is missing."""
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
            f"schema {self._database.schema!r} could not be prepared: others kept changing it"
        )

    def _step(self, server_version: int) -> SchemaStep:
        return SchemaStep(
            conn=self._conn, schema=self._database.schema, server_version=server_version
        )

    async def _bootstrap_within_hooks(self) -> None:
        query = migrations.read_server(self._database.schema)
        server_version, exists = await self._database.run(query, conn=self._conn)
        _check_postgres(server_version)
        await self._hooks.bootstrap(
            self._step(server_version), lambda _: self._bootstrap(schema_exists=exists)
        )

    async def _bootstrap(self, *, schema_exists: bool) -> None:
        async with self._conn.transaction():
            if not schema_exists:
                # Not "if not exists", which asks for a right even where there is nothing to do.
                await self._conn.execute(self._database.statements[migrations.CREATE_SCHEMA])
            await self._conn.execute(self._database.statements[migrations.BOOTSTRAP])

    async def _apply(self, revisions: Sequence[int], *, fresh: bool) -> bool:
        """Apply one file, which brings the schema to the last of these revisions.

        Returns:
            False if another installer was ahead.
        """
        recorded = {revision: revision in BREAKING_REVISIONS for revision in revisions}
        latest = max(revisions)
        breaking = recorded[latest]
        run = self._database.run
        try:
            async with self._conn.transaction():
                # The rows come first: whoever installs at the same time, in any language, waits
                # here on the primary key, and then clashes without having touched anything.
                await run(migrations.record_revisions(recorded), conn=self._conn)
                await self._conn.execute(self._database.statements[read_migration(latest)])
                # A fresh schema has no workers yet. The channel is shared by all schemas of the
                # database, so the word "breaking" would only stop the workers of the others.
                if not (fresh and breaking):
                    await run(
                        notifications.announce_migration(latest, breaking=breaking), conn=self._conn
                    )
        except errors.UniqueViolation as error:
            if error.diag.table_name != "migrations":
                raise
            logger.debug("Revision %s was recorded by another installer", latest)
            return False
        logger.info("Schema %r is at revision %s", self._database.schema, latest)
        return True

    async def _wait_for_baseline(self) -> int:
        """Wait while another installer is on its way to the baseline; the revision reached."""
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
    """The SQL that brings the schema to this revision."""
    name = f"{revision:06}.sql"
    package = Path(__file__).parent.parent
    # The wheel carries the files; in a checkout they stand beside the package.
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
            "Schema %r is at revision %s, newer than %s; no breaking change, going on",
            schema,
            revisions.latest,
            LATEST_REVISION,
        )
