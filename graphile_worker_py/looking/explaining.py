"""Why a job is not running: reasons in order, each with the fact and what to do about it."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py.checks import similar
from graphile_worker_py.looking.limited import are_readable, limits_reached
from graphile_worker_py.looking.paused import pauses_of, readable_pauses
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.postgres.together import one, side_by_side
from graphile_worker_py.records import Record
from graphile_worker_py.sql import explain as facts
from graphile_worker_py.sql.backlog import (
    RegisteredPool,
    can_read_pools,
    read_pools,
    registered_pools,
)
from graphile_worker_py.sql.explain import MOST_AHEAD, JobFacts
from graphile_worker_py.sql.pauses import PAUSE_PREFIX, Pause


class Cause(StrEnum):
    """What keeps a job from running."""

    GONE = "gone"
    """There is no such job."""
    RUNNING = "running"
    """It runs."""
    HOLDER_DEAD = "holder_dead"
    """The pool that has locked it does not send heartbeats."""
    ATTEMPTS_USED_UP = "attempts_used_up"
    """It has no attempts left."""
    NOT_DUE = "not_due"
    """Its time has not come."""
    QUEUE_PAUSED = "queue_paused"
    """Its queue is paused."""
    PAUSED = "paused"
    """Its task, all pools that have it, or everything is paused, or these pools are quiet."""
    LIMITED = "limited"
    """A limit of its task is reached."""
    QUEUE_LOCKED = "queue_locked"
    """Another job of its queue runs."""
    TASK_DELETED = "task_deleted"
    """The row of its task was deleted."""
    NO_POOLS = "no_pools"
    """No worker pool is registered."""
    TASK_UNKNOWN = "task_unknown"
    """No registered pool has its task."""
    FLAG_FORBIDDEN = "flag_forbidden"
    """All pools that have its task forbid one of its flags."""
    SUSPECT = "suspect"
    """Its worker died while it ran, so it runs alone."""
    POOLS_BUSY = "pools_busy"
    """All pools that may run it run as many jobs as they can."""
    BEHIND = "behind"
    """Other jobs come before it."""
    READY = "ready"
    """Nothing keeps it from running."""


class Reason(Record):
    """One reason.

    Attributes:
        cause: What it is, for programs.
        fact: What is the case, in words.
        remedy: What to do about it; None if nothing is to be done.
        blocks: Whether the job can't start before this has changed.
    """

    cause: Cause
    fact: str
    remedy: str | None
    blocks: bool


class Explanation(Record):
    """Why a job is not running.

    Attributes:
        job_id: The job.
        state: Its state; None if there is no such job.
        reasons: The reasons, the most important one first.
        missing: What could not be looked at, and how to make it available; None if nothing.
    """

    job_id: int
    state: str | None
    reasons: list[Reason]
    missing: str | None

    def as_json(self) -> dict[str, Any]:
        """All attributes as JSON values."""
        return {
            "job_id": self.job_id,
            "state": self.state,
            "reasons": [
                {
                    "cause": str(reason.cause),
                    "fact": reason.fact,
                    "remedy": reason.remedy,
                    "blocks": reason.blocks,
                }
                for reason in self.reasons
            ],
            "missing": self.missing,
        }


def explain(job_id: int | str, schema: str) -> Steps[Explanation]:
    """Read the facts about a job, and make reasons of them."""
    query = facts.read_facts(job_id)
    number = int(query.values[0])
    job, can_read, readable = yield from side_by_side(
        one(query), can_read_pools(schema), are_readable(schema)
    )
    if job is None:
        return Explanation(job_id=number, state=None, reasons=[_GONE], missing=None)
    if not can_read:
        reasons = list(_reasons(job, None, 0, [], []))
        return Explanation(job_id=number, state=job.state, reasons=reasons, missing=NO_SIDE_SCHEMA)
    if job.locked_by is not None:
        pools = yield read_pools(schema)
        reasons = list(_reasons(job, pools, 0, [], []))
    else:
        pools, crashes, paused, limited = yield from side_by_side(
            one(read_pools(schema)),
            one(facts.read_crashes(schema, number)),
            readable_pauses(schema),
            limits_reached(schema, job.task, number, readable),
        )
        reasons = list(_reasons(job, pools, crashes, paused, limited))
    return Explanation(job_id=number, state=job.state, reasons=reasons, missing=None)


def unserved_tasks(schema: str) -> Steps[dict[str, str | None]]:
    """Read the tasks of due jobs that no living pool has; see `WorkerUtils.unserved_tasks`."""
    pools: list[RegisteredPool] | None = yield from registered_pools(schema)
    return (yield from unserved_by(pools))


def unserved_by(pools: list[RegisteredPool] | None) -> Steps[dict[str, str | None]]:
    """Read the tasks of due jobs that none of these pools has."""
    living = [pool for pool in pools or () if not pool.overdue]
    if not living or any(pool.tasks is None for pool in living):
        return {}
    due: list[str] = yield facts.read_due_tasks()
    known = {task for pool in living for task in pool.tasks or ()}
    return {task: similar(task, known) for task in due if task not in known}


NO_SIDE_SCHEMA: Final = (
    "worker pools do not register in this database, or the role may not read where they do: let a "
    "role that may create the schema graphile_worker_py run "
    "`graphile-worker-py migrate --side-schema`, and grant usage and select on it"
)
_GONE: Final = Reason(
    cause=Cause.GONE,
    fact="there is no such job: completed jobs are deleted, and ids of jobs that were never added "
    "are used up by job keys",
    remedy="record what ran with history='all'",
    blocks=True,
)


def _reasons(
    job: JobFacts,
    pools: list[RegisteredPool] | None,
    crashes: int,
    pauses: Sequence[Pause],
    limits: Sequence[tuple[str, str]],
) -> Iterator[Reason]:
    if job.locked_by is not None:
        yield _holder(job, pools)
        return
    found = [*_own_reasons(job), *_queue_reasons(job, pools or [])]
    if pools is not None:
        living = [pool for pool in pools if not pool.overdue]
        found += [
            Reason(cause=Cause.PAUSED, fact=fact, remedy=remedy, blocks=True)
            for fact, remedy in pauses_of(job.task, pauses, living)
        ]
        found += _pool_reasons(job, living)
    found += [Reason(cause=Cause.LIMITED, fact=a, remedy=b, blocks=True) for a, b in limits]
    if crashes:
        fact = f"its worker died {counted(crashes, 'time')} while it ran, so it is run alone"
        remedy = "read the log of the worker that died"
        found.append(Reason(cause=Cause.SUSPECT, fact=fact, remedy=remedy, blocks=False))
    found += [_behind(job)] if job.ahead else []
    yield from sorted(found, key=lambda reason: not reason.blocks)
    if not found:
        fact = "it is ready, and no other job comes before it"
        yield Reason(cause=Cause.READY, fact=fact, remedy=None, blocks=False)


def _holder(job: JobFacts, pools: list[RegisteredPool] | None) -> Reason:
    since = duration(job.locked_for or 0)
    named = {pool.pool_id: pool for pool in pools or ()}
    pool = named.get(job.locked_by or "")
    if pool is None:
        return Reason(
            cause=Cause.RUNNING,
            fact=f"locked for {since} by pool {job.locked_by}, which is of Node or does not "
            f"register",
            remedy=f"if that pool died, run `graphile-worker-py unlock {job.locked_by}`; any "
            f"worker frees the job when it was locked for {duration(job.lock_lifetime)}",
            blocks=False,
        )
    if not pool.overdue:
        where = f"pool {pool.pool_id}, process {pool.pid} on {pool.host}"
        fact = f"has been running for {since} in {where}"
        return Reason(cause=Cause.RUNNING, fact=fact, remedy=None, blocks=False)
    if pool.dead_for is not None:
        fact = f"locked by pool {pool.pool_id}, which died {duration(pool.dead_for)} ago"
    else:
        fact = f"locked by pool {pool.pool_id}, last heard of {duration(pool.heartbeat_age)} ago"
    others = any(not other.overdue for other in named.values())
    remedy = (
        f"a living pool frees it within about {duration(pool.dead_after)}"
        if others
        else "start a worker, which frees it"
    )
    return Reason(cause=Cause.HOLDER_DEAD, fact=fact, remedy=remedy, blocks=True)


def _own_reasons(job: JobFacts) -> Iterator[Reason]:
    if job.task == "":
        fact = "the row of its task was deleted, so no worker can run it"
        yield Reason(cause=Cause.TASK_DELETED, fact=fact, remedy="remove the job", blocks=True)
    if job.attempts >= job.max_attempts:
        error = "" if job.last_error is None else f"; last error: {_first_line(job.last_error)}"
        yield Reason(
            cause=Cause.ATTEMPTS_USED_UP,
            fact=f"{_all_attempts(job.max_attempts)} used up{error}",
            remedy="retry it, which gives it new attempts",
            blocks=True,
        )
    elif job.due_in > 0:
        why = f", for attempt {job.attempts + 1} of {job.max_attempts}" if job.attempts else ""
        yield Reason(
            cause=Cause.NOT_DUE,
            fact=f"due in {duration(job.due_in)}, at {_shown(job.run_at)}{why}",
            remedy="reschedule it to run it now",
            blocks=True,
        )


def _queue_reasons(job: JobFacts, pools: Sequence[RegisteredPool]) -> Iterator[Reason]:
    holder = job.queue_locked_by
    if holder is None:
        return
    if holder.startswith(PAUSE_PREFIX):
        said = holder.removeprefix(PAUSE_PREFIX)
        fact = f"queue {job.queue_name!r} is paused ({said})"
        yield Reason(cause=Cause.QUEUE_PAUSED, fact=fact, remedy="resume the queue", blocks=True)
        return
    pool = next((each for each in pools if each.pool_id == holder), None)
    if pool is None:
        whose = " of Node, or one that does not register,"
    else:
        whose = f", last heard of {duration(pool.heartbeat_age)} ago," if pool.overdue else ""
    runs = "" if job.queue_runs is None else f" and runs its job {job.queue_runs}"
    yield Reason(
        cause=Cause.QUEUE_LOCKED,
        fact=f"queue {job.queue_name!r} has been locked by pool {holder}{whose} for "
        f"{duration(job.queue_locked_for or 0)}{runs}",
        remedy=f"wait for that job; if the pool died, run `graphile-worker-py unlock {holder}`",
        blocks=True,
    )


def _pool_reasons(job: JobFacts, living: Sequence[RegisteredPool]) -> Iterator[Reason]:
    if not living:
        yield Reason(
            cause=Cause.NO_POOLS,
            fact="no live Python pool is registered (pools of Node never register)",
            remedy="start a worker",
            blocks=True,
        )
        return
    if any(pool.tasks is None for pool in living):
        return  # of older releases
    with_task = [pool for pool in living if job.task in (pool.tasks or ())]
    if not with_task:
        if job.task:
            yield _task_unknown(job.task, living)
        return
    yield from _reasons_with_task(job, with_task)


def _reasons_with_task(job: JobFacts, with_task: Sequence[RegisteredPool]) -> Iterator[Reason]:
    allowing = [pool for pool in with_task if not set(job.flags) & set(pool.forbidden_flags or ())]
    if not allowing:
        forbidden = {flag for pool in with_task for flag in pool.forbidden_flags or ()}
        flag = min(set(job.flags) & forbidden)
        yield Reason(
            cause=Cause.FLAG_FORBIDDEN,
            fact=f"flag {flag!r} is forbidden in {_all_pools(len(with_task))} the task",
            remedy="start a worker that does not forbid the flag",
            blocks=True,
        )
    elif all(pool.quiet for pool in allowing):
        yield Reason(
            cause=Cause.PAUSED,
            fact=f"{_busy_pools(len(allowing))} quiet: told to fetch no more jobs",
            remedy="start another worker, and stop the quiet ones",
            blocks=True,
        )
    elif all((pool.running or 0) >= (pool.concurrency or 1) for pool in allowing):
        slots = sum(pool.concurrency or 0 for pool in allowing)
        yield Reason(
            cause=Cause.POOLS_BUSY,
            fact=f"{_busy_pools(len(allowing))} busy with {counted(slots, 'job')}",
            remedy="start another worker, or raise concurrent_jobs",
            blocks=False,
        )


def _task_unknown(task: str, living: Sequence[RegisteredPool]) -> Reason:
    close = similar(task, {name for pool in living for name in pool.tasks or ()})
    meant = "" if close is None else f": did you mean {close!r}?"
    return Reason(
        cause=Cause.TASK_UNKNOWN,
        fact=f"{_no_pool(len(living))} the task {task!r}{meant}",
        remedy="start a worker that has the task; a worker of Node may have it, too",
        blocks=True,
    )


def _behind(job: JobFacts) -> Reason:
    ahead = f"more than {MOST_AHEAD:,}" if job.ahead >= MOST_AHEAD else f"about {job.ahead:,}"
    return Reason(
        cause=Cause.BEHIND,
        fact=f"{ahead} jobs with a higher priority or an earlier time come before it (estimate)",
        remedy="give it a smaller priority number, or start more workers",
        blocks=False,
    )


def _all_attempts(number: int) -> str:
    return "its only attempt is" if number == 1 else f"all {number} attempts are"


def _no_pool(number: int) -> str:
    if number == 1:
        return "the only live Python pool does not have"
    return f"none of the {number} live Python pools has"


def _all_pools(number: int) -> str:
    return "the only pool that has" if number == 1 else f"all {number} pools that have"


def _busy_pools(number: int) -> str:
    return (
        "the pool that may run it is" if number == 1 else f"the {number} pools that may run it are"
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 job`, `1,204 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Seconds in words: `4 s`, `12 min`, `3 h`, `5 days`."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:,.0f} days"


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 200 else line[:199] + "…"


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
