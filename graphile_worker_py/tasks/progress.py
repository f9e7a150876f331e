"""What tasks report of their progress, and the checkpoints that they leave."""

from typing import TYPE_CHECKING, Any, Final

from psycopg import errors

from graphile_worker_py import json_codec
from graphile_worker_py.checks import check_progress
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
    return Progress(*check_progress(done, total, message))


def checkpoint_of(running: "RunningJob", cursor: Any) -> Query[set[int]]:
    """The statement that keeps a cursor.

    Raises:
        ConfigurationError: It can't be written as JSON.
    """
    try:
        text = json_codec.dumps_finite(cursor).decode()
    except ValueError as error:
        raise ConfigurationError(f"the cursor of a checkpoint is {error}") from error
    pool = running.pool
    return job_state.checkpoint(
        pool.database.schema, running.job.id, pool_id=pool.pool_id, cursor=text
    )
