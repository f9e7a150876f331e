"""What pages and API show besides jobs: pools, queues, tasks, problems."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from graphile_worker_py.clock import utc_now
from graphile_worker_py.job import LOCK_LIFETIME
from graphile_worker_py.looking.explaining import (
    NO_SIDE_SCHEMA,
    counted,
    duration,
    unserved_tasks,
)
from graphile_worker_py.looking.limited import readable_breakers
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.postgres.together import one
from graphile_worker_py.sql.backlog import RegisteredPool, registered_pools
from graphile_worker_py.sql.breakers import Breaker
from graphile_worker_py.sql.inspect import JobState, ListedJob
from graphile_worker_py.sql.overview import LockedQueue, read_locked_queues, read_task_names
from graphile_worker_py.sql.pauses import PAUSE_PREFIX
from graphile_worker_py.sql.windows import read_by_ids
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.census import Standing
from graphile_worker_py.web.site import Site

SHARED: Final = 2.0
"""Seconds that an answer is shared between requests."""
MOST: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A pool of either language.

    Attributes:
        pool_id: Its id.
        language: `Python`, or `Node` for one that does not register.
        state: `alive`, `late`, `stopping`, or `unknown` for one that does not register.
        pool: What a registered one reports.
        jobs: Jobs that it runs.
        queues: Queues that it has locked.
    """

    pool_id: str
    language: str
    state: str
    pool: RegisteredPool | None
    jobs: list[ListedJob]
    queues: list[str]

    @property
    def is_dead(self) -> bool:
        """Whether it may be unlocked without force."""
        return self.state in {"late", "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that a person should look at.

    Attributes:
        fact: What is the case.
        remedy: What to do.
        page: The page that shows it.
    """

    fact: str
    remedy: str
    page: str


async def standing(site: Site) -> Standing:
    """The numbers of jobs."""
    return await (await site.census()).look()


async def pools(site: Site) -> list[RegisteredPool] | None:
    """The registered pools; None where they do not register."""
    return await site.fact(pools_fact(site.schema))


def pools_fact(schema: str) -> Fact[list[RegisteredPool] | None]:
    """See `pools`."""
    return Fact(key="pools", shared=SHARED, steps=lambda: registered_pools(schema))


async def running(site: Site) -> list[ListedJob]:
    """Running jobs that the census has found, some of the newest, the oldest lock first."""
    return await site.fact(await running_fact(site))


async def running_fact(site: Site) -> Fact[list[ListedJob]]:
    """See `running`."""
    counts = (await standing(site)).counts
    ids = [] if counts is None else counts.running[:MOST]

    def steps() -> Steps[list[ListedJob]]:
        jobs = (yield read_by_ids(ids)) if ids else []
        kept = [job for job in jobs if job.state is JobState.RUNNING]
        return sorted(kept, key=lambda job: job.locked_at or job.run_at)

    return Fact(key="running", shared=SHARED, steps=steps)


async def locked_queues(site: Site) -> list[LockedQueue]:
    """The queues that are locked, the oldest lock first."""
    return await site.fact(QUEUES)


QUEUES: Final = Fact(key="queues", shared=SHARED, steps=lambda: one(read_locked_queues(limit=MOST)))
"""See `locked_queues`."""


async def of_workers(site: Site) -> list[Fact[Any]]:
    """What `workers` makes use of."""
    return [pools_fact(site.schema), await running_fact(site), QUEUES]


async def workers(site: Site) -> list[Worker]:
    """All pools that are known: registered ones, and those that have locks."""
    await site.know(*await of_workers(site))
    registered = {pool.pool_id: pool for pool in await pools(site) or ()}
    jobs: dict[str, list[ListedJob]] = {}
    for job in await running(site):
        jobs.setdefault(job.locked_by or "", []).append(job)
    queues: dict[str, list[str]] = {}
    for queue in await locked_queues(site):
        if queue.locked_by is not None and not queue.locked_by.startswith(PAUSE_PREFIX):
            queues.setdefault(queue.locked_by, []).append(queue.name)
    ids = [*registered, *sorted(({*jobs, *queues}) - {*registered})]
    return [
        Worker(
            pool_id=pool_id,
            language="Python" if pool_id in registered else "Node",
            state=_state(registered.get(pool_id)),
            pool=registered.get(pool_id),
            jobs=jobs.get(pool_id, []),
            queues=queues.get(pool_id, []),
        )
        for pool_id in ids
    ]


def _state(pool: RegisteredPool | None) -> str:
    if pool is None:
        return "unknown"
    if pool.overdue or pool.stopping:
        return "late" if pool.overdue else "stopping"
    return "quiet" if pool.quiet else "alive"


def worker_json(worker: Worker) -> dict[str, Any]:
    """A pool for programs."""
    pool = None if worker.pool is None else asdict(worker.pool)
    if pool is not None:
        del pool["pool_id"]
    jobs = [
        {"id": job.id, "task": job.task_identifier, "locked_for": locked_for(job)}
        for job in worker.jobs
    ]
    return {
        "pool_id": worker.pool_id,
        "language": worker.language,
        "state": worker.state,
        "jobs": jobs,
        "queues": worker.queues,
        "reported": pool,
    }


def locked_for(job: ListedJob) -> float | None:
    """Since how many seconds a job has been locked."""
    return None if job.locked_at is None else (utc_now() - job.locked_at).total_seconds()


async def task_names(site: Site) -> list[str]:
    """The tasks that had a job, or that a pool has."""
    names = await site.fact(NAMES)
    reported = {task for pool in await pools(site) or () for task in pool.tasks or ()}
    return sorted({*names, *reported})


NAMES: Final = Fact(key="tasks", shared=10.0, steps=lambda: one(read_task_names(limit=2_000)))
"""The tasks that had a job."""


def unserved_fact(schema: str) -> Fact[dict[str, str | None]]:
    """The tasks of due jobs that no live pool has, each with a similar one that a pool has."""
    return Fact(key="unserved", shared=5.0, steps=lambda: unserved_tasks(schema))


def breakers_fact(schema: str) -> Fact[list[Breaker]]:
    """The breakers that pools have had; none where there is no table of breakers."""
    return Fact(key="breakers", shared=SHARED, steps=lambda: readable_breakers(schema))


async def troubles(site: Site) -> list[Trouble]:
    """What a person should look at, the worst first."""
    broken = breakers_fact(site.schema)
    await site.know(*await of_workers(site), unserved_fact(site.schema), broken)
    registered = await pools(site)
    found = [
        _late(worker.pool, worker)
        for worker in await workers(site)
        if worker.state == "late" and worker.pool is not None
    ]
    found += [_open(each) for each in await site.fact(broken) if each.open_for is not None]
    stale = [job for job in await running(site) if (locked_for(job) or 0) > LOCK_LIFETIME]
    if stale:
        held = "1 job has" if len(stale) == 1 else f"{len(stale)} jobs have"
        fact = f"{held} been locked for more than four hours"
        remedy = "unlock the pools that hold them, if they are dead"
        found.append(Trouble(fact=fact, remedy=remedy, page="workers"))
    for task, close in (await site.fact(unserved_fact(site.schema))).items():
        meant = "" if close is None else f": did you mean {close!r}?"
        shown = task if len(task) <= 60 else task[:59] + "…"
        fact = f"jobs of task {shown!r} are due, and no live Python pool has it{meant}"
        found.append(Trouble(fact=fact, remedy="start a worker that has it", page="tasks"))
    found += await _about_counts(site, registered)
    if registered is None:
        found.append(Trouble(fact="pools can't be seen", remedy=NO_SIDE_SCHEMA, page="workers"))
    return found


def _open(breaker: Breaker) -> Trouble:
    name = breaker.name if len(breaker.name) <= 60 else breaker.name[:59] + "…"
    return Trouble(
        fact=f"breaker {name!r} is open: jobs of {counted(len(breaker.tasks), 'task')} wait",
        remedy="repair what its tasks call, or close it",
        page="limits",
    )


def _late(pool: RegisteredPool, worker: Worker) -> Trouble:
    return Trouble(
        fact=f"pool {pool.pool_id} (process {pool.pid} on {pool.host}) was last heard of "
        f"{duration(pool.heartbeat_age)} ago, with {counted(len(worker.jobs), 'job')}",
        remedy="a living pool frees its jobs; without one, start a worker or unlock it",
        page="workers",
    )


async def _about_counts(site: Site, registered: list[RegisteredPool] | None) -> list[Trouble]:
    counts = (await standing(site)).counts
    if counts is None:
        return []
    found = []
    ready, failed = counts.of_state(JobState.READY), counts.of_state(JobState.FAILED)
    if ready and registered == [] and not counts.of_state(JobState.RUNNING):
        are = "1 job is" if ready == 1 else f"{ready:,} jobs are"
        fact = f"{are} ready, and no live Python pool is registered"
        found.append(Trouble(fact=fact, remedy="start a worker", page="workers"))
    elif (counts.oldest or 0) > 300:
        fact = f"a job has been ready for {duration(counts.oldest or 0)}"
        remedy = "look at why the oldest ready job does not run"
        found.append(Trouble(fact=fact, remedy=remedy, page="jobs?q=state:ready"))
    if failed:
        fact = "1 job was given up" if failed == 1 else f"{failed:,} jobs were given up"
        remedy = "retry or delete it" if failed == 1 else "retry or delete them"
        found.append(Trouble(fact=fact, remedy=remedy, page="jobs?q=state:failed"))
    return found
