"""Times on the command line: points in time by ISO 8601 or from now, and lengths of time."""

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from graphile_worker_py.clock import parse_duration, utc_now

_ALLOWED: Final = (
    "an ISO 8601 time as 2026-01-31T04:00:00Z, a time from now as +10m or +1d12h, or now"
)


def parse_moment(text: str) -> datetime:
    """Read a point in time; without an offset it is UTC.

    Raises:
        ValueError: The text is not a point in time; the message says what is allowed.
    """
    if text == "now":
        return utc_now()
    try:
        if text.startswith("+"):
            return utc_now() + parse_duration(text[1:])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not {_ALLOWED}") from error
    return moment.replace(tzinfo=UTC) if moment.utcoffset() is None else moment


def moment_callback(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> datetime | None:
    """Convert the value of a click option to a point in time."""
    if value is None:
        return None
    try:
        return parse_moment(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def duration_callback(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> timedelta | None:
    """Convert the value of a click option to a length of time."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is not a time such as 90m, 12h or 3d") from error


def past_callback(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> datetime | timedelta | None:
    """Convert the value of a click option to a point in time, or to how long ago it was."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except (ValueError, OverflowError):
        pass
    try:
        return parse_moment(value)
    except ValueError as error:
        allowed = "an ISO 8601 time as 2026-01-31T04:00:00Z, or how long ago as 90m, 12h or 3d"
        raise click.BadParameter(f"{value!r} is not {allowed}") from error
