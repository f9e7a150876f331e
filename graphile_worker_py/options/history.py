"""The options of history: what worker pools keep of jobs that ended."""

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from functools import partial
from typing import Any, Final

from graphile_worker_py.checks import check_duration, check_flag, check_one_of, check_whole
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options.declaring import Kind, check_fields, group, made, option
from graphile_worker_py.records import Record

LARGEST_RESULT: Final = 1024**2
"""Bytes; the most that `result_limit` can be."""


class HistoryLevel(StrEnum):
    """Of which attempts a row is kept."""

    NONE = "none"
    FAILED = "failed"
    ALL = "all"


class HistoryRetention(Record):
    """For how long history is kept: durations such as `12h`, `3d` or `1d12h`, or a `timedelta`."""

    completed: Any = option(
        "3d",
        Kind.DURATION,
        check_duration,
        "Time for which runs of completed jobs are kept.",
        flags=("--history-retention-completed",),
    )
    failed: Any = option(
        "90d",
        Kind.DURATION,
        check_duration,
        "Time for which all other runs are kept: failed, discarded, cancelled and killed ones.",
        flags=("--history-retention-failed",),
    )
    counters: Any = option(
        "90d",
        Kind.DURATION,
        check_duration,
        "Time for which the counters of each minute are kept.",
    )

    def __post_init__(self) -> None:
        check_fields(self, "history_retention.")


def _check_result_limit(name: str, value: object) -> None:
    if check_whole(name, value, smallest=1) > LARGEST_RESULT:
        raise ConfigurationError(f"{name} must be at most {LARGEST_RESULT}, not {value!r}")


class HistoryOptions(Record):
    """What a worker pool keeps of jobs that ended."""

    history: str = option(
        str(HistoryLevel.FAILED),
        Kind.TEXT,
        partial(check_one_of, allowed=HistoryLevel),
        "Attempts of which a row is kept: `none`, `failed` (all but successes) or `all`. All "
        "outcomes are counted, except with `none`. The setting of a task wins.",
        flags=("--history",),
        choices=tuple(map(str, HistoryLevel)),
    )
    history_retention: HistoryRetention = group(
        HistoryRetention(), HistoryRetention, made(HistoryRetention)
    )
    history_payloads: bool = option(
        False,  # noqa: FBT003  # the default
        Kind.YES_NO,
        check_flag,
        "Keep the payload in each row of history.",
        flags=("--history-payloads",),
    )
    result_limit: int = option(
        64 * 1024,
        Kind.WHOLE,
        _check_result_limit,
        "Largest result that is kept, in bytes of JSON; at most 1048576.",
    )


def retention(given: HistoryRetention | Mapping[str, Any]) -> HistoryRetention:
    """Retention as an object; code may give a mapping.

    Raises:
        ConfigurationError: A key is unknown, or a value is not a duration.
    """
    if not isinstance(given, Mapping):
        return given
    known = [each.name for each in fields(HistoryRetention)]
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"unknown key {name!r} in history_retention; keys are {', '.join(known)}"
            )
    return HistoryRetention(**given)
