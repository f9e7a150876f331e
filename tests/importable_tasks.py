"""A module of tasks, for tests that name it."""

from typing import Any

from graphile_worker_py import task


@task
def ping(payload: Any) -> None:
    """Do nothing."""
