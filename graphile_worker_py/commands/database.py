"""The database of a command that works on a schema which is there."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors

from graphile_worker_py import config
from graphile_worker_py.db import SyncDatabase, opened_sync_pool
from graphile_worker_py.errors import MigrationError
from graphile_worker_py.migrate import check_supported
from graphile_worker_py.sql import migrations


@contextmanager
def opened_database(connection: str | None, schema: str | None) -> Iterator[SyncDatabase]:
    """Reach the database. Nothing is installed: a look at the wrong one must not leave tables.

    Raises:
        MigrationError: The schema is not there, or not one that this release works on.
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
        check_supported(revisions, name)
        yield database
