"""The language of filters: `task:invoice state:failed payload.customer:42 timeout`."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from graphile_worker_py.clock import utc_now
from graphile_worker_py.sql.inspect import JobState
from graphile_worker_py.sql.windows import Filter

_WORD: Final = re.compile(r'\s*(?:([a-z][\w.-]*):)?(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TEXTS: Final = ("task", "queue", "key", "flag", "worker", "error")
LONGEST: Final = 1000


class FilterError(ValueError):
    """A filter can't be understood; the message says which part of it."""


def parse(text: str) -> Filter:
    """Parse a filter.

    Raises:
        FilterError: It can't be understood.
    """
    if len(text) > LONGEST or "\0" in text:
        raise FilterError(f"a filter has at most {LONGEST} characters, without NUL")
    found = Filter()
    words: list[str] = []
    for name, value in _parts(text):
        if name is None:
            words.append(value)
        else:
            found = _with(found, name, value)
    return replace(found, text=" ".join(words)) if words else found


def _parts(text: str) -> Iterator[tuple[str | None, str]]:
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise FilterError(f"unexpected text: {text[at : at + 20]!r}")
        name, quoted, plain = match.groups()
        value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if name is not None and not _is_known(name):
            # An error message may contain a colon.
            name, value = None, f"{name}:{value}"
        yield name, value
        at = match.end()


def _is_known(name: str) -> bool:
    return name in {*_TEXTS, "state", "before", "after"} or name.startswith("payload.")


def _with(found: Filter, name: str, value: str) -> Filter:
    if name == "state":
        if value not in set(JobState):
            allowed = ", ".join(JobState)
            raise FilterError(f"state must be one of {allowed}, not {value!r}")
        return replace(found, state=JobState(value))
    if name in {"before", "after"}:
        moments: dict[str, Any] = {name: _moment(name, value)}
        return replace(found, **moments)
    if name.startswith("payload."):
        return replace(found, path=tuple(name.split(".")[1:]), equals=value)
    texts: dict[str, Any] = {name: value}
    return replace(found, **texts)


def _moment(name: str, value: str) -> datetime:
    ago = _AGO.fullmatch(value)
    try:
        if ago is not None:
            return utc_now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise FilterError(
            f"{name} must be a time like 2026-01-31T04:00Z or 2h, not {value!r}"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def written(wanted: Filter) -> str:
    """A filter in this language."""
    parts = []
    for name in ("state", *_TEXTS):
        value = getattr(wanted, name)
        if value is not None:
            parts.append(f"{name}:{_quoted(str(value))}")
    if wanted.path is not None and wanted.equals is not None:
        parts.append(f"payload.{'.'.join(wanted.path)}:{_quoted(wanted.equals)}")
    for name in ("before", "after"):
        moment = getattr(wanted, name)
        if moment is not None:
            parts.append(f"{name}:{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    if wanted.text is not None:
        parts.append(_quoted(wanted.text, always=":" in wanted.text))
    return " ".join(parts)


def _quoted(value: str, *, always: bool = False) -> str:
    if value and not always and not re.search(r'[\s"]', value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
