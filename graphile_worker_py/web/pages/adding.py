"""The page with a form that adds a job."""

import json
import math
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.web import adding, facts
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.api.models import NewJob
from graphile_worker_py.web.context import Operator, web_of
from graphile_worker_py.web.pages.rendering import back, render
from graphile_worker_py.web.problems import ProblemError

router = APIRouter()
MOST_SUGGESTED: Final = 500
_FIELDS: Final = ("task", "queue_name", "run_at", "priority", "max_attempts", "job_key")


class _FaultyError(ValueError):
    """What was typed is not a job.

    Args:
        faults: What is wrong, by the name of the field; under the empty name, with the whole.
        status: The status of the answer.
    """

    def __init__(
        self, faults: dict[str, str], *, status: HTTPStatus = HTTPStatus.UNPROCESSABLE_ENTITY
    ) -> None:
        super().__init__("; ".join(faults.values()))
        self.faults = faults
        self.status = status


@router.get("/jobs/new")
async def new_job(
    request: Request, access: Operator, task: Annotated[str, Query(max_length=1000)] = ""
) -> Response:
    """The form, empty but for a task that the address may name."""
    return await _form(request, access, {"task": task})


@router.post("/jobs/new")
async def add_job(request: Request, access: Operator) -> Response:
    """Add a job, or show the form again with what was typed, and what is wrong with it."""
    async with request.form(max_fields=20, max_files=0) as form:
        typed = {name: value for name, value in form.items() if isinstance(value, str)}
    try:
        job_id = await _added(request, access, typed)
    except _FaultyError as error:
        return await _form(request, access, typed, faults=error.faults, status=error.status)
    return back(request, f"jobs/{job_id}", done="add")


async def _added(request: Request, access: Access, typed: dict[str, str]) -> int:
    """Add the job that was typed.

    Raises:
        _FaultyError: It is not a job, or too many wait.
    """
    web = web_of(request)
    job = _job(typed)
    try:
        async with web.gate.entered(), web.gate.admitted({job.task: 1}):
            added = await adding.add(web.site, access, job.spec())
    except ProblemError as error:
        if error.status is not HTTPStatus.TOO_MANY_REQUESTS:
            raise
        raise _FaultyError({"": error.detail}, status=error.status) from error
    except ConfigurationError as error:
        raise _FaultyError({"": str(error)}) from error
    await web.site.changed()
    return added.id


def _job(typed: dict[str, str]) -> NewJob:
    """The job that was typed."""
    given: dict[str, Any] = {name: typed.get(name, "").strip() or None for name in _FIELDS}
    faults: dict[str, str] = {}
    for name, read in (("payload", _payload), ("run_at", _moment)):
        try:
            given[name] = read(typed.get(name, "").strip())
        except ValueError as error:
            faults[name] = str(error)
            given[name] = None
    try:
        job = NewJob.model_validate({**given, "task": given["task"] or ""})
    except ValidationError as error:
        found = {str(each["loc"][0]): _said(each) for each in error.errors()}
        raise _FaultyError({**found, **faults}) from error
    if faults:
        raise _FaultyError(faults)
    return job


def _said(fault: Any) -> str:
    if fault["loc"] == ("task",):
        return "give the name of a task: 1 to 128 characters, without spaces around it"
    message: str = fault["msg"]
    return message.removeprefix("Value error, ")


def _payload(text: str) -> Any:
    if not text:
        return None
    try:
        json_codec.loads(text)  # refuses what is nested too deeply
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON can hold")
    return number


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no time like 2026-01-31T04:00") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def _form(
    request: Request,
    access: Access,
    typed: dict[str, str],
    *,
    faults: dict[str, str] | None = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    site = web_of(request).site
    await site.know(facts.pools_fact(site.schema), facts.NAMES)
    return render(
        request,
        "new_job.html",
        page="jobs",
        title="Add a job",
        access=access,
        status=int(status),
        typed=typed,
        faults=faults or {},
        tasks=(await facts.task_names(site))[:MOST_SUGGESTED],
    )
