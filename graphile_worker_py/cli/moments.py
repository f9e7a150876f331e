"""Points in time on the command line: ISO 8601, or a time from now."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_FROM_NOW: Final = re.compile(r"\+(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_ALLOWED: Final = (
    "an ISO 8601 time as 2026-01-31T04:00:00Z, a time from now as +10m or +1d12h, or now"
)


def parse_moment(text: str) -> datetime:
    """Read a point in time; without an offset it is UTC.

    Raises:
        ValueError: The text is not a point in time; the message says what is allowed.
    """
    if text == "now":
        return datetime.now(UTC)
    try:
        if from_now := _FROM_NOW.fullmatch(text):
            numbers = [int(number or 0) for number in from_now.groups()]
            if any(from_now.groups()):
                weeks, days, hours, minutes, seconds = numbers
                return datetime.now(UTC) + timedelta(
                    weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds
                )
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
