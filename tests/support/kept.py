"""Connections of the tests' helpers, kept until the test ends: a login costs more than a query."""

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

_KEPT: Final[dict[tuple[str, int], Connection[DictRow]]] = {}
_IN_USE: Final[set[tuple[str, int]]] = set()


@contextmanager
def kept_connection(dsn: str) -> Iterator[Connection[DictRow]]:
    """The connection of this thread to a database, in autocommit mode; made when first asked for.

    One that the server has ended, or that was left in a transaction, is replaced.
    """
    place = (dsn, threading.get_ident())
    if place in _IN_USE:
        with _connect(dsn) as conn:
            yield conn
        return
    conn = _KEPT[place] = _usable(_KEPT.get(place), dsn)
    _IN_USE.add(place)
    try:
        yield conn
    finally:
        _IN_USE.discard(place)


def close_kept(dsn: str) -> None:
    """Close the connections of all threads and roles to a database."""
    name = conninfo_to_dict(dsn)["dbname"]
    for place in [place for place in _KEPT if conninfo_to_dict(place[0]).get("dbname") == name]:
        _KEPT.pop(place).close()


def _usable(conn: Connection[DictRow] | None, dsn: str) -> Connection[DictRow]:
    if conn is not None and not conn.closed:
        if conn.pgconn.transaction_status == TransactionStatus.IDLE and _is_quiet(conn):
            return conn
        conn.close()
    return _connect(dsn)


def _is_quiet(conn: Connection[Any]) -> bool:
    """Whether the server has sent nothing that was not asked for, such as its good-bye."""
    sent = select.poll()
    sent.register(conn.fileno(), select.POLLIN)
    return not sent.poll(0)


def _connect(dsn: str) -> Connection[DictRow]:
    return psycopg.connect(dsn, autocommit=True, row_factory=dict_row, prepare_threshold=None)
