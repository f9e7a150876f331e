"""A module with one task, for measuring the command line."""

from graphile_worker_py import task


@task
async def noop(payload: object) -> None:
    """Do nothing."""
