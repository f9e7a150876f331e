"""Calls that share a statement end as Node's function `add_job` ends, called for each in turn."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Json

from graphile_worker_py import Job, WorkerUtils
from tests.support.server import Server

ADD = """
select
  job.key, job.revision, job.payload, job.priority, job.max_attempts, job.attempts, job.flags
from graphile_worker.add_job(
  identifier => %(identifier)s, payload => %(payload)s, queue_name => %(queue_name)s,
  run_at => %(run_at)s, max_attempts => %(max_attempts)s, job_key => %(job_key)s,
  priority => %(priority)s, flags => %(flags)s, job_key_mode => %(job_key_mode)s
) as job
"""
STATE = """
select task.identifier, queue.queue_name, job.payload, job.key, job.priority, job.max_attempts,
  job.attempts, job.revision, job.flags, job.locked_by,
  case when job.run_at > now() + interval '1 hour' then job.run_at end as later
from graphile_worker._private_jobs as job
join graphile_worker._private_tasks as task on task.id = job.task_id
left join graphile_worker._private_job_queues as queue on queue.id = job.job_queue_id
order by job.key, 1, 2, job.payload::text, 5, 6, 7, 8, 9, 10, 11
"""
LOCK = """
update graphile_worker._private_jobs set locked_at = now(), locked_by = 'p', attempts = attempts + 1
where key in ('k1', 'k2')
"""
FREE = """
update graphile_worker._private_jobs set locked_at = null, locked_by = null where locked_by = 'p'
"""
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


def calls(chance: random.Random) -> list[dict[str, Any]]:
    """Calls that come at once; no two of them have the same key."""
    keys: list[str | None] = [f"k{number}" for number in range(8)]
    chosen = [*chance.sample(keys, 5), *[None] * 10]
    chance.shuffle(chosen)
    return [
        {
            "identifier": chance.choice("ab"),
            "payload": chance.choice([None, 1, "\0", [1], [2], {"a": 1}]),
            "queue_name": chance.choice([None, None, "q", "r"]),
            "run_at": chance.choice([None, LATER, LATER + timedelta(hours=1)]),
            "max_attempts": chance.choice([None, 1, 3]),
            "job_key": key,
            "priority": chance.choice([None, -1, 2]),
            "flags": chance.choice([None, [], ["f"], ["g", "f"]]),
            "job_key_mode": key
            and chance.choice([None, "replace", "preserve_run_at", "unsafe_dedupe"]),
        }
        for key in chosen
    ]


def told(job: Job) -> tuple[Any, ...]:
    """What a call returned, as `ADD` does."""
    return (
        job.key,
        job.revision,
        job.payload,
        job.priority,
        job.max_attempts,
        job.attempts,
        job.flags,
    )


async def test_calls_at_once_end_as_nodes_function_does_in_turn(
    server: Server, template: Callable[[str], str]
) -> None:
    ours, nodes = (server.create_database(template("node")) for _ in range(2))
    chance = random.Random(16)
    try:
        async with WorkerUtils(ours) as utils:
            with (
                psycopg.connect(ours, autocommit=True) as mine,
                psycopg.connect(nodes, autocommit=True) as theirs,
            ):
                for change in [LOCK, FREE] * 8:
                    round_of = calls(chance)
                    added = await asyncio.gather(*[utils.add_job(**each) for each in round_of])
                    for each, job in zip(round_of, added, strict=True):
                        payload = {} if each["payload"] is None else each["payload"]
                        values = {**each, "payload": Json(payload)}
                        assert told(job) == theirs.execute(ADD, values).fetchone()
                    assert mine.execute(STATE).fetchall() == theirs.execute(STATE).fetchall()
                    mine.execute(change)
                    theirs.execute(change)
    finally:
        server.drop_database(ours)
        server.drop_database(nodes)
