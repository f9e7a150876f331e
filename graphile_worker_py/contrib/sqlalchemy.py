"""Jobs are added in the transactions of SQLAlchemy's sessions and connections."""

from typing import Any, Final, NoReturn

import psycopg
import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import InvalidRequestError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres import given

_SYNC: Final = "a Session or Connection"
_ASYNC: Final = "an AsyncSession or AsyncConnection"
_SYNC_DRIVERS: Final = "psycopg"
_ASYNC_DRIVERS: Final = "psycopg or asyncpg"


class Adapter(given.Adapter):
    """Finds the driver's connection in sessions and connections of SQLAlchemy.

    The session begins its transaction, if it has not yet, as it does for a statement.
    """

    async def taken(self, conn: Any) -> "psycopg.AsyncConnection[Any] | given.OtherConnection":
        """See `given.Adapter.taken`."""
        from sqlalchemy.ext import asyncio as alchemy  # noqa: PLC0415  # it needs greenlet

        given_conn = conn
        try:
            if isinstance(conn, alchemy.async_scoped_session):
                conn = conn()
            if isinstance(conn, alchemy.AsyncSession):
                conn = await conn.connection()
            if not isinstance(conn, alchemy.AsyncConnection):
                _refuse(given_conn, expected=_ASYNC, allowed=_ASYNC_DRIVERS)
            if not conn.in_transaction():
                await conn.begin()
            driver: Any = (await conn.get_raw_connection()).driver_connection
        except InvalidRequestError as error:
            raise _unusable(given_conn, error) from error
        if isinstance(driver, psycopg.AsyncConnection):
            _check_transactional(given_conn, begins=not driver.autocommit)
            return driver
        if conn.dialect.driver == "asyncpg":
            return await _over_asyncpg(given_conn, conn, driver)
        raise _wrong_driver(given_conn, conn.dialect, allowed=_ASYNC_DRIVERS)

    def taken_blocking(self, conn: Any) -> "psycopg.Connection[Any]":
        """See `given.Adapter.taken_blocking`."""
        given_conn = conn
        try:
            if isinstance(conn, scoped_session):
                conn = conn()
            if isinstance(conn, Session):
                conn = conn.connection()
            if not isinstance(conn, Connection):
                _refuse(given_conn, expected=_SYNC, allowed=_SYNC_DRIVERS)
            if not conn.in_transaction():
                conn.begin()
            driver = conn.connection.driver_connection
        except InvalidRequestError as error:
            raise _unusable(given_conn, error) from error
        if not isinstance(driver, psycopg.Connection):
            raise _wrong_driver(given_conn, conn.dialect, allowed=_SYNC_DRIVERS)
        _check_transactional(given_conn, begins=not driver.autocommit)
        return driver


async def _over_asyncpg(given_conn: Any, conn: Any, driver: Any) -> given.OtherConnection:
    from graphile_worker_py.contrib.asyncpg import AsyncpgConnection  # noqa: PLC0415  # optional

    if not driver.is_in_transaction():
        # SQLAlchemy sends BEGIN before the first statement that goes through itself.
        await conn.execute(sqlalchemy.text("select 1"))
        _check_transactional(given_conn, begins=driver.is_in_transaction())
    return AsyncpgConnection(driver)


def _check_transactional(given_conn: Any, *, begins: bool) -> None:
    if not begins:
        raise ConfigurationError(
            f"{_named(given_conn)} is in autocommit mode, so the job would be committed apart "
            f"from your data: use one without isolation_level='AUTOCOMMIT', or leave conn out"
        )


def _refuse(given_conn: Any, *, expected: str, allowed: str) -> NoReturn:
    """Refuse what the other utils take, or none. Another database is named before all else."""
    dialect = _dialect_of(given_conn)
    if dialect is not None and dialect.name != "postgresql":
        raise _wrong_driver(given_conn, dialect, allowed=allowed, kind=f"; it must be {expected}")
    if expected == _ASYNC:
        others = f"SyncWorkerUtils takes {_SYNC}"
    else:
        others = f"WorkerUtils takes {_ASYNC}"
    raise ConfigurationError(f"conn must be {expected}, not {_named(given_conn)}; {others}")


def _dialect_of(given_conn: Any) -> sqlalchemy.Dialect | None:
    """What a session or connection speaks; None if it has no bind, or several, or is neither."""
    bind = given_conn
    if hasattr(bind, "get_bind"):  # sessions, sync or async
        try:
            bind = bind.get_bind()
        except InvalidRequestError:
            return None
    found = getattr(bind, "dialect", None)
    return found if isinstance(found, sqlalchemy.Dialect) else None


def _unusable(given_conn: Any, error: Exception) -> ConfigurationError:
    if isinstance(error, UnboundExecutionError):
        hint = "Of a session with several binds, pass session.connection(bind_arguments=...)"
    else:
        hint = "Pass one that is open"
    return ConfigurationError(
        f"{_named(given_conn)} can't be used: {str(error).rstrip('.')}. {hint}"
    )


def _wrong_driver(
    given_conn: Any, dialect: sqlalchemy.Dialect, *, allowed: str, kind: str = ""
) -> ConfigurationError:
    by = "async driver" if dialect.is_async else "driver"
    return ConfigurationError(
        f"{_named(given_conn)} uses {dialect.name} by the {by} {dialect.driver}: to add "
        f"jobs here, it must use PostgreSQL by {allowed}, with a URL such as "
        f"postgresql+psycopg://host/database{kind}"
    )


def _named(given_conn: Any) -> str:
    """Its type; the representation of a connection might show its URL."""
    return f"this {type(given_conn).__name__}"
