"""Jobs are added in the transactions of SQLAlchemy's sessions and connections."""

from typing import Any, Final, NoReturn

import psycopg
import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, scoped_session

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres import given

_SYNC: Final = "a Session or Connection"
_ASYNC: Final = "an AsyncSession or AsyncConnection"


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
                _refuse(given_conn, expected=_ASYNC, sync=(Session, scoped_session, Connection))
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
        raise _wrong_driver(given_conn, conn.dialect, allowed="psycopg or asyncpg")

    def taken_blocking(self, conn: Any) -> "psycopg.Connection[Any]":
        """See `given.Adapter.taken_blocking`."""
        given_conn = conn
        try:
            if isinstance(conn, scoped_session):
                conn = conn()
            if isinstance(conn, Session):
                conn = conn.connection()
            if not isinstance(conn, Connection):
                _refuse(given_conn, expected=_SYNC)
            if not conn.in_transaction():
                conn.begin()
            driver = conn.connection.driver_connection
        except InvalidRequestError as error:
            raise _unusable(given_conn, error) from error
        if not isinstance(driver, psycopg.Connection):
            raise _wrong_driver(given_conn, conn.dialect, allowed="psycopg")
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


def _refuse(given_conn: Any, *, expected: str, sync: tuple[type, ...] = ()) -> NoReturn:
    if isinstance(given_conn, sync):
        raise ConfigurationError(
            f"WorkerUtils takes {expected}, not {_named(given_conn)}; SyncWorkerUtils takes {_SYNC}"
        )
    other = "; WorkerUtils takes " + _ASYNC if expected == _SYNC else ""
    raise ConfigurationError(f"conn must be {expected}, not {_named(given_conn)}{other}")


def _unusable(given_conn: Any, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{_named(given_conn)} can't be used: {error}. Pass one that is open; of a session with "
        f"several binds, pass the connection: session.connection(bind_arguments=...)"
    )


def _wrong_driver(
    given_conn: Any, dialect: sqlalchemy.Dialect, *, allowed: str
) -> ConfigurationError:
    kind = "async " if dialect.is_async else ""
    return ConfigurationError(
        f"{_named(given_conn)} uses {dialect.name} by the {kind}driver {dialect.driver}: to add "
        f"jobs here, it must use PostgreSQL by {allowed}, with a URL such as "
        f"postgresql+psycopg://host/database"
    )


def _named(given_conn: Any) -> str:
    """Its type; the representation of a connection might show its URL."""
    return f"this {type(given_conn).__name__}"
