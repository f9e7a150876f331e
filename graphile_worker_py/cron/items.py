"""What is to run, and when: cron items as they are made in code, and as they are used."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from graphile_worker_py import json_codec
from graphile_worker_py.checks import check_one_of, check_seconds, check_smallint, check_text
from graphile_worker_py.cron.pattern import Pattern, parse_pattern
from graphile_worker_py.errors import ConfigurationError, CrontabError
from graphile_worker_py.job import (
    MAX_IDENTIFIER_LENGTH,
    MAX_JOB_KEY_LENGTH,
    MAX_QUEUE_NAME_LENGTH,
    JobKeyMode,
)


class Overlap(StrEnum):
    """What happens when an item is due and the job of its last run is still there."""

    ALLOW = "allow"
    """A job is added, as its job key and mode have it. The default."""
    SKIP = "skip"
    """Nothing is added while a job with the item's key waits or runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CronItemOptions:
    """How the jobs of an item are added.

    Args:
        backfill_period: Seconds; runs that were missed no longer ago than this are added when a
            worker starts. 0: none.
        max_attempts: As for `add_job`; None means 25.
        queue_name: As for `add_job`.
        priority: As for `add_job`; None means 0.
        job_key: As for `add_job`.
        job_key_mode: As for `add_job`.
        timezone: Name of the zone in whose local time the pattern is read, as `Europe/Berlin`;
            None means UTC.
        jitter: Seconds; a job's `run_at` is put off by a random time of up to this.
        overlap: What happens if the last run is still there; `skip` needs a `job_key`.
        max_backfill: Of the runs that were missed at most so many are added, the latest; None
            means all.
    """

    backfill_period: float = 0.0
    max_attempts: int | None = None
    queue_name: str | None = None
    priority: int | None = None
    job_key: str | None = None
    job_key_mode: JobKeyMode | str | None = None
    timezone: str | None = None
    jitter: float = 0.0
    overlap: Overlap | str = Overlap.ALLOW
    max_backfill: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CronDigest:
    """A minute as a callable matcher sees it, in the time zone of its item.

    Attributes:
        min: 0 to 59.
        hour: 0 to 23.
        date: Day of the month, 1 to 31.
        month: 1 to 12.
        dow: Day of the week, 0 (Sunday) to 6.
        timestamp: The minute itself, aware.
    """

    min: int
    hour: int
    date: int
    month: int
    dow: int
    timestamp: datetime


Matcher = Callable[[CronDigest], bool]


@dataclass(frozen=True, slots=True)
class CronItem:
    """A recurring job made in code; `parse_cron_items` makes it ready for use.

    Args:
        task: Task identifier of the jobs.
        match: A cron pattern of five fields, or a function that is called with the digest of
            each minute and tells whether the item is due.
        options: How the jobs are added; a mapping stands for `CronItemOptions` with these fields.
        payload: Payload of the jobs, to which `_cron` is added; None means an empty one.
        identifier: Name under which the runs are recorded, unique; None means the task.
    """

    task: str
    match: str | Matcher
    _: KW_ONLY
    options: CronItemOptions | Mapping[str, Any] = CronItemOptions()
    payload: Mapping[str, Any] | None = None
    identifier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCronItem:
    """A recurring job, read and ready for use; made by the parse functions.

    Attributes:
        identifier: Name under which the runs are recorded.
        task: Task identifier of the jobs.
        match: When it is due.
        options: How the jobs are added.
        payload: Payload of the jobs without `_cron`; None for a crontab line without payload.
        line: 1-based line in the crontab; None for items made in code.
    """

    identifier: str
    task: str
    match: Pattern | Matcher
    options: CronItemOptions
    payload: Mapping[str, Any] | None
    line: int | None = None


def parse_cron_items(items: Iterable[CronItem]) -> list[ParsedCronItem]:
    """Check items made in code and make them ready for use.

    Raises:
        CrontabError: Items are not valid; all faults of all items are told.
    """
    given: object = items
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise CrontabError(f"cron items must be a list of CronItem(...), not {items!r}")
    parsed: list[ParsedCronItem] = []
    errors: list[CrontabError] = []
    for item in items:
        try:
            parsed.append(parse_cron_item(item))
        except CrontabError as error:
            errors.extend(error.errors)
    raise_all([*errors, *duplicates(parsed)], of="cron items")
    return parsed


def parse_cron_item(item: CronItem) -> ParsedCronItem:
    """Check one item made in code and make it ready for use.

    Raises:
        CrontabError: The item is not valid.
    """
    if not isinstance(item, CronItem):
        raise CrontabError(f"a cron item must be a CronItem(...), not {item!r}")
    name = item.task if item.identifier is None else item.identifier
    parsed = ParsedCronItem(
        identifier=name,
        task=item.task,
        match=_match(item.match, name),
        options=_options(item.options, name),
        payload={} if item.payload is None else item.payload,
    )
    check_item(parsed)
    return parsed


def _match(match: object, name: str) -> Pattern | Matcher:
    if callable(match):
        return match
    if not isinstance(match, str):
        raise CrontabError(
            f"cron item {name!r}: match must be a pattern or a function, not {match!r}"
        )
    pattern, faults = parse_pattern(match)
    if pattern is None:
        found = "; ".join(fault.message for fault in faults)
        raise CrontabError(
            f"cron item {name!r}: pattern {match!r}: {found}", column=faults[0].offset + 1
        )
    return pattern


_OPTION_NAMES: Final = tuple(field.name for field in dataclasses.fields(CronItemOptions))


def _options(options: object, name: str) -> CronItemOptions:
    if isinstance(options, CronItemOptions):
        return options
    if not isinstance(options, Mapping):
        raise CrontabError(
            f"cron item {name!r}: options must be CronItemOptions(...), not {options!r}"
        )
    unknown = [key for key in options if key not in _OPTION_NAMES]
    if unknown:
        raise CrontabError(
            f"cron item {name!r}: there is no option {unknown[0]!r}; "
            f"options are {', '.join(_OPTION_NAMES)}"
        )
    return CronItemOptions(**options)


def check_items(items: Iterable[ParsedCronItem]) -> None:
    """Check that items can be scheduled together.

    A crontab may hold what its grammar allows and the database does not store, for example
    `max=0`. Sent there, it would fail each minute, together with everything else that is due.

    Raises:
        CrontabError: They can't; all faults are told.
    """
    errors: list[CrontabError] = []
    items = list(items)
    for item in items:
        try:
            check_item(item)
        except CrontabError as error:
            errors.extend(error.errors)
    raise_all([*errors, *duplicates(items)], of="cron items")


def check_item(item: ParsedCronItem) -> None:
    """Check that jobs of the item can be stored.

    Raises:
        CrontabError: They can't.
    """
    if not isinstance(item, ParsedCronItem):
        raise CrontabError(
            f"a parsed cron item must come from parse_crontab or parse_cron_items, not {item!r}"
        )
    options = item.options
    try:
        check_text("task", item.task, longest=MAX_IDENTIFIER_LENGTH)
        check_text("identifier", item.identifier)
        # As long as it likes: whatever is longer than there are years is for ever.
        check_seconds("backfill_period", options.backfill_period, longest=sys.float_info.max)
        check_seconds("jitter", options.jitter)
        if options.max_attempts is not None:
            check_smallint("max_attempts", options.max_attempts, smallest=1)
        if options.priority is not None:
            check_smallint("priority", options.priority)
        if options.queue_name is not None:
            check_text("queue_name", options.queue_name, longest=MAX_QUEUE_NAME_LENGTH)
        if options.job_key is not None:
            check_text("job_key", options.job_key, shortest=1, longest=MAX_JOB_KEY_LENGTH)
        if options.job_key_mode is not None:
            check_one_of("job_key_mode", options.job_key_mode, allowed=JobKeyMode)
        _check_overlap(options)
        if options.max_backfill is not None:
            check_smallint("max_backfill", options.max_backfill, smallest=0)
        if options.timezone is not None:
            zone_named(options.timezone)
        _check_payload(item.payload)
    except ConfigurationError as error:
        raise CrontabError(f"{where(item)}: {error}", line=item.line) from error


def _check_overlap(options: CronItemOptions) -> None:
    check_one_of("overlap", options.overlap, allowed=Overlap)
    if options.overlap == Overlap.SKIP and options.job_key is None:
        raise ConfigurationError("overlap 'skip' needs a job_key, by which runs are recognised")


def _check_payload(payload: object) -> None:
    if payload is None:
        return
    if not isinstance(payload, Mapping):
        raise ConfigurationError(f"payload must be a mapping, not {payload!r}")
    try:
        json_codec.dumps(dict(payload))
    except ValueError as error:
        raise ConfigurationError(f"payload is {error}") from error


def zone_named(name: str) -> ZoneInfo:
    """The time zone of that name.

    Raises:
        ConfigurationError: There is none, or this machine has no zone data.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise ConfigurationError(
            f"timezone {name!r} is not known here: expected a name as Europe/Berlin "
            f"(where the system has no zone data, the package tzdata brings it)"
        ) from error


def duplicates(items: Iterable[ParsedCronItem]) -> list[CrontabError]:
    """One error for each item whose identifier was taken by one before it."""
    first: dict[str, ParsedCronItem] = {}
    errors: list[CrontabError] = []
    for item in items:
        taken = first.setdefault(item.identifier, item)
        if taken is not item:
            place = "" if taken.line is None else f" of line {taken.line}"
            errors.append(
                CrontabError(
                    f"{where(item)}: the identifier is that{place or ' of another item'} as well; "
                    f"identifiers must differ, give one with "
                    f"{'identifier=' if item.line is None else '?id='}",
                    line=item.line,
                )
            )
    return errors


def where(item: ParsedCronItem) -> str:
    """The item as an error names it."""
    place = "" if item.line is None else f"line {item.line}: "
    return f"{place}cron item {item.identifier!r}"


def raise_all(errors: list[CrontabError], *, of: str) -> None:
    """Raise the errors as one, in the order of their places; nothing if there are none."""
    if not errors:
        return
    errors = sorted(errors, key=lambda error: (error.line or 0, error.column or 0))
    if len(errors) == 1:
        raise errors[0]
    lines = "\n".join(f"  {error}" for error in errors)
    raise CrontabError(
        f"{len(errors)} errors in {of}:\n{lines}",
        line=errors[0].line,
        column=errors[0].column,
        errors=errors,
    )
