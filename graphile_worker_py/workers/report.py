"""What a worker pool reports about itself with each heartbeat."""

import importlib.metadata
import importlib.util
import os
import sys
from functools import cache
from typing import Final

from graphile_worker_py.executors.memory import resident
from graphile_worker_py.sql.pools import PoolReport
from graphile_worker_py.workers.pool import WorkerPool

_CAN_MEASURE: Final = sys.platform == "linux" or importlib.util.find_spec("psutil") is not None


def report_of(pool: WorkerPool, loop_lag: float) -> PoolReport:
    """Make the report of a pool whose event loop was `loop_lag` seconds late."""
    flags = pool.options.forbidden_flags
    return PoolReport(
        version=_version(),
        tasks=sorted(pool.tasks),
        forbidden_flags=None if callable(flags) else list(flags or ()),
        concurrency=pool.options.concurrent_jobs,
        prefetches=pool.prefetches,
        running=len(pool.parts.team.running),
        memory=resident(os.getpid()) if _CAN_MEASURE else None,
        loop_lag=loop_lag,
        name=pool.name,
        connections=pool.connections,
    )


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("graphile-worker-py")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
