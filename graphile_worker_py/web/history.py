"""What workers have recorded; None where they record nothing, or the role may not read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from psycopg import errors

from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql import error_groups, runs
from graphile_worker_py.sql.error_groups import ErrorGroup
from graphile_worker_py.sql.inspect import JobState, ListedJob, get_job
from graphile_worker_py.sql.job_ends import EndStatus, JobOutcome, Look, read_ends
from graphile_worker_py.sql.job_state import Reported, read_reported
from graphile_worker_py.sql.runs import JobRun
from graphile_worker_py.sql.side_tables import reading
from graphile_worker_py.sql.task_trends import Trend, read_trends
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.site import Site

T = TypeVar("T")
SHARED: Final = 5.0
MOST_RUNS: Final = 100
MOST_GROUPS: Final = 50
GONE: Final = (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege)
"""Raised for some seconds after the tables were dropped, or a right was revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A range of time that charts show.

    Attributes:
        name: Its name in the address.
        seconds: How long it is.
        step: Seconds of each step.
    """

    name: str
    seconds: float
    step: float

    def labels(self) -> list[tuple[datetime, str]]:
        """When each step begins, and how that is written."""
        now = utc_now().timestamp()
        last = now - now % self.step
        count = round(self.seconds / self.step)
        moments = [
            datetime.fromtimestamp(last - self.step * back, utc_now().tzinfo)
            for back in range(count - 1, -1, -1)
        ]
        form = "%H:%M" if self.seconds <= 86_400 else "%m-%d %H:%M"
        return [(moment, moment.strftime(form)) for moment in moments]


RANGES: Final = {
    "1h": Range(name="1h", seconds=3600, step=60),
    "24h": Range(name="24h", seconds=86_400, step=1800),
    "7d": Range(name="7d", seconds=7 * 86_400, step=4 * 3600),
}


async def job_runs(site: Site, job_id: int) -> list[JobRun] | None:
    """The attempts of a job, the first one first."""
    return await site.drive(runs_of(site.schema, job_id))


def runs_of(schema: str, job_id: int) -> Steps[list[JobRun] | None]:
    """Read the attempts of a job, the first one first."""
    steps = runs.list_runs(
        schema,
        job_id=job_id,
        task=None,
        outcome=None,
        since=None,
        until=None,
        limit=MOST_RUNS,
        after=None,
    )
    found = yield from kept(steps)
    return None if found is None else found[::-1]


async def reported(site: Site, jobs: Sequence[ListedJob]) -> dict[int, Reported]:
    """How far the running ones of some jobs are, by their ids."""
    running = {job.id: job.created_at for job in jobs if job.state is JobState.RUNNING}
    if not running:
        return {}
    fact = Fact(
        key=("reported", *running),
        shared=1.0,
        steps=lambda: kept(read_reported(site.schema, list(running))),
    )
    found = await site.fact(fact) or {}
    return {
        job_id: each for job_id, each in found.items() if each.created_at == running.get(job_id)
    }


def is_reported(schema: str) -> Fact[object]:
    """Whether `reported` may read; to be asked together with what jobs there are."""
    return Fact(key="is reported", shared=1.0, steps=lambda: kept(reading(schema, "job_state")))


async def trends(site: Site, wanted: Range, *, task: str | None = None) -> list[Trend] | None:
    """The counters of one task or of all, within a range: by step, and by task."""
    return await site.fact(trends_fact(site.schema, wanted, task=task))


def trends_fact(schema: str, wanted: Range, *, task: str | None = None) -> Fact[list[Trend] | None]:
    """See `trends`."""

    def steps() -> Steps[list[Trend] | None]:
        return kept(read_trends(schema, task=task, seconds=wanted.seconds, step=wanted.step))

    return Fact(key=("trends", wanted.name, task), shared=SHARED, steps=steps)


async def groups(site: Site, *, task: str | None = None) -> list[ErrorGroup] | None:
    """The groups of errors of the last day."""
    return await site.fact(groups_fact(site.schema, task=task))


def groups_fact(schema: str, *, task: str | None = None) -> Fact[list[ErrorGroup] | None]:
    """See `groups`."""

    def steps() -> Steps[list[ErrorGroup] | None]:
        since = timedelta(days=1)
        return kept(error_groups.error_groups(schema, task=task, since=since, limit=MOST_GROUPS))

    return Fact(key=("groups", task), shared=SHARED, steps=steps)


async def is_kept(site: Site, table: str) -> bool:
    """Whether a table of history is there, and the role may write to it."""

    def look() -> Steps[bool]:
        yield from reading(site.schema, table, right="insert")
        return True

    return await if_kept(site, look()) or False


async def end(site: Site, job_id: int) -> Look:
    """Whether a job has ended, and how as far as that is known."""

    def look() -> Steps[Look]:
        yield from reading(site.schema, "runs")
        ends: dict[int, Look] = yield read_ends(site.schema, [(job_id, None)])
        return ends[job_id]

    found = await if_kept(site, look())
    if found is not None:
        return found
    job = await site.read(get_job(job_id))
    if job is None or job.state is not JobState.FAILED:
        return Look(job is not None, None)
    failed = JobOutcome(status=EndStatus.FAILED, error=job.last_error, attempts=job.attempts)
    return Look(exists=True, outcome=failed)


async def if_kept(site: Site, steps: Steps[T]) -> T | None:
    """What steps have read of the side schema; None where its tables are missing."""
    return await site.drive(kept(steps))


def kept(steps: Steps[T]) -> Steps[T | None]:
    """The same steps; None where tables of the side schema are missing."""
    try:
        return (yield from steps)
    except (MissingTablesError, *GONE):
        return None
