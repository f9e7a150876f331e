"""Change jobs: one, or all that a filter lets through."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, assert_never

from graphile_worker_py.aio import finish
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.together import side_by_side
from graphile_worker_py.sql.cancel_jobs import CancelState
from graphile_worker_py.sql.runs import JobRun
from graphile_worker_py.sql.web_tables import AuditRow
from graphile_worker_py.sql.windows import Filter, match_window
from graphile_worker_py.web import audit, filters, history
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.problems import ProblemError
from graphile_worker_py.web.site import Site
from graphile_worker_py.worker_utils import WorkerUtils

CHUNK: Final = 1_000
"""Jobs that a bulk action changes at a time."""
MOST_WINDOWS: Final = 500
"""Windows of ids that a filter is applied to at most."""


class Action(StrEnum):
    """What can be done to jobs."""

    RETRY = "retry"
    """All attempts again, due now."""
    CANCEL = "cancel"
    """Delete jobs that wait, and end those that run in Python."""
    RESCHEDULE = "reschedule"
    """Change when they run, or their priority."""
    FAIL = "fail"
    """Give them up; their rows stay."""
    DELETE = "delete"
    """Delete them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An action with what it needs.

    Attributes:
        action: What to do.
        run_at: For a reschedule: not before this time; None leaves it.
        priority: For a reschedule: smaller runs first; None leaves it.
        reason: For a failure: the last error.
    """

    action: Action
    run_at: datetime | None = None
    priority: int | None = None
    reason: str | None = None

    def details(self) -> dict[str, Any] | None:
        """For the audit log."""
        given = {"run_at": self.run_at, "priority": self.priority, "reason": self.reason}
        return {name: value for name, value in given.items() if value is not None} or None


async def apply(utils: WorkerUtils, change: Change, ids: Sequence[int]) -> list[int]:
    """Change those of some jobs that do not run; a cancel also ends running ones."""
    if change.action is Action.CANCEL:
        found = await utils.cancel_jobs(ids, reason=change.reason)
        ended = {CancelState.CANCELLED, CancelState.REQUESTED}
        return [each.job_id for each in found if each.state in ended]
    return [job.id for job in await _apply(utils, change, ids)]


async def _apply(utils: WorkerUtils, change: Change, ids: Sequence[int]) -> list[Job]:
    match change.action:
        case Action.RETRY:
            return await utils.retry_jobs(ids)
        case Action.RESCHEDULE:
            return await utils.reschedule_jobs(ids, run_at=change.run_at, priority=change.priority)
        case Action.FAIL:
            return await utils.permanently_fail_jobs(ids, change.reason)
        case Action.DELETE | Action.CANCEL:
            return await utils.complete_jobs(ids)
        case _:
            assert_never(change.action)


async def change_one(site: Site, access: Access, change: Change, job_id: int) -> None:
    """Change one job.

    Raises:
        ProblemError: It runs (409), or there is no such job (404).
    """
    utils = await site.utils()
    changed = await apply(utils, change, [job_id])
    if not changed:
        job = await utils.get_job(job_id)
        if job is None:
            raise await gone(site, job_id)
        fact = f"job {job_id} is locked by pool {job.locked_by}"
        is_cancel = change.action is Action.CANCEL
        raise ProblemError(
            HTTPStatus.CONFLICT,
            f"{fact}, which can't end it; it is not tried again"
            if is_cancel
            else f"{fact}, so it can't be changed now",
            more={"locked_by": job.locked_by},
        )
    details = change.details()
    await audit.record(site, access, change.action, count=1, job_id=job_id, details=details)
    await site.changed()


async def gone(site: Site, job_id: int) -> ProblemError:
    """There is no such job: a run or the audit log may say that there was one."""
    runs, changes = await site.drive(
        side_by_side(history.runs_of(site.schema, job_id), audit.rows(site, job_id=job_id, limit=1))
    )
    return gone_after(job_id, runs, changes)


def gone_after(
    job_id: int, runs: Sequence[JobRun] | None, changes: Sequence[AuditRow]
) -> ProblemError:
    """There is no such job, by what is known of its runs and changes."""
    if runs:
        return ProblemError(
            HTTPStatus.GONE,
            f"job {job_id} is gone: its last attempt, {runs[-1].attempt}, ended as "
            f"{runs[-1].outcome}",
            more={"outcome": str(runs[-1].outcome)},
        )
    if changes:
        return ProblemError(
            HTTPStatus.GONE,
            f"job {job_id} is gone; the last change through these pages was {changes[0].action!r}",
        )
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        f"there is no job {job_id}: completed jobs are deleted, and job keys use up ids that no "
        f"job gets. With history='all' workers record what ran",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The jobs of a bulk action.

    Attributes:
        ids: Their ids, the newest first.
        complete: Whether all jobs were looked at.
    """

    ids: list[int]
    complete: bool


async def select(site: Site, wanted: Filter) -> Selection:
    """All jobs that a filter lets through, window by window."""
    ids: list[int] = []
    before: int | None = None
    for _ in range(MOST_WINDOWS):
        found = await site.read(match_window(wanted, before_id=before))
        ids += found.ids
        if found.complete or found.from_id is None:
            return Selection(ids=ids, complete=True)
        before = found.from_id
    return Selection(ids=ids, complete=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a bulk action is."""

    done: int
    skipped: int


async def change_many(
    site: Site,
    access: Access,
    change: Change,
    ids: Sequence[int],
    *,
    wanted: Filter | None,
    goes_on: Callable[[], Awaitable[bool]],
) -> AsyncIterator[Progress]:
    """Change jobs in chunks, and say after each how far it is.

    Args:
        site: The database.
        access: The user.
        change: What to do.
        ids: The jobs.
        wanted: The filter that chose them, for the audit log.
        goes_on: Asked after each chunk whether the client still waits.
    """
    utils = await site.utils()
    done = skipped = 0

    async def change_chunk(chunk: Sequence[int]) -> None:
        nonlocal done, skipped
        changed = len(await apply(utils, change, chunk))
        done += changed
        skipped += len(chunk) - changed

    async def note() -> None:
        text = f"{len(ids)} ids" if wanted is None else filters.written(wanted)
        details = change.details()
        await audit.record(site, access, change.action, count=done, wanted=text, details=details)
        await site.changed()

    try:
        for start in range(0, len(ids), CHUNK):
            # A client that goes away ends this, but not in the middle: the count must be right.
            await finish(change_chunk(ids[start : start + CHUNK]))
            yield Progress(done=done, skipped=skipped)
            if not await goes_on():
                break
    finally:
        await finish(note())
