"""Probes and metrics: `/livez`, `/readyz`, `/metrics`."""

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from graphile_worker_py.sql.inspect import JobState
from graphile_worker_py.web import facts
from graphile_worker_py.web.api.answers import problems
from graphile_worker_py.web.census import Standing
from graphile_worker_py.web.context import Viewer, WebDep

probes = APIRouter(tags=["probes"])
router = APIRouter(tags=["probes"])
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@probes.get("/livez", response_class=PlainTextResponse, summary="Is the process alive?")
async def livez() -> str:
    """Answers as long as the process works; needs no log-in."""
    return "ok\n"


@probes.get(
    "/readyz",
    response_class=PlainTextResponse,
    responses=problems(),
    summary="Is the database there?",
)
async def readyz(web: WebDep) -> str:
    """Answers 200 if the database can be reached; needs no log-in."""
    database = await web.site.open()
    async with database.connection(web.settings.statement_timeout):
        pass
    return "ok\n"


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(), summary="Metrics")
async def metrics(web: WebDep, _access: Viewer) -> Response:
    """Numbers of jobs and pools in Prometheus' text format."""
    lines = [*_jobs(await facts.standing(web.site))]
    pools = await facts.pools(web.site)
    if pools is not None:
        living = [pool for pool in pools if not pool.overdue]
        lines += [
            "# TYPE graphile_worker_pools gauge",
            f"graphile_worker_pools {len(living)}",
            "# TYPE graphile_worker_slots gauge",
            f"graphile_worker_slots {sum(pool.concurrency or 0 for pool in living)}",
        ]
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return Response("\n".join([*lines, ""]), media_type=kind)


def _jobs(standing: Standing) -> Iterator[str]:
    counts = standing.counts
    if counts is None:
        return
    yield "# HELP graphile_worker_jobs Jobs by task and state."
    yield "# TYPE graphile_worker_jobs gauge"
    for task in counts.tasks():
        for state in JobState:
            name = task.translate(_ESCAPES)
            jobs = counts.states[task, str(state)]
            yield f'graphile_worker_jobs{{task="{name}",state="{state}"}} {jobs}'
    yield "# HELP graphile_worker_count_age_seconds Age of these numbers."
    yield "# TYPE graphile_worker_count_age_seconds gauge"
    yield f"graphile_worker_count_age_seconds {standing.age:.1f}"
    yield "# TYPE graphile_worker_oldest_ready_age_seconds gauge"
    yield f"graphile_worker_oldest_ready_age_seconds {counts.oldest or 0:.1f}"
