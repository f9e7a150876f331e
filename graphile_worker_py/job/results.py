"""What a task has returned, as JSON, which is how results are kept and sent."""

from typing import Any

from graphile_worker_py import json_codec
from graphile_worker_py.errors import kind_of
from graphile_worker_py.records import Record


class OmittedResult(Record, kw_only=False):
    """Stands for a result that a process could not send.

    Args:
        why: The reason.
    """

    why: str


def written_result(result: Any, *, limit: int) -> tuple[str | None, str | None]:
    """A result as JSON, and why it is missing: one of both is None."""
    if isinstance(result, OmittedResult):
        return None, result.why
    try:
        text = json_codec.dumps_finite(result)
    except ValueError as error:
        return None, str(error)
    except BaseException as error:  # of a user's type that is being written
        return None, f"not JSON-serialisable: {kind_of(error)}"
    if len(text) > limit:
        return None, f"{len(text)} bytes, more than the result_limit of {limit}"
    return text.decode(), None
