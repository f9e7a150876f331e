"""The JSON5 payload of a crontab line, with the values that JavaScript reads from it."""

import json
import math
from decimal import Decimal
from typing import Any, Final

import json5

MOST_JSON5: Final = 32_768
"""Characters; reading this many takes a second."""
_EXACT: Final = 2**53
_PLAIN: Final = 1e21


def loads_object(text: str) -> dict[str, Any]:
    """Read a JSON5 object.

    Numbers are converted as in JavaScript, where all numbers are floats, so that a Python worker
    adds the same job as a Node worker: `1.0` is 1, big integers lose their last digits, NaN and
    infinities are null.

    Raises:
        ValueError: The text is not a JSON5 object.
    """
    try:
        value = _loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  # callers expect one kind of error
    return {key: _as_in_javascript(each) for key, each in value.items()}


def _loads(text: str) -> Any:
    try:
        # Most payloads are JSON, which is read ten thousand times as fast.
        return json.loads(text)
    except ValueError:
        if len(text) > MOST_JSON5:
            raise ValueError(
                f"{len(text)} characters that are not JSON; JSON5 may have {MOST_JSON5}"
            ) from None
    return json5.loads(text)


def _as_in_javascript(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_in_javascript(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_in_javascript(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    if isinstance(value, int) and abs(value) <= _EXACT:
        return value
    if not number.is_integer() or abs(number) >= _PLAIN:
        return number
    # The shortest digits that identify the float, then zeros.
    return int(Decimal(repr(number)))
