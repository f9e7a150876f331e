"""Django's connections: jobs are added on them, and a worker gets its own to the same database."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import psycopg
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from graphile_worker_py.contrib.django.project import NAME, read_project
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres import given
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.given import SyncGiven
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils

T = TypeVar("T")


class Adapter(given.Adapter):
    """Finds psycopg's connection in those of `django.db`."""

    async def taken(self, conn: Any) -> "psycopg.AsyncConnection[Any] | given.OtherConnection":
        """See `given.Adapter.taken`."""
        _check_vendor(conn)
        raise ConfigurationError(
            f"conn is Django's connection to the database {conn.alias!r}, which works without an "
            f"event loop: within sync_to_async, use graphile_worker_py.contrib.django.utils() or "
            f"SyncWorkerUtils, not WorkerUtils"
        )

    def taken_blocking(self, conn: Any) -> "psycopg.Connection[Any]":
        """See `given.Adapter.taken_blocking`."""
        wrapper = connections[conn.alias]
        _check_vendor(wrapper)
        return driver_connection(wrapper)


def _check_vendor(wrapper: Any) -> None:
    if wrapper.vendor != "postgresql":
        raise ConfigurationError(
            f"conn is Django's connection to the database {wrapper.alias!r}, which is "
            f"{wrapper.vendor}, but jobs need PostgreSQL"
        )


def database_wrapper(alias: str) -> Any:
    """Django's connection of this thread to a database that can have jobs.

    Raises:
        ConfigurationError: There is no such alias, or it is not PostgreSQL by psycopg 3.
    """
    try:
        wrapper = connections[alias]
    except ConnectionDoesNotExist as error:
        raise ConfigurationError(
            f"{NAME}['DATABASE'] is {alias!r}, which DATABASES does not have; it has "
            f"{', '.join(connections)}"
        ) from error
    if wrapper.vendor != "postgresql":
        raise ConfigurationError(
            f"the database {alias!r} is {wrapper.vendor}, but jobs need PostgreSQL: set "
            f"{NAME} = {{'DATABASE': alias}} to one with the engine django.db.backends.postgresql"
        )
    if wrapper.Database is not psycopg:
        raise ConfigurationError(
            f"Django uses {wrapper.Database.__name__} for the database {alias!r}; it uses "
            f"psycopg 3, which jobs need, as soon as that is installed: pip install psycopg"
        )
    return wrapper


def driver_connection(wrapper: Any) -> psycopg.Connection[Any]:
    """The connection of psycopg beneath Django's, ready for a statement in its transaction.

    Raises:
        django.db.Error: It can't connect, or the transaction is broken.
        ConfigurationError: It is not a connection of psycopg 3.
    """
    wrapper.validate_thread_sharing()
    wrapper.validate_no_broken_transaction()
    wrapper.ensure_connection()
    driver = wrapper.connection
    if not isinstance(driver, psycopg.Connection):
        raise ConfigurationError(
            f"the database {wrapper.alias!r} is not connected by psycopg 3, but by {driver!r}"
        )
    return driver


def connection_string(alias: str) -> str:
    """A connection string for what connects by itself, such as a worker."""
    wrapper = database_wrapper(alias)
    words = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    parameters = wrapper.get_connection_params()
    return make_conninfo(
        **{name: value for name, value in parameters.items() if name in words and value is not None}
    )


class _DjangoDatabase(SyncDatabase):
    """The job tables, on Django's connection of the current thread."""

    def __init__(self, alias: str, *, schema: str) -> None:
        # Django's connections may lead through a pooler, so nothing is prepared. The pool is never
        # opened: it is there because the base class has one.
        super().__init__(
            ConnectionPool("", open=False, min_size=0, max_size=1),
            schema=schema,
            prepared_statements=False,
        )
        self.alias = alias

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Django's connection, for the block."""
        yield driver_connection(database_wrapper(self.alias))

    @contextmanager
    def transaction(
        self, conn: psycopg.Connection[Any] | None = None
    ) -> Iterator[psycopg.Connection[Any]]:
        """A transaction for the block, or a savepoint within the caller's."""
        own = driver_connection(database_wrapper(self.alias)) if conn is None else conn
        with super().transaction(own) as conn:
            yield conn

    def until_won(self, attempt: Any) -> Any:
        """Do it once: the transaction may be the caller's."""
        return attempt()


class DjangoUtils(SyncWorkerUtils):
    """`SyncWorkerUtils` on Django's connections; made by `utils`."""

    def __init__(self) -> None:
        project = read_project()
        database_wrapper(project.database)
        super().__init__(None, schema=project.schema, migrate=False, hooks=project.hooks)
        self._on_django = _DjangoDatabase(project.database, schema=project.schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the connection is Django's."""

    @property
    def _database(self) -> SyncDatabase:
        return self._on_django

    @property
    def pool(self) -> Any:
        """Not available: there is one connection, Django's."""
        raise ConfigurationError("utils on Django's connection have no pool: use django.db")

    def cancel_jobs(
        self,
        job_ids: Iterable[int | str],
        *,
        reason: str | None = None,
        grace: float = 30.0,
        conn: SyncGiven | None = None,
    ) -> list[Cancellation]:
        """Cancel jobs. See `WorkerUtils.cancel_jobs`."""
        with self._djangos_errors():
            return super().cancel_jobs(job_ids, reason=reason, grace=grace, conn=conn)

    def retry_jobs(self, job_ids: Iterable[int | str] | None = None, **options: Any) -> list[Job]:
        """Try failed jobs again. See `WorkerUtils.retry_jobs`."""
        with self._djangos_errors():
            return super().retry_jobs(job_ids, **options)

    def _run(self, query: Query[T], conn: SyncGiven | None) -> T:
        with self._djangos_errors():
            return super()._run(query, conn)

    def _run_steps(self, steps: Steps[T], conn: SyncGiven | None) -> T:
        with self._djangos_errors():
            return super()._run_steps(steps, conn)

    def _add(
        self, specs: Sequence[JobSpec], conn: SyncGiven | None, *, first: int | None = None
    ) -> list[Job]:
        with self._djangos_errors() as wrapper:
            own = driver_connection(wrapper) if conn is None else conn
            return super()._add(specs, own, first=first)

    @contextmanager
    def _djangos_errors(self) -> Iterator[Any]:
        """Raise errors as Django's, and let it know that its connection may be broken."""
        wrapper = database_wrapper(self._on_django.alias)
        with wrapper.wrap_database_errors:
            yield wrapper
