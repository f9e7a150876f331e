"""Give up on what the server does not answer in time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

STATEMENT_DEADLINE: Final = 60.0
"""Seconds after which an unanswered statement is given up."""
CANCEL_PATIENCE: Final = 2.0
"""Seconds that the server gets to cancel a statement, before the connection is cut."""


def hang_up(conn: AsyncConnection[Any]) -> None:
    """Cut a connection at once: a statement that waits for its answer raises OperationalError.

    Cancelling would not do: psycopg then asks the server to cancel the statement, which takes
    seconds where the server can't be reached.
    """
    with suppress(OSError, psycopg.Error):  # already lost
        # Shut down, not closed: the descriptor must stay taken while psycopg still polls it.
        way = socket.socket(fileno=conn.pgconn.socket)
        try:
            way.shutdown(socket.SHUT_RDWR)
        finally:
            way.detach()


@contextmanager
def hung_up_after(seconds: float, conn: AsyncConnection[Any]) -> Iterator[None]:
    """Cut a connection if the block lasts longer.

    Raises:
        psycopg.OperationalError: It lasted longer.
    """
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        hang_up(conn)

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except psycopg.Error as error:
        if is_late:
            raise _no_answer(seconds) from error
        raise
    finally:
        timer.cancel()


@asynccontextmanager
async def ended_after(seconds: float, conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Cancel the block's statement if it lasts longer, and cut the connection if that fails.

    Raises:
        psycopg.OperationalError: It lasted longer.
    """
    limit = asyncio.timeout(seconds)
    try:
        with hung_up_after(seconds + CANCEL_PATIENCE, conn):
            async with limit:
                yield
    except (TimeoutError, psycopg.OperationalError) as error:
        if limit.expired():
            raise _no_answer(seconds) from error
        raise


def _no_answer(seconds: float) -> psycopg.OperationalError:
    return psycopg.OperationalError(f"the database did not answer within {seconds:g} s")
