"""Every option once: its name, type, default, unit and check."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError

ForbiddenFlags = (
    Sequence[str]
    | Callable[[], Sequence[str] | None]
    | Callable[[], Awaitable[Sequence[str] | None]]
)
"""Flags whose jobs are left for others: fixed, or asked for before each fetch."""

DEFAULT_SCHEMA: Final = "graphile_worker"
MAX_SCHEMA_BYTES: Final = 63


def check_schema(value: object) -> str:
    """Check the name of a schema: any name that PostgreSQL can hold."""
    if not isinstance(value, str):
        raise ConfigurationError(f"schema must be a string, not {value!r}")
    if not value or "\0" in value or len(value.encode()) > MAX_SCHEMA_BYTES:
        raise ConfigurationError(
            f"schema {value!r} is not a name that PostgreSQL can hold: 1 to "
            f"{MAX_SCHEMA_BYTES} bytes, no U+0000"
        )
    return value


def check_whole(name: str, value: object, *, smallest: int, or_else: str = "") -> int:
    """Check a whole number with a lower bound."""
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        allowed = f"a whole number of at least {smallest} {or_else}".rstrip()
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    return value


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> float:
    """Check a duration in seconds: finite, not negative."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
        or (above_zero and value == 0)
    ):
        allowed = "above 0" if above_zero else "0 or above"
        raise ConfigurationError(f"{name} must be seconds, {allowed}, not {value!r}")
    return float(value)


def check_delay(name: str, value: object) -> None:
    """Check a batch delay: seconds, or -1 for none."""
    if value != -1:
        check_seconds(f"{name} (-1 for none)", value)


def check_flag(name: str, value: object) -> None:
    """Check a yes or no."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")


def check_texts(name: str, value: object) -> list[str]:
    """Check a list of strings; a lone string would be taken letter by letter."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name} must be a list of strings, not {value!r}")
    for item in value:
        if not isinstance(item, str):
            raise ConfigurationError(f"{name} must hold strings only, not {item!r}")
    return list(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefetchDelay:
    """How long a local queue rests after a fetch that brought few jobs.

    Args:
        duration: Seconds, scattered by 0.5 to 1.5; at most the poll interval.
        threshold: A fetch that brings more jobs than this is not followed by a rest.
        max_abort_threshold: A random share of this many announced jobs ends the rest early;
            None means five times the size of the local queue.
    """

    duration: float
    threshold: int = 0
    max_abort_threshold: int | None = None

    def __post_init__(self) -> None:
        check_seconds("local_queue.refetch_delay.duration", self.duration)
        check_whole("local_queue.refetch_delay.threshold", self.threshold, smallest=0)
        if self.max_abort_threshold is not None:
            check_whole(
                "local_queue.refetch_delay.max_abort_threshold",
                self.max_abort_threshold,
                smallest=0,
            )


@dataclass(frozen=True, slots=True)
class LocalQueueOptions:
    """Prefetching: jobs are fetched in batches ahead of the workers.

    Args:
        size: Most jobs to hold; -1 turns prefetching off, so that no job is locked before a
            worker is there to run it.
        ttl: Seconds after which jobs that nobody took are returned to the database.
        refetch_delay: Rest after a fetch that brought few jobs; None means none.
    """

    size: int = -1
    ttl: float = 300.0
    refetch_delay: RefetchDelay | None = None

    def __post_init__(self) -> None:
        if self.size != -1:
            check_whole("local_queue.size", self.size, smallest=1, or_else="or -1 for none")
        check_seconds("local_queue.ttl", self.ttl)


def _option(doc: str, *, default: Any) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options of a worker pool, checked. Names are Graphile Worker's, durations seconds.

    Raises:
        ConfigurationError: A value is not allowed; the message names option, value and range.
    """

    schema: str = _option("PostgreSQL schema of the job tables", default=DEFAULT_SCHEMA)
    concurrent_jobs: int = _option("jobs that this process runs at the same time", default=1)
    poll_interval: float = _option(
        "seconds between looks for jobs that nobody announced (retries, future jobs)", default=2.0
    )
    max_pool_size: int = _option(
        "most database connections, the listening one not counted", default=10
    )
    prepared_statements: bool = _option(
        "whether statements are prepared on the server; off behind some poolers", default=True
    )
    forbidden_flags: ForbiddenFlags | None = _option(
        "jobs with one of these flags are left for others", default=None
    )
    local_queue: LocalQueueOptions = _option("prefetching of jobs", default=LocalQueueOptions())
    complete_job_batch_delay: float = _option(
        "seconds to gather completed jobs for one write; -1 writes at once", default=-1.0
    )
    fail_job_batch_delay: float = _option(
        "seconds to gather failed jobs for one write; -1 writes at once", default=-1.0
    )
    min_reset_locked_interval: float = _option(
        "least seconds between two sweeps for locks older than four hours", default=480.0
    )
    max_reset_locked_interval: float = _option(
        "most seconds between two sweeps for locks older than four hours", default=600.0
    )
    graceful_shutdown_abort_timeout: float = _option(
        "seconds of a graceful stop after which running jobs see their abort event", default=5.0
    )

    def __post_init__(self) -> None:
        check_schema(self.schema)
        check_whole("concurrent_jobs", self.concurrent_jobs, smallest=1)
        check_seconds("poll_interval", self.poll_interval, above_zero=True)
        check_whole("max_pool_size", self.max_pool_size, smallest=2)
        check_flag("prepared_statements", self.prepared_statements)
        if self.forbidden_flags is not None and not callable(self.forbidden_flags):
            check_texts("forbidden_flags", self.forbidden_flags)
        if not isinstance(self.local_queue, LocalQueueOptions):
            raise ConfigurationError(
                f"local_queue must be LocalQueueOptions(...), not {self.local_queue!r}"
            )
        check_delay("complete_job_batch_delay", self.complete_job_batch_delay)
        check_delay("fail_job_batch_delay", self.fail_job_batch_delay)
        check_seconds("min_reset_locked_interval", self.min_reset_locked_interval, above_zero=True)
        check_seconds("max_reset_locked_interval", self.max_reset_locked_interval, above_zero=True)
        if self.max_reset_locked_interval < self.min_reset_locked_interval:
            raise ConfigurationError(
                f"max_reset_locked_interval {self.max_reset_locked_interval} is below "
                f"min_reset_locked_interval {self.min_reset_locked_interval}"
            )
        check_seconds("graceful_shutdown_abort_timeout", self.graceful_shutdown_abort_timeout)
        delay = self.local_queue.refetch_delay
        if delay is not None and delay.duration > self.poll_interval:
            raise ConfigurationError(
                f"local_queue.refetch_delay.duration {delay.duration} is above "
                f"poll_interval {self.poll_interval}"
            )


WORKER_OPTION_NAMES: Final = frozenset(f.name for f in fields(WorkerOptions))
