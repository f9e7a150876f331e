"""What tasks report of their progress, and the checkpoints that they leave."""

import math
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from graphile_worker_py import json_codec
from graphile_worker_py.checks import check_text
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import job_state
from graphile_worker_py.sql.job_state import Progress

if TYPE_CHECKING:
    from graphile_worker_py.tasks.context import RunningJob

MISSING: Final = (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege)
"""Raised where the tables of history can't be used."""
NO_CHECKPOINTS: Final = (
    "checkpoints need the tables of history in the schema graphile_worker_py: run "
    "`graphile-worker-py migrate --side-schema`"
)


def checked_progress(done: object, total: object, message: object) -> Progress:
    """Check what a task reports.

    Raises:
        ConfigurationError: A value is not allowed.
    """
    if message is not None:
        message = check_text("message", message)
    if total is None:
        if not isinstance(done, float) or not 0 <= done <= 1:
            raise ConfigurationError(
                f"progress must be a share, a float from 0 to 1, or be given with its total: "
                f"progress(40, total=100), not {done!r}"
            )
        return Progress(done, None, message)
    for name, value in (("progress", done), ("total", total)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_amount(value):
            raise ConfigurationError(f"{name} must be a number of at least 0, not {value!r}")
    assert isinstance(done, int | float)  # noqa: S101  # checked above
    assert isinstance(total, int | float)  # noqa: S101
    if done > total:
        raise ConfigurationError(f"progress {done} is above its total {total}")
    return Progress(done, float(total), message)


def _is_amount(value: float) -> bool:
    return 0 <= value < math.inf


def checkpoint_of(running: "RunningJob", cursor: Any) -> Query[set[int]]:
    """The statement that keeps a cursor.

    Raises:
        ConfigurationError: It can't be written as JSON.
    """
    try:
        text = json_codec.dumps(cursor).decode()
    except ValueError as error:
        raise ConfigurationError(f"the cursor of a checkpoint is {error}") from error
    pool = running.pool
    return job_state.checkpoint(
        pool.database.schema, running.job.id, pool_id=pool.pool_id, cursor=text
    )
