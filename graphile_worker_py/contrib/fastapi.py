"""FastAPI: `lifespan`, a dependency for requests, and the progress of jobs. See `starlette`."""

from typing import Annotated, TypeAlias

from fastapi import Depends

from graphile_worker_py.contrib.starlette import JobStream, State, lifespan, utils
from graphile_worker_py.worker_utils import WorkerUtils

__all__ = ["JobStream", "State", "Utils", "lifespan", "utils"]

Utils: TypeAlias = Annotated[WorkerUtils, Depends(utils)]
"""For parameters of path operations: `async def order(jobs: Utils)`."""
