"""Databases for tests: each test gets a copy of a template that has the schema."""

import asyncio
import hashlib
import hmac
import os
import secrets
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.runner import run_migrations

DSN_VARIABLE: Final = "GRAPHILE_WORKER_TEST_DSN"
"""Environment variable with the connection string of a server whose role may create databases."""
SETTINGS: Final = {
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "timezone": "UTC",
}
"""Settings of a server whose data need not survive a crash."""
MEMORY: Final = Path("/dev/shm")  # noqa: S108  # files there are made by `mkdtemp`
ENOUGH_MEMORY: Final = 2 * 2**30

_END_SESSIONS: Final = """
select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where datname = %s
"""
_STORE_VERIFIER: Final = "alter role postgres password {}"


def fast_directory() -> Path | None:
    """A directory in memory for the files of a server; None if there is none with enough room.

    A database has about a thousand files. On a disk it takes ten times as long to create one.
    """
    if not os.access(MEMORY, os.W_OK):
        return None
    place = os.statvfs(MEMORY)
    # The server's programs may have to be copied there, and be run.
    if place.f_flag & os.ST_NOEXEC or place.f_bavail * place.f_frsize < ENOUGH_MEMORY:
        return None
    return MEMORY


def hasten_logins(server: EmbeddedPostgres) -> None:
    """Let the clients of a running server hash its password once, not 4,096 times, to log in.

    That takes most of the time of a login, and tests log in often. The many rounds protect
    passwords that can be guessed; that of the server is 128 random bits.
    """
    password = sql.Literal(_hashed_once(server.password))
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL(_STORE_VERIFIER).format(password))


def _hashed_once(password: str) -> str:
    """The form in which servers store a password for SCRAM-SHA-256 (RFC 5803)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations=1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    proof = hmac.digest(salted, b"Server Key", "sha256")
    words = [b64encode(part).decode("ascii") for part in (salt, stored, proof)]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*words)


class TestDatabases:
    """Creates and drops the databases of one test run.

    Their names are random, so that several runs, and the workers of pytest-xdist, share a server.

    Args:
        dsn: Connection string of the server; its role must be allowed to create databases.
    """

    __test__ = False

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._template: str | None = None

    def create(self) -> str:
        """Create a database that has the schema; returns its connection string."""
        if self._template is None:
            template = self._create(None)
            # In a thread, because an event loop may run in this one.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, run_migrations(template, side_schema=True)).result()
            self._template = template
        return self._create(self._template)

    def drop(self, dsn: str) -> None:
        """Drop a database, and end the sessions in it."""
        name = _name_of(dsn)
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute(_END_SESSIONS, (name,))
            conn.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)))

    def close(self) -> None:
        """Drop the template."""
        if self._template is not None:
            self.drop(self._template)
            self._template = None

    def _create(self, template: str | None) -> str:
        name = f"gw_test_{secrets.token_hex(6)}"
        source = "template1" if template is None else _name_of(template)
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(source)
        )
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute(statement)
        return make_conninfo(self._dsn, dbname=name)


@contextmanager
def opened_databases(dsn: str | None) -> Iterator[TestDatabases]:
    """Databases on a given server, or on one that is started for the block.

    Args:
        dsn: The server, as for `TestDatabases`; None means an embedded one.

    Raises:
        ConfigurationError: None is given, and no embedded server is installed.
    """
    with _server(dsn) as dsn:
        databases = TestDatabases(dsn)
        try:
            yield databases
        finally:
            databases.close()


@contextmanager
def _server(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    server = EmbeddedPostgres(settings=SETTINGS, temp_dir=fast_directory())
    try:
        server.start()
    except ConfigurationError as error:
        raise ConfigurationError(
            f"tests need a PostgreSQL server: set {DSN_VARIABLE} to the connection string of a "
            f"role that may create databases, or use the embedded server. {error}"
        ) from error
    try:
        hasten_logins(server)
        yield server.dsn
    finally:
        server.stop()


def _name_of(dsn: str) -> str:
    name: Any = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    return str(name)
