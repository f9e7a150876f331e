"""The `cron` commands: check a crontab, and show what the database knows of its items."""

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click

from graphile_worker_py import json_codec
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.moments import moment_callback
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.clock import utc_now
from graphile_worker_py.cron.crontab import parse_crontab, read_crontab
from graphile_worker_py.cron.items import Overlap, ParsedCronItem, check_items
from graphile_worker_py.cron.match import MINUTE, Timetable
from graphile_worker_py.cron.pattern import FIELDS, Pattern
from graphile_worker_py.cron.schedule import timestamp
from graphile_worker_py.errors import ConfigurationError, CrontabError

DEFAULT_FILE: Final = "crontab"
_EXACT: Final = 2**53

file_argument = click.argument("file")


@click.group()
def cron() -> None:
    """Check a crontab, and show what the database knows of its items."""


@cron.command()
@file_argument
@json_option
def check(file: str, as_json: bool) -> None:
    """Print the items of a crontab, or all of its errors (exit code 1). FILE may be -."""
    items = _read(file)
    if as_json:
        print_json([_as_json(item) for item in items])
    else:
        for item in items:
            click.echo(f"line {item.line}: {item.identifier}")
            for name, value in _described(item):
                click.echo(f"  {name:13} {value}")
            if _next(item, utc_now()) is None:
                click.echo("  never runs    there is no such day")
        click.echo(f"{len(items)} {'item' if len(items) == 1 else 'items'}")
    try:
        check_items(items)
    except CrontabError as error:
        # The grammar allows it, and so does Node until it schedules the item.
        for each in error.errors:
            click.echo(f"warning: no worker can schedule this: {each}", err=True)


@cron.command()
@file_argument
@click.option("--from", "start", callback=moment_callback, required=True, help="First minute.")
@click.option(
    "--to", "end", callback=moment_callback, required=True, help="End, itself not included."
)
@json_option
def due(file: str, start: datetime, end: datetime, as_json: bool) -> None:
    """List each run of a crontab in a span of time, in UTC. FILE may be -."""
    if end < start:
        raise click.UsageError(f"--to {end.isoformat()} is before --from {start.isoformat()}")
    timetable = Timetable(_read(file))
    runs = (
        (timestamp(minute), item.identifier)
        for minute, items in timetable.between(start, end)
        for item in items
    )
    if not as_json:
        for ts, identifier in runs:
            click.echo(f"{ts}  {identifier}")
        return
    # Written while it is computed, because a year of minutes may exceed the memory.
    click.echo("[", nl=False)
    for number, (ts, identifier) in enumerate(runs):
        click.echo("," if number else "", nl=False)
        click.echo(json_codec.dumps({"ts": ts, "identifier": identifier}), nl=False)
    click.echo("]")


@cron.command(name="next")
@file_argument
@click.option("-n", "--count", default=3, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--from", "start", callback=moment_callback, help="Show the runs after this time. Default: now."
)
def next_runs(file: str, count: int, start: datetime | None) -> None:
    """Show the coming runs of each line of a crontab. FILE may be -."""
    now = utc_now() if start is None else start
    for item in _read(file):
        zone = item.options.timezone
        click.echo(f"line {item.line}: {item.identifier}")
        coming = list(_coming(item, now, count))
        for minute in coming:
            local = minute if zone is None else minute.astimezone(ZoneInfo(zone))
            click.echo(f"  {local:%a %Y-%m-%d %H:%M} {zone or 'UTC'}  {_until(minute - now)}")
        if not coming:
            click.echo("  never")


@cron.command()
@click.argument("file", required=False)
@database_options
@json_option
@told_clearly()
def status(file: str | None, connection: str | None, schema: str | None, as_json: bool) -> None:
    """Show the registered items, with their last and next run.

    The next run is computed from FILE, by default `crontab` in the working directory if there is
    one: the database does not hold the patterns.
    """
    if file is None and Path(DEFAULT_FILE).is_file():
        file = DEFAULT_FILE
    items = {item.identifier: item for item in (_read(file) if file is not None else [])}
    now = utc_now()
    with opened_utils(connection, schema) as utils:
        known = {each.identifier: each for each in utils.known_crontabs()}
    rows: list[dict[str, object]] = []
    for identifier in {**known, **items}:
        there = known.get(identifier)
        rows.append(
            {
                "identifier": identifier,
                "known_since": None if there is None else there.known_since,
                "last": None if there is None else there.last_execution,
                "next": _next(items[identifier], now) if identifier in items else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    names = {"known_since": "known since", "last": "last run", "next": "next run"}
    print_table(
        [{names.get(name, name): value for name, value in row.items()} for row in rows],
        if_none="No items.",
        whole=("identifier", *names.values()),
    )


def _read(file: str) -> list[ParsedCronItem]:
    try:
        if file == "-":
            return parse_crontab(sys.stdin.buffer.read().decode(errors="replace"))
        return read_crontab(file)
    except ConfigurationError as error:
        raise click.ClickException(f"-: {error}" if file == "-" else str(error)) from error


def _as_json(item: ParsedCronItem) -> dict[str, Any]:
    """An item under the names, and in the units, of Graphile Worker's parser."""
    assert isinstance(item.match, Pattern)  # noqa: S101  # it comes from a file
    return {
        "identifier": item.identifier,
        "task": item.task,
        "minutes": item.match.minutes,
        "hours": item.match.hours,
        "dates": item.match.dates,
        "months": item.match.months,
        "dows": item.match.dows,
        "options": _options_as_json(item),
        "payload": item.payload,
    }


def _options_as_json(item: ParsedCronItem) -> dict[str, Any]:
    options = item.options
    named: dict[str, Any] = {
        "backfillPeriod": _milliseconds(options.backfill_period),
        "maxAttempts": options.max_attempts,
        "queueName": options.queue_name,
        "priority": options.priority,
        "jobKey": options.job_key,
        "jobKeyMode": options.job_key_mode,
        "timezone": options.timezone,
        "jitter": _milliseconds(options.jitter) or None,
        "overlap": None if options.overlap == Overlap.ALLOW else str(options.overlap),
        "maxBackfill": options.max_backfill,
    }
    # Beyond this a number is a float to JavaScript.
    return {
        name: float(value) if isinstance(value, int) and abs(value) > _EXACT else value
        for name, value in named.items()
        if value is not None
    }


def _milliseconds(seconds: float) -> int | float:
    milliseconds = seconds * 1000
    return int(milliseconds) if milliseconds.is_integer() else milliseconds


def _described(item: ParsedCronItem) -> Iterator[tuple[str, str]]:
    """The fields of an item, in words."""
    assert isinstance(item.match, Pattern)  # noqa: S101  # it comes from a file
    pattern = item.match
    fields = (pattern.minutes, pattern.hours, pattern.dates, pattern.months, pattern.dows)
    for field, values in zip(FIELDS, fields, strict=True):
        every = len(values) == field.largest - field.smallest + 1
        yield field.name, "every" if every else " ".join(str(value) for value in values)
    yield "task", item.task
    for name, value in _options_as_json(item).items():
        if name == "backfillPeriod":
            if value:
                yield "fill", _period(item.options.backfill_period)
        elif name == "jitter":
            yield name, _period(item.options.jitter)
        else:
            yield name, repr(value)
    if item.payload is not None:
        yield "payload", json_codec.dumps(item.payload).decode()


def _period(seconds: float) -> str:
    """A length of time as a crontab writes it: `1d12h`."""
    whole, rest = divmod(seconds, 1)
    parts = []
    for unit, size in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        number, whole = divmod(whole, size)
        if number:
            parts.append(f"{number:g}{unit}")
    if whole or rest or not parts:
        parts.append(f"{whole + rest:g}s")
    return "".join(parts)


def _coming(item: ParsedCronItem, after: datetime, count: int) -> Iterator[datetime]:
    timetable = Timetable([item])
    for _ in range(count):
        minute = timetable.next_after(after)
        if minute is None:
            return
        yield minute
        after = minute


def _next(item: ParsedCronItem, now: datetime) -> datetime | None:
    return Timetable([item]).next_after(now)


def _until(left: Any) -> str:
    minutes = -(-left // MINUTE)
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"))
    return "in " + (" ".join(f"{value}{unit}" for value, unit in parts if value) or "0m")
