"""Free what dead worker pools had locked, and give up jobs that kill their workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import AsyncConnection

from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import admin, notifications, pools, suspects
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.sql.suspects import HeldJob
from graphile_worker_py.sql.time_limits import limit_transaction

DIED_UNDER_IT: Final = (
    "The worker process died {crashes} times while this job was running, the last time pool "
    "{pool.pool_id} (process {pool.pid} on {pool.host}); it is not tried again"
)
DIED_AT_LAST: Final = (
    "The worker process died while it had this job: pool {pool.pool_id} (process {pool.pid} on "
    "{pool.host}); no attempts are left"
)

LOCK_PATIENCE: Final = 10.0
"""Seconds for which others may have locked what is to be freed. The next turn comes soon."""
STATEMENT_PATIENCE: Final = 240.0
"""Seconds that a statement may take; some read the whole table."""
IDLE_PATIENCE: Final = 30.0
"""Seconds after which the server ends a transaction whose pool has gone silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What was done for dead pools.

    Args:
        dead: The pools whose jobs were freed; maybe none, if others have to learn of the suspects
            first.
        jobs: How many jobs they had locked.
        queues: How many queues they had locked.
        given_up: Jobs under which workers died too often.
    """

    dead: Sequence[DeadPool]
    jobs: int = 0
    queues: int = 0
    given_up: Sequence[int] = ()


async def recover(
    database: Database,
    conn: AsyncConnection[Any],
    pool_id: str,
    *,
    steady: float,
    patience: float,
    max_crashes: int,
    learn: Callable[[Mapping[int, int]], None],
) -> Recovered:
    """Look for dead pools, and free what they had locked as soon as that may be done.

    It takes two turns where there are other pools: in the first one the jobs of a dead pool are
    recorded as suspects, in the second one, when all have heard of that, they are freed. Pools
    that do so at the same time do not get in each other's way.

    Args:
        database: Where.
        conn: A connection to it, outside a transaction.
        pool_id: Id of the pool that does it.
        steady: For how many seconds it has beaten without a gap.
        patience: Seconds to wait for others to hear of suspects.
        max_crashes: With so many crashes a job is given up; 0 means never.
        learn: Called with the suspects, before any of them can be fetched.
    """
    schema = database.schema
    limits = limit_transaction(lock=LOCK_PATIENCE, statement=STATEMENT_PATIENCE, idle=IDLE_PATIENCE)
    async with conn.transaction():
        await database.run(limits, conn=conn)
        dead = await database.run(
            pools.find_dead(pool_id, worker_schema=schema, steady=steady), conn=conn
        )
        # Who is killed because it took too long to stop says nothing about its jobs.
        crashed = [pool.pool_id for pool in dead if not pool.is_stopping]
        if crashed and max_crashes:
            await database.run(suspects.record_suspects(schema, crashed), conn=conn)
    await database.run(pools.mark_recorded(schema), conn=conn)
    async with conn.transaction():
        await database.run(limits, conn=conn)
        ready = await database.run(
            pools.take_dead(pool_id, worker_schema=schema, patience=patience), conn=conn
        )
        if not ready:
            return Recovered(dead=())
        crashes = await database.run(suspects.read_suspects(schema), conn=conn)
        learn(crashes)
        by_id = {pool.pool_id: pool for pool in ready}
        held = await database.run(suspects.read_held_jobs(list(by_id)), conn=conn)
        unlocked = await database.run(admin.force_unlock_workers(list(by_id)), conn=conn)
        given_up = [job for job in held if 0 < max_crashes <= crashes.get(job.job_id, 0)]
        last = [job for job in held if job.is_last_attempt and job not in given_up]
        await _fail(database, conn, given_up, by_id, DIED_UNDER_IT, crashes)
        await _fail(database, conn, last, by_id, DIED_AT_LAST, crashes)
        if given_up:
            ids = [job.job_id for job in given_up]
            await database.run(suspects.forget_suspects(schema, ids), conn=conn)
        await database.run(pools.mark_unlocked(list(by_id)), conn=conn)
        # Nobody would look before the next poll. Told at commit.
        if left := len(held) - len(given_up) - len(last):
            text = f'{{"count":{left}}}'
            await database.run(notifications.notify(notifications.JOBS_INSERT, text), conn=conn)
    return Recovered(
        dead=ready,
        jobs=unlocked.jobs,
        queues=unlocked.queues,
        given_up=[job.job_id for job in given_up],
    )


async def _fail(
    database: Database,
    conn: AsyncConnection[Any],
    jobs: Sequence[HeldJob],
    by_id: Mapping[str, DeadPool],
    reason: str,
    crashes: Mapping[int, int],
) -> None:
    """Give up jobs that are free by now, each with a reason that says what happened to it."""
    reasons: dict[str, list[int]] = {}
    for job in jobs:
        text = reason.format(crashes=crashes.get(job.job_id, 0), pool=by_id[job.pool_id])
        reasons.setdefault(text, []).append(job.job_id)
    for text, ids in reasons.items():
        await database.run(admin.permanently_fail_jobs(ids, text), conn=conn)
