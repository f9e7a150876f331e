"""A Python task, named after its file."""

from graphile_worker_py import JobContext


async def task(payload: dict[str, str], ctx: JobContext) -> None:
    """Say hello."""
    ctx.logger.info("Hello %s", payload["name"])
