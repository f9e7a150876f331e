"""Hide values of payloads and errors that match patterns."""

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final

HIDDEN: Final = "[redacted]"
_KEY: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:')


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


class Redaction:
    """Hides the values whose keys match one of some patterns.

    Args:
        patterns: `*` stands for any text, upper and lower case are the same. A pattern without `$`
            is compared with each key at any depth. One like `$.card.*` is compared with the whole
            path; an array's elements have their index as key.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._keys = [each.casefold() for each in patterns if not each.startswith("$")]
        self._paths = [each.casefold().split(".")[1:] for each in patterns if each.startswith("$")]

    def hides(self, path: Sequence[str]) -> bool:
        """Whether the value that these keys lead to, or one around it, is hidden."""
        folded = [each.casefold() for each in path]
        if any(fnmatchcase(key, pattern) for key in folded for pattern in self._keys):
            return True
        return any(
            len(pattern) <= len(folded) and all(map(fnmatchcase, folded, pattern))
            for pattern in self._paths
        )

    def payload(self, text: bytes) -> bytes:
        """JSON text with values hidden; unchanged, byte for byte, where there are none."""
        if not self._paths and not any(
            fnmatchcase(key.group(1).decode(errors="replace").casefold(), pattern)
            for key in _KEY.finditer(text)
            for pattern in self._keys
        ):
            return text
        try:
            value = json.loads(
                text, object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number
            )
            return self._written(value, ()).encode("utf-8", "backslashreplace")
        except (ValueError, RecursionError):
            return json.dumps(HIDDEN).encode()

    def text(self, text: str) -> str:
        """A message with the values behind matching keys hidden, as in `password=…`."""
        return text if self._in_text is None else self._in_text.sub(rf"\1{HIDDEN}", text)

    @cached_property
    def _in_text(self) -> re.Pattern[str] | None:
        words = [re.escape(key).replace(r"\*", r"[\w.-]*") for key in self._keys]
        if not words:
            return None
        value = r"\"[^\"]*\"|'[^']*'|[^\s,;&})\]]+"
        return re.compile(rf"(?i)((?:{'|'.join(words)})[\"']?\s*[:=]\s*)(?:{value})")

    def _written(self, value: Any, path: tuple[str, ...]) -> str:
        if path and self.hides(path[-1:] if not self._paths else path):
            return json.dumps(HIDDEN)
        match value:
            case _Pairs():
                items = (
                    f"{json.dumps(key)}: {self._written(item, (*path, key))}" for key, item in value
                )
                return "{" + ", ".join(items) + "}"
            case list():
                elements = (self._written(item, (*path, str(at))) for at, item in enumerate(value))
                return "[" + ", ".join(elements) + "]"
            case _Number():
                return str(value)
        return json.dumps(value, ensure_ascii=False)


class _Pairs(tuple[tuple[str, Any], ...]):
    """The pairs of an object, in order, with keys that come twice."""

    __slots__ = ()
