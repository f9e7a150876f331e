"""Group the errors of jobs that were given up."""

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql.windows import Failure, read_failures
from graphile_worker_py.web import facts
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.site import Site

_VARIABLE: Final = re.compile(
    r"0x[0-9a-f]+|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\d+|'[^']*'|\"[^\"]*\"", re.IGNORECASE
)
MOST: Final = 500
"""The newest jobs that were given up are grouped; to read more takes a page too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """Jobs of one task that were given up with the same kind of error.

    Attributes:
        task: The task.
        kind: The first line of the error, with `…` for numbers and quoted texts.
        find: A part of the error that all of them have, for a filter.
        jobs: How many jobs.
        example: The newest of them.
        newest: When the newest of them was added.
    """

    task: str
    kind: str
    find: str
    jobs: int
    example: int
    newest: datetime


def kind_of(error: str) -> str:
    """The first line of an error without what differs from job to job."""
    line = error.strip().partition("\n")[0][:300]
    return _VARIABLE.sub("…", line) or "(no message)"


async def groups(site: Site) -> list[ErrorGroup]:
    """The groups of the newest jobs that were given up, the largest first."""
    return await site.fact(await groups_fact(site))


async def groups_fact(site: Site) -> Fact[list[ErrorGroup]]:
    """See `groups`."""
    counts = (await facts.standing(site)).counts
    ids = [] if counts is None else counts.failed[:MOST]

    def steps() -> Steps[list[ErrorGroup]]:
        jobs: list[Failure] = (yield read_failures(ids)) if ids else []
        found: dict[tuple[str, str], list[Failure]] = defaultdict(list)
        for job in jobs:
            found[job.task, kind_of(job.error)].append(job)
        made = [
            ErrorGroup(
                task=task,
                kind=kind,
                find=max(kind.split("…"), key=len).strip(),
                jobs=len(members),
                example=members[0].job_id,
                newest=max(job.added_at for job in members),
            )
            for (task, kind), members in found.items()
        ]
        return sorted(made, key=lambda group: (-group.jobs, group.task, group.kind))

    return Fact(key="errors", shared=facts.SHARED, steps=steps)
