"""Read what a statement has returned."""

from typing import TypeVar

from psycopg import Cursor
from psycopg.pq import ExecStatus

Row = TypeVar("Row")


def rows_of(cursor: Cursor[Row]) -> list[Row]:
    """The rows of the last statement; none if it is not of a kind that returns rows.

    One that selects no column is refused: it would look as if it had found nothing, always.
    """
    result = cursor.pgresult
    if result is None or result.status != ExecStatus.TUPLES_OK:
        return []
    assert result.nfields > 0, "select a column"
    return cursor.fetchall()
