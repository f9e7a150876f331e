"""The recurring jobs of the time over which the clock of a test was moved."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from graphile_worker_py.cron.match import Timetable
from graphile_worker_py.cron.schedule import cron_job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.loading.recurring import given_items, with_items_of
from graphile_worker_py.tasks.task import Task


def recurring_jobs(
    tasks: Iterable[Task[Any]], crontab: str | None, *, since: datetime, until: datetime
) -> list[JobSpec]:
    """The jobs that a worker would have added from `since` until before `until`, in order.

    Raises:
        CrontabError: A pattern, a time zone or the crontab is wrong.
    """
    items = with_items_of(tasks, given_items({} if crontab is None else {"crontab": crontab}))
    return [
        cron_job(item, minute, backfilled=False).spec
        for minute, due in Timetable(items).between(since, until)
        for item in due
    ]
