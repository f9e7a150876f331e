"""Every option once: files, variables, flags, checks and documentation are made from its entry."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import field, fields
from enum import StrEnum
from functools import partial
from typing import Final

from graphile_worker_py.checks import (
    check_delay,
    check_filled,
    check_flag,
    check_forbidden_flags,
    check_max_crashes,
    check_one_of,
    check_queue_size,
    check_schema,
    check_seconds,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options.declaring import (
    Kind,
    about,
    check_fields,
    group,
    made,
    option,
    options_of,
    or_none,
)
from graphile_worker_py.options.history import HistoryOptions
from graphile_worker_py.options.process import PROCESS_OPTIONS
from graphile_worker_py.records import Record

ForbiddenFlags = (
    Sequence[str]
    | Callable[[], Sequence[str] | None]
    | Callable[[], Awaitable[Sequence[str] | None]]
)
"""Flags whose jobs are left to other workers: a list, or a function called before each fetch."""

DEFAULT_SCHEMA: Final = "graphile_worker"
MOST_CONCURRENT_JOBS: Final = 100_000
"""Each takes some kilobytes, also while there are no jobs."""


_at_least_0: Final = partial(check_whole, smallest=0)
_at_least_1: Final = partial(check_whole, smallest=1)
_pool_size: Final = partial(
    check_whole,
    smallest=2,
    or_else="(one fetches and records, the others are for jobs)",
)
_above_zero: Final = partial(check_seconds, above_zero=True)


class RecordingDurability(StrEnum):
    """Whether the worker waits until outcomes are on disk."""

    DURABLE = "durable"
    RELAXED = "relaxed"


class RefetchDelay(Record):
    """How long a local queue waits after a fetch that returned few jobs."""

    # By `field` itself, so that type checkers see that there is no default.
    duration: float = field(
        metadata=about(
            Kind.SECONDS,
            check_seconds,
            "Pause after a fetch that returned few jobs, multiplied by a random factor from 0.5 to "
            "1.5. At most `poll_interval`.",
        )
    )
    threshold: int = option(
        0,
        Kind.WHOLE,
        _at_least_0,
        "A fetch that returns more jobs than this is not followed by a pause.",
    )
    max_abort_threshold: int | None = option(
        None,
        Kind.WHOLE,
        or_none(_at_least_0),
        "A random share of this number of announced jobs ends the pause early. Default: five times "
        "`local_queue.size`.",
    )

    def __post_init__(self) -> None:
        check_fields(self, "local_queue.refetch_delay.")


class LocalQueueOptions(Record, kw_only=False):
    """Prefetching: jobs are fetched in batches before a worker is free to run them."""

    size: int = option(
        -1,
        Kind.WHOLE,
        check_queue_size,
        "Number of jobs to fetch at a time, before workers ask for them. -1 fetches a job only "
        "when a worker is free to run it.",
        flags=("--local-queue-size",),
    )
    ttl: float = option(
        300.0,
        Kind.SECONDS,
        check_seconds,
        "Time after which prefetched jobs that did not start are returned to the database.",
    )
    refetch_delay: RefetchDelay | None = group(None, RefetchDelay, or_none(made(RefetchDelay)))

    def __post_init__(self) -> None:
        check_fields(self, "local_queue.")


class WorkerOptions(HistoryOptions):
    """The checked options of a worker pool. Names are Graphile Worker's, durations are seconds.

    Raises:
        ConfigurationError: A value is not allowed; the message names option, value and range.
    """

    schema: str = option(
        DEFAULT_SCHEMA,
        Kind.TEXT,
        lambda _, value: check_schema(value),
        "PostgreSQL schema of the job tables.",
        flags=("-s", "--schema"),
        metavar="NAME",
    )
    concurrent_jobs: int = option(
        1,
        Kind.WHOLE,
        partial(check_whole, smallest=1, largest=MOST_CONCURRENT_JOBS),
        "Number of jobs that each process runs at the same time, at most 100,000.",
        flags=("-j", "--jobs"),
    )
    poll_interval: float = option(
        2.0,
        Kind.SECONDS,
        _above_zero,
        "Time between looks for jobs that become due without an announcement: retries and "
        "scheduled jobs.",
        flags=("--poll-interval",),
    )
    max_pool_size: int = option(
        10,
        Kind.WHOLE,
        _pool_size,
        "Maximum number of database connections, in addition to the one that listens; at least 2. "
        "Up to three of them, and never the last one, fetch jobs, record outcomes and send "
        "heartbeats. The others are for tasks.",
        flags=("-m", "--max-pool-size"),
    )
    prepared_statements: bool | None = option(
        None,
        Kind.YES_NO,
        or_none(check_flag),
        "Prepare statements on the server. Default: yes, unless connections go through a pooler.",
        flags=("--prepared-statements/--no-prepared-statements",),
    )
    forbidden_flags: ForbiddenFlags | None = option(
        None,
        Kind.TEXTS,
        check_forbidden_flags,
        "Leave jobs that have one of these flags to other workers.",
        flags=("--forbidden-flag",),
        metavar="FLAG",
    )
    local_queue: LocalQueueOptions = group(
        LocalQueueOptions(), LocalQueueOptions, made(LocalQueueOptions)
    )
    complete_job_batch_delay: float = option(
        -1.0,
        Kind.SECONDS,
        check_delay,
        "Time to collect completed jobs to record them together; -1 records them at once.",
    )
    fail_job_batch_delay: float = option(
        -1.0,
        Kind.SECONDS,
        check_delay,
        "Time to collect failed jobs to record them together; -1 records them at once.",
    )
    recording_durability: str = option(
        str(RecordingDurability.DURABLE),
        Kind.TEXT,
        partial(check_one_of, allowed=RecordingDurability),
        "Whether recording an outcome waits until it is on disk: `durable` does. `relaxed` does "
        "not; after a crash of the server, jobs that ended in the last moments may run again.",
        flags=("--recording-durability",),
        choices=tuple(map(str, RecordingDurability)),
    )
    min_reset_locked_interval: float = option(
        480.0,
        Kind.SECONDS,
        _above_zero,
        "Minimum time between two sweeps for locks that are older than four hours.",
    )
    max_reset_locked_interval: float = option(
        600.0,
        Kind.SECONDS,
        _above_zero,
        "Maximum time between two sweeps for locks that are older than four hours.",
    )
    graceful_shutdown_abort_timeout: float = option(
        5.0,
        Kind.SECONDS,
        check_seconds,
        "Time after the start of a graceful shutdown until the abort event of running jobs is set.",
    )
    listen_connection_string: str | None = option(
        None,
        Kind.TEXT,
        or_none(check_filled),
        "Connection string of a direct connection on which to listen for new jobs. Needed where "
        "`connection` goes through a pooler.",
        flags=("--listen-connection-string",),
        metavar="DSN",
        secret=True,
    )
    listen_echo_interval: float = option(
        30.0,
        Kind.SECONDS,
        check_seconds,
        "Time without notifications after which the listening connection is tested; 0 never tests "
        "it.",
    )
    watchdog_timeout: float = option(
        300.0,
        Kind.SECONDS,
        check_seconds,
        "Time after which a blocked event loop or a stalled fetch ends the process, with exit code "
        "70; 0 never does.",
    )
    dev: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "For development: warn, with the line, when an async task blocks the event loop for half a "
        "second. `python -X dev` does the same.",
        flags=("--dev",),
    )
    executable_exit_codes: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "Discard the job of an executable that exits with code 65 (EX_DATAERR), instead of trying "
        "it again.",
    )
    no_side_schema: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "Do without the schema `graphile_worker_py`, in which worker pools register. The jobs of a "
        "killed worker then stay locked for four hours.",
        flags=("--no-side-schema",),
    )
    heartbeat_interval: float = option(
        2.0, Kind.SECONDS, _above_zero, "Time between two heartbeats of a worker pool."
    )
    dead_after: float = option(
        8.0,
        Kind.SECONDS,
        _above_zero,
        "Time without a heartbeat after which other pools release the jobs of a worker pool. At "
        "least twice `heartbeat_interval`.",
    )
    max_crashes: int = option(
        3,
        Kind.WHOLE,
        check_max_crashes,
        "Number of worker processes that a job may crash before it fails permanently; 0 sets no "
        "limit.",
    )
    use_node_time: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "Use this process's clock instead of the database's to decide which jobs are due.",
        flags=("--use-node-time/--no-use-node-time",),
    )
    nan_as_null: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "Store NaN and infinities in payloads that tasks add as `null`, as Graphile Worker does, "
        "instead of refusing them.",
        flags=("--nan-as-null/--no-nan-as-null",),
    )
    worker_id: str | None = option(
        None,
        Kind.TEXT,
        or_none(check_filled),
        "Id of the worker in logs and events. Allowed only if `concurrent_jobs` is 1.",
    )
    get_queue_name_batch_delay: float = option(
        0.05,
        Kind.SECONDS,
        check_seconds,
        "Time to collect the queues whose names tasks ask for, before they are looked up together.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.worker_id is not None and self.concurrent_jobs > 1:
            raise ConfigurationError(
                f"worker_id {self.worker_id!r} is for one worker, but concurrent_jobs is "
                f"{self.concurrent_jobs}; leave one of them out"
            )
        if self.max_reset_locked_interval < self.min_reset_locked_interval:
            raise ConfigurationError(
                f"max_reset_locked_interval {self.max_reset_locked_interval} is below "
                f"min_reset_locked_interval {self.min_reset_locked_interval}"
            )
        if self.dead_after < 2 * self.heartbeat_interval:
            raise ConfigurationError(
                f"dead_after {self.dead_after} is below twice the heartbeat_interval "
                f"{self.heartbeat_interval}: one late heartbeat would be a death"
            )
        delay = self.local_queue.refetch_delay
        if delay is not None and delay.duration > self.poll_interval:
            raise ConfigurationError(
                f"local_queue.refetch_delay.duration {delay.duration} is above "
                f"poll_interval {self.poll_interval}"
            )


WORKER_OPTION_NAMES: Final = frozenset(f.name for f in fields(WorkerOptions))
"""Names of the options of a worker pool."""

OPTIONS: Final = {each.name: each for each in (*PROCESS_OPTIONS, *options_of(WorkerOptions))}
"""Every option that a file, a variable or a flag can set, by its name."""
