"""JSON as job payloads need it: orjson's speed, without its limits on numbers and text."""

import json
import re
from typing import Any, Final

import orjson

# orjson turns integers beyond 64 bits into floats without a word; 20 digits may be such a number.
_LONG_DIGITS: Final = re.compile(rb"[0-9]{20}")


def dumps(value: Any) -> bytes:
    """Encode a value as compact JSON.

    Beyond plain JSON values orjson's types are taken too: dataclasses, datetimes, UUIDs, enums.
    NaN and the infinities become `null`, as JSON.stringify has it. Integers of any size keep all
    their digits.

    Raises:
        ValueError: The value can't be written as JSON; the message names the reason.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        reason = error
    try:
        # Integers beyond 64 bits and lone surrogates: the standard library writes both.
        return json.dumps(
            value, separators=(",", ":"), allow_nan=False, default=_default, ensure_ascii=True
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = str(reason) if isinstance(error, TypeError) else str(error)
        raise ValueError(f"not JSON-serialisable: {message}") from error


def _default(value: Any) -> Any:
    """Write what orjson knows and the standard library does not."""
    return json.loads(orjson.dumps(value))


def loads(text: bytes | str) -> Any:
    """Decode JSON, keeping all digits of integers and lone surrogates in strings.

    Raises:
        ValueError: The text is not JSON, or nested too deeply to be decoded.
    """
    raw = text.encode() if isinstance(text, str) else text
    if not _LONG_DIGITS.search(raw):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply to be decoded") from error
