"""What workers have recorded; None where they record nothing, or the role may not read it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql import error_groups, runs, task_minutes
from graphile_worker_py.sql.error_groups import ErrorGroup
from graphile_worker_py.sql.runs import JobRun
from graphile_worker_py.sql.task_minutes import TaskStats
from graphile_worker_py.web.site import Site

T = TypeVar("T")
SHARED: Final = 5.0
MOST_RUNS: Final = 100


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
    steps = runs.list_runs(
        site.schema,
        job_id=job_id,
        task=None,
        outcome=None,
        since=None,
        until=None,
        limit=MOST_RUNS,
        after=None,
    )
    found = await _if_kept(site, steps)
    return None if found is None else found[::-1]


async def stats(
    site: Site, wanted: Range, *, task: str | None = None, step: float | None
) -> list[TaskStats] | None:
    """The counters of one task or of all, within a range."""

    async def read() -> list[TaskStats] | None:
        steps = task_minutes.task_stats(
            site.schema, task=task, since=timedelta(seconds=wanted.seconds), step=step
        )
        return await _if_kept(site, steps)

    return await site.cache.get(("stats", wanted.name, task, step), SHARED, read)


async def groups(site: Site, *, task: str | None = None) -> list[ErrorGroup] | None:
    """The groups of errors of the last day."""

    async def read() -> list[ErrorGroup] | None:
        steps = error_groups.error_groups(
            site.schema, task=task, since=timedelta(days=1), limit=100
        )
        return await _if_kept(site, steps)

    return await site.cache.get(("groups", task), SHARED, read)


async def _if_kept(site: Site, steps: Steps[T]) -> T | None:
    try:
        return await site.drive(steps)
    except MissingTablesError:
        return None


def added_up(found: Sequence[TaskStats]) -> dict[datetime, dict[str, int]]:
    """How many jobs of all tasks ended in which way, by step."""
    totals: dict[datetime, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in found:
        at = totals[each.at]
        at["completed"] += each.completed
        at["retried"] += each.retried
        at["failed"] += each.failed + each.discarded
    return totals
