"""The five fields of a cron pattern, as Graphile Worker reads them."""

import re
from collections.abc import Iterator
from typing import Final

from graphile_worker_py.records import Record

# The whitespace of JavaScript's \s and trim(); Python's \s differs in a few characters.
WHITESPACE: Final = "\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"

_WORD: Final = re.compile(f"[^{WHITESPACE}]+")
_NUMBER: Final = re.compile("[0-9]+")
_RANGE: Final = re.compile("([0-9]+)-([0-9]+)")
_STEP: Final = re.compile(r"\*(?:/([0-9]+))?")

LONGEST_NUMBER: Final = 300
"""Longest number in digits. Longer ones are out of every range, and `int` refuses thousands."""


class Fault(Record, kw_only=False):
    """An error in a text, and its offset."""

    offset: int
    message: str


class Field(Record, kw_only=False):
    """One of the five fields: its name and its allowed values."""

    name: str
    smallest: int
    largest: int


FIELDS: Final = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12),
    Field("day of week", 0, 6),
)
_DAY_OF_WEEK: Final = FIELDS[4]
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Pattern(Record, kw_only=False):
    """When an item is due: the values of each field, sorted and without duplicates.

    Minute, hour and month must all match. A day field is restricted if it has fewer values than
    `*`: fewer than 31 days of the month, or fewer than 7 days of the week. If both day fields are
    restricted, one of them must match. Only the values matter, not how they are written: `1-31` is
    the same as `*`.

    Attributes:
        minutes: 0 to 59.
        hours: 0 to 23.
        dates: Days of the month, 1 to 31.
        months: 1 to 12.
        dows: Days of the week, 0 (Sunday) to 6.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    dates: tuple[int, ...]
    months: tuple[int, ...]
    dows: tuple[int, ...]

    @property
    def never_comes(self) -> bool:
        """Whether no month has one of the days, as for 31 February."""
        if len(self.dows) < _DAY_OF_WEEK.largest + 1:
            return False
        return self.dates[0] > max(_DAYS[month - 1] for month in self.months)


def parse_pattern(text: str) -> tuple[Pattern | None, list[Fault]]:
    """Read a pattern; None and the faults if it has any."""
    words = list(_WORD.finditer(text))
    if len(words) != len(FIELDS) or words[0].start() != 0 or words[-1].end() != len(text):
        return None, [
            Fault(0, f"{text!r} is not a pattern: expected five fields separated by whitespace")
        ]
    return parse_fields([(word.start(), word.group()) for word in words])


def parse_fields(words: list[tuple[int, str]]) -> tuple[Pattern | None, list[Fault]]:
    """Read the five words of a pattern, each with its offset; None and the faults if any."""
    faults: list[Fault] = []
    values: list[tuple[int, ...]] = []
    for field, (offset, word) in zip(FIELDS, words, strict=True):
        found: set[int] = set()
        for part_offset, part in _parts(word):
            read = _values(field, part)
            if isinstance(read, str):
                faults.append(Fault(offset + part_offset, f"{field.name} {part!r} {read}"))
            else:
                found.update(read)
        values.append(tuple(sorted(found)))
    return (None, faults) if faults else (Pattern(*values), [])


def number(digits: str) -> int:
    """The value of a string of digits, limited to `LONGEST_NUMBER` digits."""
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= LONGEST_NUMBER else 10**LONGEST_NUMBER


def words_of(text: str, *, most: int) -> Iterator[tuple[int, str]]:
    """The first `most` words of a text, each with its offset."""
    for count, word in enumerate(_WORD.finditer(text), start=1):
        yield word.start(), word.group()
        if count == most:
            return


def _parts(word: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for part in word.split(","):
        yield offset, part
        offset += len(part) + 1


def _values(field: Field, part: str) -> list[int] | str:
    """The values of one part of a list, or the error in it."""
    largest = 7 if field is _DAY_OF_WEEK else field.largest
    allowed = f"allowed are {field.smallest} to {largest}"
    if _NUMBER.fullmatch(part):
        value = number(part)
        if not field.smallest <= value <= largest:
            return f"is out of range: {allowed}"
        return [value % 7 if field is _DAY_OF_WEEK else value]
    if match := _RANGE.fullmatch(part):
        first, last = number(match[1]), number(match[2])
        if not (field.smallest <= first and last <= largest):
            return f"is out of range: {allowed}"
        if first >= last:
            return "is not a range: its end must be above its start"
        values = range(first, last + 1)
        return [value % 7 for value in values] if field is _DAY_OF_WEEK else list(values)
    if match := _STEP.fullmatch(part):
        step = 1 if match[1] is None else number(match[1])
        if step == 0:
            return "has a step of 0: allowed are 1 and above"
        return list(range(field.smallest, field.largest + 1, step))
    if not part:
        return "is empty: expected a number, a range a-b, * or */n"
    return f"is not understood: expected a number, a range a-b, * or */n ({allowed})"
