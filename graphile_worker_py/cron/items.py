"""Cron items: recurring jobs as defined in code, and as parsed for the scheduler."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from graphile_worker_py import json_codec
from graphile_worker_py.checks import (
    check_identifier,
    check_one_of,
    check_seconds,
    check_smallint,
    check_text,
)
from graphile_worker_py.cron.pattern import Pattern, parse_pattern
from graphile_worker_py.errors import ConfigurationError, CrontabError
from graphile_worker_py.job.spec import MAX_JOB_KEY_LENGTH, MAX_QUEUE_NAME_LENGTH, JobKeyMode
from graphile_worker_py.records import Record


class Overlap(StrEnum):
    """What happens when an item is due and the job of its previous run still exists."""

    ALLOW = "allow"
    """A job is added, subject to its job key and mode. The default."""
    SKIP = "skip"
    """No job is added while a job with the item's key is waiting or running."""


class CronItemOptions(Record):
    """How the jobs of an item are added.

    Args:
        backfill_period: Seconds. When a worker starts, it adds the runs that were missed within
            this time; 0 adds none.
        max_attempts: As for `add_job`; None means 25.
        queue_name: As for `add_job`.
        priority: As for `add_job`; None means 0.
        job_key: As for `add_job`.
        job_key_mode: As for `add_job`.
        timezone: Time zone of the pattern, for example `Europe/Berlin`; None means UTC.
        jitter: Seconds. A job's `run_at` is delayed by a random time of up to this.
        overlap: What happens if the previous run still exists; `skip` needs a `job_key`.
        max_backfill: Largest number of missed runs to add, the latest ones; None means all.
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


class CronDigest(Record):
    """A minute as passed to a matcher function, in the time zone of its item.

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


class CronItem(Record, kw_only=False):
    """A recurring job defined in code, for `parse_cron_items`.

    Args:
        task: Task identifier of the jobs.
        match: A cron pattern of five fields, or a function that is called with the digest of each
            minute and returns whether the item is due.
        options: How the jobs are added, as `CronItemOptions` or a mapping of its fields.
        payload: Payload of the jobs, to which `_cron` is added; None means an empty object.
        identifier: Unique name under which the runs are recorded; None means the task identifier.
    """

    task: str
    match: str | Matcher
    _: KW_ONLY
    options: CronItemOptions | Mapping[str, Any] = CronItemOptions()
    payload: Mapping[str, Any] | None = None
    identifier: str | None = None


class ParsedCronItem(Record):
    """A recurring job as parsed and checked; the parse functions return these.

    Attributes:
        identifier: Name under which the runs are recorded.
        task: Task identifier of the jobs.
        match: When it is due.
        options: How the jobs are added.
        payload: Payload of the jobs without `_cron`; None for a crontab line without payload.
        line: Line in the crontab, from 1; None for items defined in code.
    """

    identifier: str
    task: str
    match: Pattern | Matcher
    options: CronItemOptions
    payload: Mapping[str, Any] | None
    line: int | None = None


def parse_cron_items(items: Iterable[CronItem]) -> list[ParsedCronItem]:
    """Check and parse items defined in code.

    Raises:
        CrontabError: Items are invalid; the error lists all faults of all items.
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
    """Check and parse one item defined in code.

    Raises:
        CrontabError: The item is invalid.
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

    The grammar of a crontab allows values that the database refuses, for example `max=0`. Without
    this check, such an item would fail each minute, together with all other due items.

    Raises:
        CrontabError: They can't; the error lists all faults.
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
        check_identifier("task", item.task)
        check_text("identifier", item.identifier)
        # Of any length: the scheduler limits it.
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
        raise ConfigurationError(
            "overlap 'skip' needs a job_key, which identifies the previous run"
        )


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
    """The time zone of this name.

    Raises:
        ConfigurationError: The name is unknown, or this machine has no time zone data.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise ConfigurationError(
            f"timezone {name!r} is not known here: expected a name like Europe/Berlin "
            f"(if the system has no time zone data, install the package tzdata)"
        ) from error


def duplicates(items: Iterable[ParsedCronItem]) -> list[CrontabError]:
    """An error for each item whose identifier an earlier item has."""
    first: dict[str, ParsedCronItem] = {}
    errors: list[CrontabError] = []
    for item in items:
        taken = first.setdefault(item.identifier, item)
        if taken is not item:
            which = "an earlier item" if taken.line is None else f"the item of line {taken.line}"
            errors.append(
                CrontabError(
                    f"{where(item)}: {which} has the same identifier; "
                    f"identifiers must be unique, set one with "
                    f"{'identifier=' if item.line is None else '?id='}",
                    line=item.line,
                )
            )
    return errors


def where(item: ParsedCronItem) -> str:
    """The name of the item in errors."""
    place = "" if item.line is None else f"line {item.line}: "
    return f"{place}cron item {item.identifier!r}"


def raise_all(errors: list[CrontabError], *, of: str) -> None:
    """Raise the errors as one, in the order of their lines; return if there are none."""
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
