"""JSON as job payloads need it: orjson's speed, without its limits on numbers and text."""

import functools
import gc
import importlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any, Final

import orjson

_LARGE: Final = 2**20
MOST_PLACES: Final = 1_000_000
"""Most lists, dicts and objects of a payload in which a fault is looked for."""
INSTEAD: Final = {
    "set": "list(...)",
    "frozenset": "list(...)",
    "Decimal": "str(...) or float(...)",
    "bytes": "text, for example base64",
    "bytearray": "text, for example base64",
    "complex": "a list of two numbers",
    "timedelta": "its total_seconds()",
    "coroutine": "what it returns: await it",
    "generator": "list(...)",
    "PosixPath": "str(...)",
}
"""What to put into a payload in place of what JSON does not have."""
# orjson silently turns integers beyond 64 bits into floats. Numbers of this many digits may be one.
_SHORTEST_LONG: Final = 20
_LONG_DIGITS: Final = re.compile(rb"-[0-9]{19}|[0-9]{20}")


def dumps(value: Any) -> bytes:
    """Encode a value as compact JSON.

    In addition to plain JSON values, orjson's types are accepted (datetimes, UUIDs, enums), and
    objects with fields: dataclasses, msgspec structs, pydantic models. NaN and the infinities
    become `null`, as with JSON.stringify. Integers of any size keep all their digits.

    Raises:
        ValueError: The value can't be written as JSON; the message names the reason and the place.
    """
    try:
        return orjson.dumps(value, _encoded, orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError as error:
        # orjson's message names the object that it could not write; its cause says why.
        reason = error.__cause__ or error
    try:
        # Integers beyond 64 bits and lone surrogates: the standard library writes both.
        return _by_standard_library(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = str(reason) if isinstance(error, TypeError) else str(error)
        place = _first_place(value, _is_unwritable)
        if place is not None:
            message = f"{place[0]} is {_described(place[1])}"
        raise ValueError(f"not JSON-serialisable: {message}") from error


def dumps_finite(value: Any) -> bytes:
    """Encode a value as compact JSON, without NaN and the infinities.

    Raises:
        ValueError: As for `dumps`, or a number is not finite; the message names the place.
    """
    encoded = dumps(value)
    # They are written as null, so only then is there something to look for.
    if b"null" in encoded:
        place = _first_place(value, _is_not_finite)
        if place is not None:
            raise ValueError(
                f"not JSON-serialisable: {place[0]} is {place[1]}, not a finite number"
            )
    return encoded


def _by_standard_library(value: Any) -> bytes:
    try:
        return _WRITER.encode(value).encode()
    except ValueError as error:
        if not str(error).startswith("Out of range float"):
            raise
    # It can't write them as null, so they are replaced before.
    return _FINITE_WRITER.encode(_finite(value)).encode()


def _finite(value: Any) -> Any:
    """The same with None for NaN and the infinities."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _encoded(value: Any) -> orjson.Fragment:
    """Write an object with fields, by the library that can read it back."""
    kind = type(value)
    if hasattr(kind, "__pydantic_serializer__"):
        return orjson.Fragment(kind.__pydantic_serializer__.to_json(value, by_alias=True))
    if not hasattr(kind, "__struct_fields__") and not hasattr(kind, "__dataclass_fields__"):
        raise TypeError(f"Type is not JSON serializable: {kind.__name__}")
    msgspec = _msgspec()
    if msgspec is None:
        return orjson.Fragment(orjson.dumps(value, _encoded))
    return orjson.Fragment(msgspec.json.encode(value, enc_hook=_plain))


def _first_place(value: Any, is_fault: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """The first value within a value that has a fault, with its path: `$.items[2].price`."""
    left = [("$", value)]
    seen: set[int] = set()
    while left and len(seen) < MOST_PLACES:
        path, item = left.pop()
        if id(item) in seen:  # a value within itself
            continue
        children = list(_children(item))
        if children:
            seen.add(id(item))
        if is_fault(item) and not any(is_fault(child) for _, child in children):
            return path, item
        left += [(f"{path}{step}", child) for step, child in reversed(children)]
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The values that a value is made of, with the step of a path that leads to each."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]", item
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield f"[{at}]", item
    else:
        for about in ("__struct_fields__", "__pydantic_fields__", "__dataclass_fields__"):
            for name in getattr(type(value), about, ()):
                yield f".{name}", getattr(value, name, None)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_unwritable(value: Any) -> bool:
    if isinstance(value, dict):
        return any(not isinstance(key, str) for key in value)
    if isinstance(value, list | tuple | str | int | float | None):
        return False
    try:
        _WRITER.encode(value)
    except (TypeError, ValueError, RecursionError):
        return not any(True for _ in _children(value))
    return False


def _described(value: Any) -> str:
    """What a value is that can't be written, and what to write instead."""
    if isinstance(value, dict):
        key = next(key for key in value if not isinstance(key, str))
        return f"a dict with the key {key!r}; keys must be strings"
    kind = type(value).__name__
    instead = INSTEAD.get(kind)
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    return f"{article} {kind}" + (f"; write {instead}" if instead else "")


def _plain(value: Any) -> Any:
    """Turn what the standard library and msgspec do not write into what they do."""
    kind = type(value)
    if hasattr(kind, "__pydantic_serializer__"):
        return kind.__pydantic_serializer__.to_python(value, mode="json", by_alias=True)
    if hasattr(kind, "__struct_fields__") or hasattr(kind, "__dataclass_fields__"):
        msgspec = _msgspec()
        if msgspec is None:
            return {field.name: getattr(value, field.name) for field in fields(value)}
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_plain)
    return json.loads(orjson.dumps(value))


def _finite_plain(value: Any) -> Any:
    return _finite(_plain(value))


_WRITER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain)
_FINITE_WRITER: Final = json.JSONEncoder(
    separators=(",", ":"), allow_nan=False, default=_finite_plain
)


@functools.cache
def _msgspec() -> ModuleType | None:
    """The library msgspec, where it is installed: it writes more kinds of fields than orjson."""
    try:
        return importlib.import_module("msgspec")
    except ModuleNotFoundError:
        return None


_STRUCTURE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},]')


def texts_of_items(array: bytes) -> list[str]:
    """The JSON text of each item of an array that is valid JSON, as it is written there."""
    text = array.decode()
    found: list[str] = []
    depth, begin = 0, text.index("[") + 1
    for token in _STRUCTURE.finditer(text):
        match token[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
        if (token[0] == "," and depth == 1) or depth == 0:
            found.append(text[begin : token.start()].strip())
            begin = token.end()
    return found if found != [""] else []


def loads(text: bytes | str) -> Any:
    """Decode JSON, keeping all digits of integers and lone surrogates in strings.

    Raises:
        ValueError: The text is not JSON, or nested too deeply to be decoded.
    """
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) >= _LARGE and gc.isenabled():
        # Millions of new objects start many collections, which take most of the time.
        gc.disable()
        try:
            return _loads(raw)
        finally:
            gc.enable()
    return _loads(raw)


def _loads(raw: bytes) -> Any:
    if len(raw) < _SHORTEST_LONG or not _LONG_DIGITS.search(raw):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply to be decoded") from error
