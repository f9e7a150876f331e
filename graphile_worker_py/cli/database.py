"""The database of a command that works on a schema which is there."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors

from graphile_worker_py import config
from graphile_worker_py.errors import MigrationError
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.connecting import opened_sync_pool
from graphile_worker_py.schema.migrate import check_supported
from graphile_worker_py.schema.rights import LOOKING, check_grants, check_rights
from graphile_worker_py.sql import migrations
from graphile_worker_py.sql.backlog import RegisteredPool, read_pools
from graphile_worker_py.sql.granted import read_rights


@contextmanager
def opened_database(connection: str | None, schema: str | None) -> Iterator[SyncDatabase]:
    """Reach the database. Nothing is installed: a look at the wrong one must not leave tables.

    Raises:
        MigrationError: The schema is not there, or not one that this release works on.
        MissingRightsError: The role may not look at it, or would see nothing.
        ConfigurationError: The connection string or the schema's name is not allowed.
        psycopg.Error: The database can't be reached.
    """
    with opened_sync_pool(config.conninfo(connection), max_size=1) as pool:
        name = config.schema_name(schema)
        database = SyncDatabase(pool, schema=name)
        try:
            revisions = database.run(migrations.read_revisions())
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
            raise MigrationError(
                f"schema {name!r} is not installed in this database; "
                f"`graphile-worker-py migrate` installs it"
            ) from error
        except errors.InsufficientPrivilege:
            check_grants(database.run(read_rights(name, LOOKING)), name)
            raise
        check_supported(revisions, name)
        check_rights(database.run(read_rights(name, LOOKING)), name)
        yield database


def registered_pools(database: SyncDatabase) -> list[RegisteredPool] | None:
    """The worker pools that have registered; None if they do not in this database."""
    try:
        return database.run(read_pools(database.statements.schema))
    except (errors.InvalidSchemaName, errors.UndefinedTable, errors.InsufficientPrivilege):
        return None
