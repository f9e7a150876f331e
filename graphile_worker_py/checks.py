"""Check values that users give: each check names the value and what is allowed."""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from graphile_worker_py.clock import parse_duration
from graphile_worker_py.errors import ConfigurationError

MAX_IDENTIFIER_LENGTH: Final = 128
SMALLINT_MIN: Final = -32768
SMALLINT_MAX: Final = 32767
MAX_SCHEMA_BYTES: Final = 63
BIGINT_MAX: Final = 2**63 - 1
LARGEST_WHOLE: Final = 2**31 - 1
LARGEST_AMOUNT: Final = sys.float_info.max
LONGEST: Final = 1e9
"""Seconds, about thirty years: within the range of clocks and of PostgreSQL's intervals."""
HIGHEST_PORT: Final = 65535
MOST_PROCESSES: Final = 1000
"""A slip of the keyboard must not take a whole machine's memory."""
AUTO: Final = "auto"
_STANDARD_ZONES: Final = ("datetime", "zoneinfo")
"""The modules that have the time zones of Python itself."""


OTHER_WORDS: Final = {
    "queue": "queue_name",
    "key": "job_key",
    "key_mode": "job_key_mode",
    "eta": "run_at",
    "delay": "run_in",
    "countdown": "run_in",
    "schedule_in": "run_in",
    "retries": "max_attempts",
    "max_retries": "max_attempts",
    "attempts": "max_attempts",
    "tags": "flags",
    "args": "payload",
    "kwargs": "payload",
    "connection": "conn",
    "transaction": "conn",
}
"""What other libraries call the options of a job."""


def check_text(name: str, value: object, *, shortest: int = 0, longest: int | None = None) -> str:
    """Check a text that PostgreSQL is to store; lengths are in characters.

    Of a subclass of `str`, the plain text is returned: nothing that it overrides is called later,
    where other jobs would suffer from it.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {value!r}")
    if type(value) is not str:
        value = str.__str__(value)
    if len(value) < shortest:
        raise ConfigurationError(f"{name} must not be empty")
    if longest is not None and len(value) > longest:
        raise ConfigurationError(
            f"{name} has {len(value)} characters, at most {longest} are allowed: {value[:40]!r}…"
        )
    if "\0" in value:
        raise ConfigurationError(f"{name} {value!r} contains U+0000, which can't be stored")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{name} {value!r} contains a lone surrogate, which can't be stored"
        ) from error
    return value


def check_identifier(name: str, value: object) -> str:
    """Check the identifier of a task; one that looks the same as another one is a mistake."""
    identifier = check_text(name, value, shortest=1, longest=MAX_IDENTIFIER_LENGTH)
    if identifier != identifier.strip():
        raise ConfigurationError(f"{name} {identifier!r} must not begin or end with spaces")
    return identifier


def unknown_word(word: str, *, known: Sequence[str]) -> TypeError:
    """The error about a keyword argument that does not exist, with the one that was meant.

    Args:
        word: The argument.
        known: The arguments that exist.
    """
    import difflib  # noqa: PLC0415  # read only for a message

    snake = "".join(f"_{each.lower()}" if each.isupper() else each for each in word)
    close = difflib.get_close_matches(snake, known, n=1, cutoff=0.7)
    meant = OTHER_WORDS.get(word) or (close[0] if close else None)
    hint = f"did you mean {meant!r}?" if meant else f"allowed are {', '.join(known)}"
    return TypeError(f"unknown argument {word!r}; {hint}")


def check_smallint(name: str, value: object, *, smallest: int = SMALLINT_MIN) -> int:
    """Check a number that the schema stores as smallint; of a subclass, the number is returned."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a whole number, not {value!r}")
    if type(value) is not int:
        value = int.__int__(value)
    if not smallest <= value <= SMALLINT_MAX:
        raise ConfigurationError(
            f"{name} {value} is out of range, allowed are {smallest} to {SMALLINT_MAX}"
        )
    return value


def check_aware(name: str, value: object) -> datetime:
    """Check a point in time; a naive one would mean another instant on each machine.

    Of a subclass, or with the caller's own time zone class, the same instant is returned as a plain
    one in UTC: only that can be written as JSON, and calls no code of others later.
    """
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} must be a datetime, not {value!r}")
    if value.utcoffset() is None:
        raise ConfigurationError(
            f"{name} {value!r} has no time zone; use an aware datetime, "
            f"for example datetime.now(UTC)"
        )
    try:
        utc = value.astimezone(UTC)
    except OverflowError as error:
        raise ConfigurationError(f"{name} {value!r} is beyond the year 1 or 9999 in UTC") from error
    if type(value) is datetime and type(value.tzinfo).__module__ in _STANDARD_ZONES:
        return value
    return datetime.combine(datetime.date(utc), datetime.time(utc), UTC)


def check_schema(value: object) -> str:
    """Check the name of a schema: any name that PostgreSQL can hold, without control characters."""
    if not isinstance(value, str):
        raise ConfigurationError(f"schema must be a string, not {value!r}")
    if not value or _bytes_of(value) > MAX_SCHEMA_BYTES:
        raise ConfigurationError(
            f"schema {value!r} is not a name that PostgreSQL can hold: 1 to "
            f"{MAX_SCHEMA_BYTES} bytes, no lone surrogates"
        )
    if any(each < " " or "\x7f" <= each <= "\x9f" or each in "\u2028\u2029" for each in value):
        raise ConfigurationError(f"schema {value!r} must have no control characters")
    return value


def _bytes_of(text: str) -> float:
    """Length of a text in UTF-8, infinite if it has lone surrogates."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return math.inf


def check_whole(
    name: str,
    value: object,
    *,
    smallest: int,
    largest: int = LARGEST_WHOLE,
    or_else: str = "",
) -> int:
    """Check a whole number; without `largest`, the bound is that of PostgreSQL's integers."""
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        allowed = f"a whole number of at least {smallest} {or_else}".rstrip()
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    if value > largest:
        raise ConfigurationError(f"{name} must be at most {largest}, not {value!r}")
    return value


def check_share(name: str, value: object) -> float:
    """Check a share of a whole: a number above 0 and at most 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ConfigurationError(f"{name} must be a number above 0 and at most 1, not {value!r}")
    return value


def check_seconds(
    name: str, value: object, *, above_zero: bool = False, longest: float = LONGEST
) -> float:
    """Check a duration in seconds, 0 to `longest`."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not value >= 0  # false for NaN, too
        or (above_zero and value == 0)
    ):
        allowed = "above 0" if above_zero else "0 or above"
        raise ConfigurationError(f"{name} must be seconds, {allowed}, not {value!r}")
    if value > longest:
        raise ConfigurationError(f"{name} must be seconds, at most {longest:g}, not {value!r}")
    return float(value)


def check_duration(name: str, value: object) -> float:
    """Check a duration, as text or as a `timedelta`; returns it in seconds, above 0."""
    given = value
    if isinstance(value, str):
        with suppress(ValueError, OverflowError):
            given = parse_duration(value)
    if not isinstance(given, timedelta):
        allowed = "a duration such as 12h, 3d or 1d12h"
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    seconds = given.total_seconds()
    if not 0 < seconds <= LONGEST:
        allowed = f"above 0 and at most {LONGEST:g} seconds"
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
    return seconds


def check_delay(name: str, value: object) -> None:
    """Check a batch delay: seconds, or -1 for none."""
    if value != -1:
        check_seconds(f"{name} (-1 for none)", value)


def check_flag(name: str, value: object) -> None:
    """Check a bool."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")


def check_texts(name: str, value: object) -> list[str]:
    """Check a list of strings that can be stored; a lone string would be read letter by letter."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name} must be a list of strings, not {value!r}")
    return [check_text(f"{name}[{at}]", item) for at, item in enumerate(value)]


def check_path(name: str, value: object) -> None:
    """Check the path of a file or directory."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ConfigurationError(f"{name} must be a path, not {value!r}")


def check_is(name: str, value: object, kind: type | tuple[type, ...], *, how: str) -> None:
    """Check that a value is of a class; `how` says how to make one."""
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be {how}, not {value!r}")


def check_table(name: str, value: object) -> None:
    """Check a mapping, which a file gives as a table."""
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(f"{name} must have an entry for each name, not {value!r}")


def check_one_of(name: str, value: object, *, allowed: Iterable[object]) -> None:
    """Check that a value is one of a closed set."""
    choices = [str(choice) for choice in allowed]
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_port(name: str, value: object) -> None:
    """Check a TCP port; 0 lets the system choose one."""
    or_else = f"and at most {HIGHEST_PORT}"
    if check_whole(name, value, smallest=0, or_else=or_else) > HIGHEST_PORT:
        raise ConfigurationError(f"{name} must be at most {HIGHEST_PORT}, not {value!r}")


def check_processes(name: str, value: object) -> None:
    """Check a number of processes."""
    if value != AUTO:
        or_else = f"or {AUTO!r} for one per processor core"
        check_whole(name, value, smallest=1, largest=MOST_PROCESSES, or_else=or_else)


def check_filled(name: str, value: object) -> None:
    """Check a string that must not be empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name} must be a string that is not empty, not {value!r}")
    if "\0" in value:
        raise ConfigurationError(f"{name} must be a string without U+0000, not {value!r}")


def check_filled_or_list(name: str, value: object) -> None:
    """Check a string that must not be empty, or a list of such strings."""
    if not isinstance(value, list):
        check_filled(name, value)
        return
    if not value:
        raise ConfigurationError(f"{name} must not be an empty list")
    for at, item in enumerate(value):
        check_filled(f"{name}[{at}]", item)


def check_forbidden_flags(name: str, value: object) -> None:
    """Check forbidden flags: a list of strings, a function that returns one, or None."""
    if value is not None and not callable(value):
        check_is(name, value, Sequence, how="a list of strings")  # it is read before each fetch
        check_texts(name, value)


def check_queue_size(name: str, value: object) -> None:
    """Check the size of a local queue."""
    if value != -1:
        check_whole(name, value, smallest=1, or_else="or -1 for none")


def check_max_crashes(name: str, value: object) -> None:
    """Check a number of crashes: one crash does not show which of several jobs caused it."""
    if value != 0 or isinstance(value, bool):
        check_whole(name, value, smallest=2, or_else="or 0 for never")


def check_job_ids(name: str, value: object) -> list[int]:
    """Check job ids: whole numbers, or their text, which is what Node returns."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name} must be a list of job ids, not {value!r}")
    return [check_job_id(name, each) for each in value]


def check_job_id(name: str, value: object) -> int:
    """Check one job id."""
    number: object = value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value) if len(value) < 20 else BIGINT_MAX + 1
    if not isinstance(number, int) or isinstance(number, bool):
        raise ConfigurationError(f"{name}: a job id is a whole number, not {value!r}")
    if not 0 <= number <= BIGINT_MAX:
        raise ConfigurationError(
            f"{name}: job id {value!r} is out of range, allowed are 0 to {BIGINT_MAX}"
        )
    return number


def check_progress(
    done: object, total: object, message: object
) -> tuple[float, float | None, str | None]:
    """Check how far a task says it is: a share, or an amount with its total."""
    text = None if message is None else check_text("message", message)
    if total is None:
        if not isinstance(done, float) or not 0 <= done <= 1:
            raise ConfigurationError(
                f"progress must be a share, a float from 0 to 1, or be given with its total: "
                f"progress(40, total=100), not {done!r}"
            )
        return done, None, text
    amounts = []
    for name, value in (("progress", done), ("total", total)):
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= LARGEST_AMOUNT
        ):
            raise ConfigurationError(f"{name} must be a number of at least 0, not {value!r}")
        amounts.append(value)
    if amounts[0] > amounts[1]:
        raise ConfigurationError(f"progress {done} is above its total {total}")
    return amounts[0], float(amounts[1]), text


def similar(task: str, known: Iterable[str]) -> str | None:
    """The known task with the most similar name; None if all are different."""
    import difflib  # noqa: PLC0415  # read only for a message

    return next(iter(difflib.get_close_matches(task, sorted(known), n=1)), None)
