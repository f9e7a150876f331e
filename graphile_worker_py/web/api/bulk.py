"""Add many jobs: a JSON array, a file by multipart, or NDJSON that is read as it comes."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.web import audit
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import BulkAdded, NewJob
from graphile_worker_py.web.context import Operator, Web, WebDep
from graphile_worker_py.web.problems import ProblemError

router = APIRouter(tags=["jobs"])
MOST_ERRORS: Final = 100
CHUNK: Final = 1_000
_NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/NewJob"},
                }
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}


@dataclass(slots=True)
class _Reading:
    """What was read so far.

    Attributes:
        most: How many jobs there may be.
        index: Number of the next job.
        errors: What is wrong, with indexes.
        keeps_going: Whether valid jobs are taken although others are not.
    """

    most: int
    keeps_going: bool
    index: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    def take(self, value: Any) -> JobSpec | None:
        """Check one job; None if it is not valid."""
        index, self.index = self.index, self.index + 1
        if index >= self.most:
            raise ProblemError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"at most {self.most:,} jobs may be added by one request",
                more={"limit": self.most},
            )
        try:
            return NewJob.model_validate(value).spec()
        except ValidationError as error:
            for each in error.errors(include_url=False, include_context=False):
                self.fault(index, "/" + "/".join(map(str, each["loc"])), each["msg"])
        except ConfigurationError as error:
            self.fault(index, "", str(error))
        return None

    def fault(self, index: int, pointer: str, detail: str) -> None:
        """Note what is wrong."""
        if len(self.errors) < MOST_ERRORS:
            self.errors.append({"index": index, "pointer": pointer.rstrip("/"), "detail": detail})


@router.post(
    "/jobs/bulk",
    status_code=201,
    response_model=BulkAdded,
    responses=problems(400, 409, 413, 415, 429),
    openapi_extra=_BODY,
    summary="Add many jobs",
)
async def add_jobs(
    request: Request,
    web: WebDep,
    access: Operator,
    partial: Annotated[bool, Query(description="Add the valid jobs.")] = False,  # noqa: FBT002
) -> Response:
    """Add many jobs. An array is added as a whole or not at all; NDJSON is added in chunks."""
    reading = _Reading(most=web.settings.max_bulk, keeps_going=partial)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with web.gate.entered():
        if kind in _NDJSON:
            created = await _add_lines(web, request.stream(), reading)
        elif kind == "multipart/form-data":
            created = await _add_all(web, await _uploaded(request), reading)
        elif kind in {"application/json", ""}:
            created = await _add_all(web, await request.body(), reading)
        else:
            raise ProblemError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "send application/json, application/x-ndjson or multipart/form-data",
            )
        await audit.record(web.site, access, "add jobs", count=created)
    return answer({"created": created, "errors": reading.errors}, status=HTTPStatus.CREATED)


async def _uploaded(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "the form has no file named `file`")
        return await file.read()


async def _add_all(web: Web, body: bytes, reading: _Reading) -> int:
    values = _values(body)
    specs = [spec for spec in map(reading.take, values) if spec is not None]
    _check(reading)
    utils = await web.site.utils()
    async with web.gate.admitted(Counter(spec.identifier for spec in specs)):
        return len(await utils.add_jobs(specs))


def _values(body: bytes) -> list[Any]:
    """The array, or the lines of NDJSON in a file."""
    text = body.strip()
    try:
        if text.startswith(b"["):
            return json_codec.loads(text)  # type: ignore[no-any-return]
        return [json_codec.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error


def _check(reading: _Reading) -> None:
    if reading.errors and not reading.keeps_going:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "nothing was added, because some jobs are not valid; ?partial=true adds the others",
            more={"created": 0, "errors": reading.errors},
        )


async def _add_lines(web: Web, stream: AsyncIterator[bytes], reading: _Reading) -> int:
    async def specs() -> AsyncIterator[JobSpec]:
        async for line in _lines(stream):
            try:
                value = json_codec.loads(line)
            except ValueError as error:
                reading.fault(reading.index, "", f"not JSON: {error}")
                reading.index += 1
                value = None
            spec = None if value is None else reading.take(value)
            if spec is None:
                _check(reading)
                continue
            await admitted.enter_async_context(web.gate.admitted({spec.identifier: 1}))
            added.append(None)
            yield spec

    added: list[None] = []
    utils = await web.site.utils()
    try:
        async with AsyncExitStack() as admitted:
            return await utils.add_jobs_from(specs(), chunk_size=CHUNK)
    except ProblemError as problem:
        # Earlier chunks are committed.
        problem.more["created"] = len(added) // CHUNK * CHUNK
        raise


async def _lines(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for block in stream:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest
