"""Results, errors and logs as they are stored: as JSON or text, and not too long."""

from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.errors import kind_of

LARGEST_STATEMENT: Final = 8 * 1024**2
"""Bytes of results, errors and logs that one statement carries, unless one job has more."""
LONGEST_TEXT: Final = 64 * 1024
"""Characters of an error, and of the logs of an attempt."""


def encoded(result: Any, *, limit: int) -> tuple[str | None, str | None]:
    """A result as JSON, and why it is missing: one of both is None."""
    try:
        text = json_codec.dumps(result)
    except ValueError as error:
        return None, str(error)
    except BaseException as error:  # of a user's type that is being written
        return None, f"not JSON-serialisable: {kind_of(error)}"
    if len(text) > limit:
        return None, f"{len(text)} bytes, more than the result_limit of {limit}"
    return text.decode(), None
