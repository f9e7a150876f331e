"""Every option once: its name, type, default, unit and check.

It is long because it is a list: files, variables, flags and documentation are made from it.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeAlias

from graphile_worker_py.checks import (
    check_delay,
    check_filled,
    check_flag,
    check_is,
    check_one_of,
    check_port,
    check_processes,
    check_schema,
    check_seconds,
    check_texts,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError

ForbiddenFlags = (
    Sequence[str]
    | Callable[[], Sequence[str] | None]
    | Callable[[], Awaitable[Sequence[str] | None]]
)
"""Flags whose jobs are left for others: fixed, or asked for before each fetch."""

DEFAULT_SCHEMA: Final = "graphile_worker"
HEALTH_HOST: Final = "127.0.0.1"
LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


Check: TypeAlias = Callable[[str, object], object]
"""Given name and value of an option, raises ConfigurationError if the value is not allowed."""


class Kind(StrEnum):
    """What a value is, as those who write files and environment variables say it."""

    TEXT = "text"
    PATH = "path"
    WHOLE = "whole number"
    SECONDS = "seconds"
    YES_NO = "true or false"
    TEXTS = "list of texts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option, for what reads or documents all of them.

    Attributes:
        name: Its name; with dots where it is part of another (`local_queue.size`).
        kind: What its value is.
        default: The value that it has if none is given; None if it then is not set.
        doc: What it does.
        check: Says whether a value is allowed.
    """

    name: str
    kind: Kind
    default: Any = None
    doc: str
    check: Check


def _about(doc: str, kind: Kind, check: Check) -> dict[str, Any]:
    return {"doc": doc, "kind": kind, "check": check}


def _option(doc: str, kind: Kind, check: Check, *, default: Any, secret: bool = False) -> Any:
    return field(default=default, metadata=_about(doc, kind, check), repr=not secret)


def _group(of: type, check: Check, *, default: Any) -> Any:
    return field(default=default, metadata={"group": of, "check": check})


def _check_fields(options: Any, prefix: str = "") -> None:
    for each in fields(options):
        each.metadata["check"](f"{prefix}{each.name}", getattr(options, each.name))


def _or_none(check: Check) -> Check:
    def check_or_none(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_or_none


def _check_flags(name: str, value: object) -> None:
    if value is not None and not callable(value):
        check_is(name, value, Sequence, how="a list of strings")  # read before each fetch
        check_texts(name, value)


def _check_local_queue_size(name: str, value: object) -> None:
    if value != -1:
        check_whole(name, value, smallest=1, or_else="or -1 for none")


def _check_max_crashes(name: str, value: object) -> None:
    # After one crash nobody knows which of several jobs it was.
    if value != 0 or isinstance(value, bool):
        check_whole(name, value, smallest=2, or_else="or 0 for never")


def _check_made(name: str, value: object, *, kind: type) -> None:
    check_is(name, value, kind, how=f"{kind.__name__}(...)")


_at_least_0: Final = partial(check_whole, smallest=0)
_at_least_1: Final = partial(check_whole, smallest=1)
_pool_size: Final = partial(
    check_whole,
    smallest=2,
    or_else="(one fetches and records, the others are for jobs)",
)
_above_zero: Final = partial(check_seconds, above_zero=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefetchDelay:
    """How long a local queue rests after a fetch that brought few jobs."""

    # By `field` itself, so that type checkers see that there is no default.
    duration: float = field(
        metadata=_about(
            "seconds of rest after a fetch that brought few jobs, scattered by 0.5 to 1.5; at "
            "most the poll interval",
            Kind.SECONDS,
            check_seconds,
        )
    )
    threshold: int = _option(
        "a fetch that brings more jobs than this is not followed by a rest",
        Kind.WHOLE,
        _at_least_0,
        default=0,
    )
    max_abort_threshold: int | None = _option(
        "a random share of this many announced jobs ends the rest early; if not set, five times "
        "the size of the local queue",
        Kind.WHOLE,
        _or_none(_at_least_0),
        default=None,
    )

    def __post_init__(self) -> None:
        _check_fields(self, "local_queue.refetch_delay.")


@dataclass(frozen=True, slots=True)
class LocalQueueOptions:
    """Prefetching: jobs are fetched in batches ahead of the workers."""

    size: int = _option(
        "most jobs to fetch ahead; -1 fetches none, so that no job is locked before a worker is "
        "there to run it",
        Kind.WHOLE,
        _check_local_queue_size,
        default=-1,
    )
    ttl: float = _option(
        "seconds after which fetched jobs that nobody took are returned to the database",
        Kind.SECONDS,
        check_seconds,
        default=300.0,
    )
    refetch_delay: RefetchDelay | None = _group(
        RefetchDelay, _or_none(partial(_check_made, kind=RefetchDelay)), default=None
    )

    def __post_init__(self) -> None:
        _check_fields(self, "local_queue.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options of a worker pool, checked. Names are Graphile Worker's, durations seconds.

    Raises:
        ConfigurationError: A value is not allowed; the message names option, value and range.
    """

    schema: str = _option(
        "PostgreSQL schema of the job tables",
        Kind.TEXT,
        lambda _, value: check_schema(value),
        default=DEFAULT_SCHEMA,
    )
    concurrent_jobs: int = _option(
        "jobs that this process runs at the same time", Kind.WHOLE, _at_least_1, default=1
    )
    poll_interval: float = _option(
        "seconds between looks for jobs that nobody announced (retries, future jobs)",
        Kind.SECONDS,
        _above_zero,
        default=2.0,
    )
    max_pool_size: int = _option(
        "most database connections, the listening one not counted; at least 2. Two of them, or "
        "one of two, fetch and record, the others are for jobs",
        Kind.WHOLE,
        _pool_size,
        default=10,
    )
    prepared_statements: bool | None = _option(
        "whether statements are prepared on the server; if not set, unless there is a pooler "
        "before it",
        Kind.YES_NO,
        _or_none(check_flag),
        default=None,
    )
    forbidden_flags: ForbiddenFlags | None = _option(
        "jobs with one of these flags are left for others", Kind.TEXTS, _check_flags, default=None
    )
    local_queue: LocalQueueOptions = _group(
        LocalQueueOptions, partial(_check_made, kind=LocalQueueOptions), default=LocalQueueOptions()
    )
    complete_job_batch_delay: float = _option(
        "seconds to gather completed jobs for one write; -1 writes at once",
        Kind.SECONDS,
        check_delay,
        default=-1.0,
    )
    fail_job_batch_delay: float = _option(
        "seconds to gather failed jobs for one write; -1 writes at once",
        Kind.SECONDS,
        check_delay,
        default=-1.0,
    )
    min_reset_locked_interval: float = _option(
        "least seconds between two sweeps for locks older than four hours",
        Kind.SECONDS,
        _above_zero,
        default=480.0,
    )
    max_reset_locked_interval: float = _option(
        "most seconds between two sweeps for locks older than four hours",
        Kind.SECONDS,
        _above_zero,
        default=600.0,
    )
    graceful_shutdown_abort_timeout: float = _option(
        "seconds of a graceful stop after which running jobs see their abort event",
        Kind.SECONDS,
        check_seconds,
        default=5.0,
    )
    listen_connection_string: str | None = _option(
        "connection string for the connection that hears of new jobs: a direct one, where the "
        "others go through a pooler",
        Kind.TEXT,
        _or_none(check_filled),
        default=None,
        secret=True,
    )
    listen_echo_interval: float = _option(
        "seconds of silence after which the listening connection is tested; 0 for never",
        Kind.SECONDS,
        check_seconds,
        default=30.0,
    )
    watchdog_timeout: float = _option(
        "seconds for which the event loop, or a fetch, may stand still; then the process ends "
        "with exit code 70; 0 for never",
        Kind.SECONDS,
        check_seconds,
        default=300.0,
    )
    no_side_schema: bool = _option(
        "whether to do without the schema `graphile_worker_py`, in which worker pools register; "
        "what a killed one had locked then stays locked for four hours",
        Kind.YES_NO,
        check_flag,
        default=False,
    )
    heartbeat_interval: float = _option(
        "seconds between two proofs of a worker pool that it is alive",
        Kind.SECONDS,
        _above_zero,
        default=2.0,
    )
    dead_after: float = _option(
        "seconds without such a proof after which others free what the pool had locked; at least "
        "twice the heartbeat interval",
        Kind.SECONDS,
        _above_zero,
        default=8.0,
    )
    max_crashes: int = _option(
        "a job is given up when its worker process has died under it so often; 0 for never",
        Kind.WHOLE,
        _check_max_crashes,
        default=3,
    )
    use_node_time: bool = _option(
        "whether the clock of this process tells what is due, instead of the database's",
        Kind.YES_NO,
        check_flag,
        default=False,
    )
    worker_id: str | None = _option(
        "id of the worker in logs and events; only where one job runs at a time",
        Kind.TEXT,
        _or_none(check_filled),
        default=None,
    )
    get_queue_name_batch_delay: float = _option(
        "seconds to gather the queues that tasks ask the names of, for one look",
        Kind.SECONDS,
        check_seconds,
        default=0.05,
    )

    def __post_init__(self) -> None:
        _check_fields(self)
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
"""Names of the options that a worker pool has."""

PROCESS_OPTIONS: Final = (
    Option(
        name="connection",
        kind=Kind.TEXT,
        doc="connection string of the database; libpq's `PG*` variables fill in what is not said",
        check=check_filled,
    ),
    Option(
        name="tasks",
        kind=Kind.TEXT,
        doc="Python module with the tasks, as `MODULE` or `MODULE:ATTRIBUTE`",
        check=check_filled,
    ),
    Option(
        name="task_directory",
        kind=Kind.PATH,
        doc="instead of `tasks`: folder with tasks, or Python file; `./tasks` if there is one",
        check=check_filled,
    ),
    Option(
        name="crontab_file",
        kind=Kind.PATH,
        doc="file with recurring jobs; `./crontab` if there is one",
        check=check_filled,
    ),
    Option(
        name="hooks",
        kind=Kind.TEXTS,
        doc="names of installed plugins, the outermost first",
        check=check_texts,
    ),
    Option(
        name="processes",
        kind=Kind.WHOLE,
        default=1,
        doc="processes that run jobs, each with all of these options; above 1 they are supervised, "
        "`auto` is one per processor core",
        check=check_processes,
    ),
    Option(
        name="health_port",
        kind=Kind.WHOLE,
        doc="port to answer probes on over HTTP; if not set, none; with several processes each has "
        "the next one",
        check=check_port,
    ),
    Option(
        name="health_host",
        kind=Kind.TEXT,
        default=HEALTH_HOST,
        doc="address to answer probes on; `0.0.0.0` where they come from outside",
        check=check_filled,
    ),
    Option(
        name="log_format",
        kind=Kind.TEXT,
        default=LOG_FORMATS[0],
        doc="`text` writes lines for people, `json` objects for machines",
        check=partial(check_one_of, allowed=LOG_FORMATS),
    ),
    Option(
        name="log_level",
        kind=Kind.TEXT,
        default="info",
        doc="what is worth a line: `debug`, `info`, `warning` or `error`",
        check=partial(check_one_of, allowed=LOG_LEVELS),
    ),
)
"""What a worker process is told besides the options of its pool."""


def _options_of(group: type, prefix: str = "") -> Iterator[Option]:
    for each in fields(group):
        name = f"{prefix}{each.name}"
        if "group" in each.metadata:
            yield from _options_of(each.metadata["group"], f"{name}.")
            continue
        default = None if each.default is MISSING else each.default
        yield Option(name=name, default=default, **each.metadata)


OPTIONS: Final = {option.name: option for option in (*PROCESS_OPTIONS, *_options_of(WorkerOptions))}
"""Every option that can be written in a file, by its name."""
