"""The clock of this process, and lengths of time as people write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_DURATION: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def from_now(seconds: float) -> str:
    """A time before or after now: `in 3 s`, `18 min ago`, `in 6 h`."""
    if abs(seconds) < 0.5:
        return "now"
    number, unit = _in_unit(abs(seconds))
    return f"in {number:.0f} {unit}" if seconds > 0 else f"{number:.0f} {unit} ago"


def shortened(seconds: float) -> str:
    """A length of time in a fitting unit: `1.52 ms`, `2.7 s`, `18 min`, `6.1 h`, `4.0 d`."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.2f} ms"
    number, unit = _in_unit(seconds)
    return f"{number:.1f} {unit}" if abs(number) < 10 else f"{number:.0f} {unit}"


def _in_unit(seconds: float) -> tuple[float, str]:
    # Up to 100 of a unit, or two days in hours, so that two digits are enough.
    number, unit = seconds, "s"
    for size, most, larger in ((60, 100, "min"), (60, 100, "h"), (24, 48, "d")):
        if abs(number) < most:
            break
        number, unit = number / size, larger
    return number, unit


def parse_duration(text: str) -> timedelta:
    """Read a duration such as `90s`, `12h` or `1d12h`; the units are w, d, h, m and s.

    Raises:
        ValueError: The text is not a duration.
        OverflowError: It is too long.
    """
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is not a duration")
    weeks, days, hours, minutes, seconds = (int(number or 0) for number in found.groups())
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
