"""Values of options as environment variables and flags give them: as texts."""

import json
from contextlib import suppress
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options.declaring import Kind, Option

_YES: Final = ("true", "yes", "on", "1")
_NO: Final = ("false", "no", "off", "0")


def typed(option: Option, value: Any) -> Any:
    """Convert the text of a variable or a flag; text that can't be converted stays as it is."""
    if not isinstance(value, str):
        return value
    match option.kind:
        case Kind.WHOLE | Kind.SECONDS | Kind.NUMBER:
            try:
                return int(value) if option.kind is Kind.WHOLE else float(value)
            except ValueError:
                return value
        case Kind.YES_NO:
            return value.lower() in _YES if value.lower() in (*_YES, *_NO) else value
        case Kind.TEXTS:
            return [part.strip() for part in value.split(",") if part.strip()]
        case Kind.TABLE:
            with suppress(ValueError):
                return json.loads(value)
    return value


def check_yes_no(name: str, value: object, *, in_file: bool) -> None:
    """Raise ConfigurationError if a value is neither true nor false, naming what its source takes.

    Args:
        name: The option.
        value: Its value, as `typed` has converted it.
        in_file: Whether a file gives it, where it is no text.
    """
    if not isinstance(value, bool):
        words = ", ".join((*_YES, *_NO))
        allowed = "true or false, without quotes" if in_file else f"one of {words}"
        raise ConfigurationError(f"{name} must be {allowed}, not {value!r}")
