"""The clock of this process, and lengths of time in words."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def shortened(seconds: float) -> str:
    """A length of time in a fitting unit: `1.52 ms`, `2.7 s`, `18 min`, `6.1 h`, `4.0 d`."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.2f} ms"
    number, unit = seconds, "s"
    for size, next_unit in ((60, "min"), (60, "h"), (24, "d")):
        # Up to 100 of a unit, so that two digits are enough.
        if abs(number) < (48 if next_unit == "d" else 100):
            break
        number, unit = number / size, next_unit
    return f"{number:.1f} {unit}" if abs(number) < 10 else f"{number:.0f} {unit}"
