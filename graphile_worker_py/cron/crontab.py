"""Parse a crontab in Graphile Worker's format, with additions in comments.

Each item is a line of five fields, a task identifier, and optionally `?options` and a JSON5
payload. Lines that start with `#py:` are comments to Node workers. Here they hold further options
for the item in the next line, or an item for Python workers only.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_plus

from graphile_worker_py.checks import check_is, check_path
from graphile_worker_py.cron.items import (
    CronItemOptions,
    Overlap,
    ParsedCronItem,
    duplicates,
    raise_all,
    zone_named,
)
from graphile_worker_py.cron.json5_payload import loads_object
from graphile_worker_py.cron.pattern import (
    FIELDS,
    WHITESPACE,
    Fault,
    number,
    parse_fields,
    words_of,
)
from graphile_worker_py.errors import ConfigurationError, CrontabError
from graphile_worker_py.records import Record

PYTHON_ONLY: Final = "#py:"

_LINE_END: Final = re.compile("\r?\n")
_SPACE: Final = re.compile(f"[{WHITESPACE}]+")
_BREAK: Final = re.compile("[\r\u2028\u2029]")
_COMMAND: Final = re.compile(
    r"(?P<task>[A-Za-z_][A-Za-z0-9_:/-]*)"
    rf"(?:[{WHITESPACE}]+\?(?P<options>[^{WHITESPACE}]+))?"
    rf"(?:[{WHITESPACE}]+(?P<payload>\{{.*\}}))?",
    re.DOTALL,
)
_TASK: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_:/-]*(?=[{WHITESPACE}]|$)")
_DURATION: Final = re.compile("([0-9]+)([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_crontab(text: str) -> list[ParsedCronItem]:
    """Parse the text of a crontab.

    Raises:
        CrontabError: Lines are invalid; the error lists all faults of all lines, each with line,
            column, the text at fault and what is allowed.
        ConfigurationError: The argument is not text.
    """
    check_is("crontab", text, str, how="the text of a crontab")
    items: list[ParsedCronItem] = []
    errors: list[CrontabError] = []
    extras: _Line | None = None
    for line in _lines(text):
        if line.python_only and not line.text[:1].isdigit() and line.text[:1] != "*":
            if extras is not None:
                errors.append(_unused(extras))
            extras = line
            continue
        item, faults = _item(line)
        if extras is not None:
            if extras.number != line.number - 1:
                errors.append(_unused(extras))
            else:
                further, found = _extras(extras, python_only=line.python_only)
                errors.extend(extras.error(fault) for fault in found)
                if item is not None:
                    options = dataclasses.replace(item.options, **further)
                    item = dataclasses.replace(item, options=options)
            extras = None
        errors.extend(line.error(fault) for fault in faults)
        if item is not None:
            items.append(item)
    if extras is not None:
        errors.append(_unused(extras))
    raise_all([*errors, *duplicates(items)], of="crontab")
    return items


def read_crontab(path: str | Path) -> list[ParsedCronItem]:
    """Parse a crontab file.

    Raises:
        CrontabError: Lines are invalid, as in `parse_crontab`; the message begins with the file.
        ConfigurationError: The file can't be read.
    """
    check_path("crontab_file", path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"crontab file {str(path)!r} can't be read: {error.strerror}"
        ) from error
    # As in Node: bytes that are not UTF-8 become U+FFFD, and a byte order mark is whitespace.
    try:
        return parse_crontab(content.decode(errors="replace"))
    except CrontabError as error:
        raise CrontabError(
            f"crontab file {str(path)!r}: {error}",
            line=error.line,
            column=error.column,
            errors=error.errors,
        ) from None


class _Line(Record, kw_only=False):
    """A line that is neither empty nor a comment: its trimmed text, and the offset of that."""

    number: int
    offset: int
    text: str
    python_only: bool

    def error(self, fault: Fault) -> CrontabError:
        column = self.offset + fault.offset + 1
        return CrontabError(
            f"line {self.number}, column {column}: {fault.message}", line=self.number, column=column
        )


def _lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    for number_, raw in enumerate(_LINE_END.split(text), start=1):
        offset, content = _stripped(raw)
        python_only = content.startswith(PYTHON_ONLY)
        if python_only:
            further, content = _stripped(content[len(PYTHON_ONLY) :])
            offset += len(PYTHON_ONLY) + further
        if content and not content.startswith("#"):
            lines.append(_Line(number_, offset, content, python_only))
    return lines


def _stripped(text: str) -> tuple[int, str]:
    leading = _SPACE.match(text)
    start = leading.end() if leading else 0
    while text and _SPACE.fullmatch(text[-1]):
        text = text[:-1]
    return min(start, len(text)), text[start:]


def _unused(extras: _Line) -> CrontabError:
    return extras.error(
        Fault(0, f"{extras.text!r} has no item below it: expected one in the next line")
    )


def _item(line: _Line) -> tuple[ParsedCronItem | None, list[Fault]]:
    """Parse a line with an item."""
    words = list(words_of(line.text, most=len(FIELDS) + 1))
    if len(words) <= len(FIELDS):
        return None, [
            Fault(
                0,
                f"{line.text!r} is incomplete: expected five fields (minute, hour, day of month, "
                f"month, day of week) and a task identifier",
            )
        ]
    pattern, faults = parse_fields(words[: len(FIELDS)])
    start = words[len(FIELDS)][0]
    command, found = _command(line.text[start:])
    faults += [Fault(start + fault.offset, fault.message) for fault in found]
    if pattern is None or command is None or faults:
        return None, faults
    task, identifier, options, payload = command
    item = ParsedCronItem(
        identifier=task if identifier is None else identifier,
        task=task,
        match=pattern,
        options=options,
        payload=payload,
        line=line.number,
    )
    return item, []


_Command = tuple[str, str | None, CronItemOptions, dict[str, Any] | None]


def _command(text: str) -> tuple[_Command | None, list[Fault]]:
    """Parse the part after the five fields: task, identifier, options and payload."""
    if line_break := _BREAK.search(text):
        fault = f"{line_break.group()!r} is a line break: expected the item in one line"
        return None, [Fault(line_break.start(), fault)]
    match = _COMMAND.fullmatch(text)
    if match is None:
        return None, [_command_fault(text)]
    faults: list[Fault] = []
    options: dict[str, Any] = {}
    if match["options"] is not None:
        options, faults = _options(match["options"], match.start("options"))
    payload: dict[str, Any] | None = None
    if match["payload"] is not None:
        try:
            payload = loads_object(match["payload"])
        except ValueError as error:
            message = f"payload {match['payload']!r} is not a JSON5 object: {error}"
            faults.append(Fault(match.start("payload"), message))
    if faults:
        return None, faults
    identifier = options.pop("identifier", None)
    if options.get("job_key"):
        options.setdefault("job_key_mode", "replace")
    return (match["task"], identifier, CronItemOptions(**options), payload), []


def _command_fault(text: str) -> Fault:
    """Find the part of a command that is invalid."""
    task = _TASK.match(text)
    if task is None:
        word = next(words_of(text, most=1))[1]
        return Fault(
            0,
            f"task identifier {word!r} is not allowed: expected a letter or _, then letters, "
            f"digits, _ : / -",
        )
    words = list(words_of(text, most=3))
    offset, word = words[1]
    if word == "?":
        return Fault(offset, "'?' has no options after it: expected ?key=value&key=value")
    if word.startswith("?"):
        offset = words[2][0]
    rest = text[offset:]
    return Fault(
        offset,
        f"{rest!r} is not understood: expected a payload from {{ to }} up to the end of the line"
        + ("" if word.startswith("?") else ", or ?options before it"),
    )


_Read = Callable[[str], Any]


def _duration(text: str) -> float | None:
    """Seconds of a duration such as `1d12h`; None if the text is not a duration."""
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        return None
    seconds = sum(number(digits) * _SECONDS[unit] for digits, unit in _DURATION.findall(text))
    return float(min(seconds, 10**300))


def _matching(pattern: str, make: Callable[[str], Any] = str) -> _Read:
    def read(text: str) -> Any:
        return make(text) if re.fullmatch(pattern, text) else None

    return read


def _signed(text: str) -> int:
    return -number(text[1:]) if text.startswith("-") else number(text)


_LETTERS: Final = "letters, digits, _ and -"
_OPTIONS: Final[dict[str, tuple[str, _Read, str]]] = {
    "id": (
        "identifier",
        _matching("[A-Za-z_][A-Za-z0-9_-]*"),
        f"a letter or _, then {_LETTERS}",
    ),
    "fill": ("backfill_period", _duration, "a duration like 30s, 10m, 12h, 1d, 2w or 1d12h"),
    "max": ("max_attempts", _matching("[0-9]+", number), "digits"),
    "queue": ("queue_name", _matching("[A-Za-z0-9_:-]+"), f"{_LETTERS} and :"),
    "jobKey": ("job_key", str, "any text"),
    "jobKeyMode": (
        "job_key_mode",
        _matching("replace|preserve_run_at"),
        "replace or preserve_run_at",
    ),
    "priority": ("priority", _matching("-?[0-9]+", _signed), "a whole number"),
}


def _options(query: str, start: int) -> tuple[dict[str, Any], list[Fault]]:
    """Parse the options of an item, in the syntax of a URL's query."""
    options: dict[str, Any] = {}
    faults: list[Fault] = []
    offset = start
    for assignment in query.split("&"):
        if assignment:
            raw_key, _, raw_value = assignment.partition("=")
            fault = _assign(options, unquote_plus(raw_key), unquote_plus(raw_value), _OPTIONS)
            if fault is not None:
                faults.append(Fault(offset, fault))
        offset += len(assignment) + 1
    return options, faults


def _assign(
    options: dict[str, Any], key: str, value: str, known: dict[str, tuple[str, _Read, str]]
) -> str | None:
    """Add an option to `options`, or return the error in it."""
    if key not in known:
        return f"there is no option {key!r}: allowed are {', '.join(known)}"
    name, read, allowed = known[key]
    if name in options:
        return f"option {key!r} is given twice"
    read_value = read(value)
    if read_value is None:
        return f"option {key!r} can't be {value!r}: expected {allowed}"
    options[name] = read_value
    return None


def _zone(text: str) -> str | None:
    try:
        zone_named(text)
    except ConfigurationError:
        return None
    return text


_EXTRAS: Final[dict[str, tuple[str, _Read, str]]] = {
    "timezone": ("timezone", _zone, "a time zone known to this machine, like Europe/Berlin"),
    "jitter": ("jitter", _duration, "a duration like 30s or 1m30s"),
    "overlap": ("overlap", _matching("allow|skip", Overlap), "allow or skip"),
    "maxBackfill": ("max_backfill", _matching("[0-9]+", number), "digits"),
}


def _extras(line: _Line, *, python_only: bool) -> tuple[dict[str, Any], list[Fault]]:
    """Parse the further options in the line above an item."""
    options: dict[str, Any] = {}
    faults: list[Fault] = []
    for offset, word in words_of(line.text, most=len(line.text)):
        key, _, value = word.partition("=")
        fault = _assign(options, key, value, _EXTRAS)
        if fault is None and key == "timezone" and not python_only:
            fault = (
                f"timezone {value!r} is for an item that Node workers would run, too, but in UTC: "
                f"begin the item's line with {PYTHON_ONLY}, so that only Python workers run it"
            )
        if fault is not None:
            faults.append(Fault(offset, fault))
    return options, faults
