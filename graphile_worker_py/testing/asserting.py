"""Look for the jobs that an application added, and say how those that are there differ."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from graphile_worker_py.checks import similar
from graphile_worker_py.looking.explaining import Cause, Explanation
from graphile_worker_py.postgres.given import SyncGiven
from graphile_worker_py.sql.inspect import JobCounts, ListedJob
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils
from graphile_worker_py.testing.matching import Wanted

MOST_SHOWN: Final = 5
"""Most jobs that the message of an assertion shows."""


class Looking(Protocol):
    """What reads jobs: `WorkerUtils`, or `Blocking`."""

    @property
    def list_jobs(self) -> Callable[..., Awaitable[list[ListedJob]]]:
        """See `WorkerUtils.list_jobs`."""
        ...

    @property
    def explain(self) -> Callable[..., Awaitable[Explanation]]:
        """See `WorkerUtils.explain`."""
        ...

    @property
    def counts(self) -> Callable[..., Awaitable[JobCounts]]:
        """See `WorkerUtils.counts`."""
        ...


class Blocking:
    """Reads jobs on a connection without an event loop. Its coroutines never wait.

    Args:
        utils: Reads them.
    """

    def __init__(self, utils: SyncWorkerUtils) -> None:
        self._utils = utils

    async def list_jobs(self, *, conn: SyncGiven, **conditions: Any) -> list[ListedJob]:
        """See `WorkerUtils.list_jobs`."""
        return self._utils.list_jobs(conn=conn, **conditions)

    async def explain(self, job_id: int, *, conn: SyncGiven) -> Explanation:
        """See `WorkerUtils.explain`."""
        return self._utils.explain(job_id, conn=conn)

    async def counts(self, *, conn: SyncGiven) -> JobCounts:
        """See `WorkerUtils.counts`."""
        return self._utils.counts(conn=conn)


class Assertions:
    """Asserts which jobs are there.

    Args:
        looking: Reads them.
        conn: The caller's connection on which they are read; None means one from the pool.
        drained: The tasks of which a drain has completed jobs.
    """

    def __init__(self, looking: Looking, *, conn: Any, drained: Iterable[str]) -> None:
        self._looking = looking
        self._conn = conn
        self._drained = set(drained)

    async def found(self, wanted: Wanted) -> ListedJob:
        """The wanted job that was added last. See `Kit.assert_added`."""
        __tracebackhide__ = True
        jobs = await self._jobs(wanted.identifier)
        for job in jobs:
            if not wanted.differences(job):
                return job
        raise AssertionError(await self._not_added(wanted, jobs))

    async def none_found(self, wanted: Wanted) -> None:
        """Nothing, if there are no wanted jobs. See `Kit.refute_added`."""
        __tracebackhide__ = True
        found = await self.all_found(wanted)
        if found:
            shown = "".join(f"\n  {_shown(job)}" for job in found[:MOST_SHOWN])
            raise AssertionError(f"{len(found)} job(s) of {wanted} were added:{shown}")

    async def all_found(self, wanted: Wanted) -> list[ListedJob]:
        """The wanted jobs, the oldest first; those of all tasks if the identifier is empty."""
        jobs = await self._jobs(wanted.identifier or None)
        return [job for job in reversed(jobs) if not wanted.differences(job)]

    async def _jobs(self, task: str | None) -> list[ListedJob]:
        return await self._looking.list_jobs(task=task, limit=None, conn=self._conn)

    async def _not_added(self, wanted: Wanted, jobs: list[ListedJob]) -> str:
        lines = [f"no job of {wanted} was added"]
        closest = sorted(jobs, key=lambda job: len(wanted.differences(job)))[:MOST_SHOWN]
        for job in closest:
            lines.append(f"  {_shown(job)}")
            lines += [f"    {difference}" for difference in wanted.differences(job)]
            explained = await self._looking.explain(job.id, conn=self._conn)
            lines += [
                f"    explain: {reason.fact}"
                for reason in explained.reasons
                # No worker runs in a test.
                if reason.cause not in (Cause.NO_POOLS, Cause.READY)
            ]
        if len(jobs) > len(closest):
            lines.append(f"  and {len(jobs) - len(closest)} more")
        if not jobs:
            lines += await self._other_tasks(wanted.identifier)
        if wanted.identifier in self._drained:
            lines.append(
                "  drain has completed jobs of this task, which are deleted: assert before it, "
                "or look at its report"
            )
        return "\n".join(lines)

    async def _other_tasks(self, identifier: str) -> list[str]:
        others = (await self._looking.counts(conn=self._conn)).tasks
        if not others:
            return ["  there are no jobs at all"]
        shown = ", ".join(repr(name) for name in sorted(others)[:MOST_SHOWN])
        close = similar(identifier, others)
        meant = "" if close is None else f"; did you mean {close!r}?"
        return [f"  there are only jobs of {shown}{meant}"]


def _shown(job: ListedJob) -> str:
    return f"job {job.id} ({job.state}): {job.payload!r}"
