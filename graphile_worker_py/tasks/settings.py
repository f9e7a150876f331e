"""The settings of a task: how its jobs are added, retried and remembered."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypedDict

from graphile_worker_py.checks import (
    check_filled,
    check_flag,
    check_is,
    check_one_of,
    check_smallint,
    check_text,
    check_texts,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import MAX_JOB_KEY_LENGTH, MAX_QUEUE_NAME_LENGTH
from graphile_worker_py.options.history import HistoryLevel
from graphile_worker_py.options.limits import CircuitBreaker, TaskLimit, check_limits
from graphile_worker_py.outcomes import RetryPolicy

HistoryName: TypeAlias = Literal["none", "failed", "all"]
LogLevel: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
OfPayload: TypeAlias = Callable[[Any], str | None]
"""Given the payload as it is passed to `add_job`, returns a value for the job."""


class TaskSettings(TypedDict, total=False):
    """What `@task` takes in addition to how the function is called; None means not given."""

    retry: RetryPolicy | None
    """What a failed attempt leads to; None means Graphile Worker's retries."""
    max_snoozes: int | None
    """A job that snoozes more often is discarded; None means 1,000. Needs the side schema."""
    queue_name: str | OfPayload | None
    """Default serial queue of jobs that are added with the task object, or a function of the
    payload that returns it."""
    priority: int | None
    """Default priority of these jobs."""
    max_attempts: int | None
    """Default number of attempts of these jobs."""
    flags: Iterable[str] | None
    """Default flags of these jobs."""
    job_key: str | OfPayload | None
    """Default job key of these jobs, or a function of the payload that returns it."""
    history: HistoryName | None
    """What is remembered of these jobs; None means what the worker's option `history` says."""
    keep_result: bool | None
    """Keep what the task returned, with a record of each success."""
    capture_logs: LogLevel | None
    """Keep the log records of each attempt from this level on; None means none."""
    cron: str | None
    """Cron pattern of five fields: workers that have the task add a job of it when it is due."""
    timezone: str | None
    """Time zone of `cron`, for example `Europe/Vienna`; None means UTC."""
    limits: Iterable[TaskLimit] | None
    """How many of its jobs run at once, or start in a time, in all Python worker pools of the
    schema together. Needs the side schema."""
    breaker: CircuitBreaker | None
    """Starts none of its jobs for a time after too many of them failed; None means never."""


ADDING: Final = ("queue_name", "priority", "max_attempts", "flags", "job_key")


def checked_settings(identifier: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a task, and leave out what is not given.

    Raises:
        ConfigurationError: A setting is unknown, or its value is not allowed.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    for name, value in settings.items():
        check = _CHECKS.get(name)
        if check is None:
            known = ", ".join(sorted(_CHECKS))
            raise ConfigurationError(f"task {identifier!r} has no setting {name!r}; {known}")
        check(f"{name} of task {identifier!r}", value)
    if "timezone" in settings and "cron" not in settings:
        raise ConfigurationError(f"timezone of task {identifier!r} needs cron")
    if "flags" in settings:
        settings["flags"] = list(settings["flags"])
    if "limits" in settings:
        settings["limits"] = list(settings["limits"])
    return settings


def _check_text_or_function(longest: int) -> Callable[[str, object], object]:
    def check(name: str, value: object) -> None:
        if not callable(value):
            check_text(name, value, shortest=1, longest=longest)

    return check


_CHECKS: Final[Mapping[str, Callable[[str, Any], object]]] = {
    "retry": lambda name, value: check_is(name, value, RetryPolicy, how="RetryPolicy(...)"),
    "max_snoozes": lambda name, value: check_whole(name, value, smallest=0),
    "queue_name": _check_text_or_function(MAX_QUEUE_NAME_LENGTH),
    "priority": check_smallint,
    "max_attempts": lambda name, value: check_smallint(name, value, smallest=1),
    "flags": check_texts,
    "job_key": _check_text_or_function(MAX_JOB_KEY_LENGTH),
    "history": lambda name, value: check_one_of(name, value, allowed=HistoryLevel),
    "keep_result": check_flag,
    # They are parsed when a worker starts, because that needs more modules than a task does.
    "cron": check_filled,
    "timezone": check_filled,
    "limits": check_limits,
    "breaker": lambda name, value: check_is(name, value, CircuitBreaker, how="CircuitBreaker(...)"),
    "capture_logs": lambda name, value: check_one_of(name, value, allowed=LOG_LEVELS),
}
