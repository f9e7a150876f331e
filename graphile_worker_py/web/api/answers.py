"""Answers of the API, and which ones its calls have."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response

from graphile_worker_py import json_codec
from graphile_worker_py.web.api.models import ProblemOut
from graphile_worker_py.web.problems import CONTENT_TYPE

_MEANINGS: Final = {
    400: "The request can't be understood.",
    401: "Log in first.",
    403: "Not allowed: by the user's rights, or because the request comes from another site.",
    404: "There is no such job.",
    409: "It is locked, or in use.",
    410: "It is gone; a record of it says so.",
    413: "Too large; the limit is named.",
    415: "Another content type is needed.",
    421: "The host is not served here.",
    422: "A value is not allowed; `errors` has pointers.",
    429: "Too much at the moment; try again after `Retry-After` seconds.",
    503: "The database is away, too old or read-only; try again after `Retry-After` seconds.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a call answers with, besides those that all have."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}},
        }
        for status in sorted({401, 403, 421, 422, 503, *statuses})
    }


PROBLEM_MODEL: Final = ProblemOut


def answer(
    value: Any, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer, with payloads as they are stored."""
    return Response(
        json_codec.dumps(value),
        status_code=status,
        media_type="application/json",
        headers=None if headers is None else dict(headers),
    )
