"""A program of tests: a worker whose tasks fork, and whose forks end like a task.

`python -m tests.forking_tasks DSN` prints, for each fork, its job and how it ended.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from graphile_worker_py import Events, JobContext, Runner, SyncJobContext, WorkerUtils, task
from graphile_worker_py.events import JobComplete, PoolListenError

WAYS = ("return", "raise", "exit", "exit text")
PATIENCE = 20.0
events = Events()


def said(*about: Any) -> None:
    """Print one line at once."""
    os.write(1, (json.dumps(about) + "\n").encode())


def forks(name: str) -> bool:
    """Whether this is the fork. In the parent, it waits for the fork's end and prints it."""
    pid = os.fork()
    if pid == 0:
        return True
    deadline = time.monotonic() + PATIENCE
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.01)
    said(name, os.waitstatus_to_exitcode(ended[1]))
    return False


def end(way: str) -> None:
    """End as a task can end."""
    if way == "raise":
        raise ValueError(way)
    if way.startswith("exit"):
        sys.exit(7 if way == "exit" else way)


@task(executor="thread")
def thread(payload: Any) -> None:
    """Fork in a thread."""
    if forks(f"thread {payload}"):
        end(payload)


@task(executor="thread")
def thread_adds(payload: Any, ctx: Any) -> None:
    """Use the context in the fork."""
    if forks("thread adds"):
        try:
            ctx.add_job("last")
        except Exception as error:
            said(type(error).__name__)
            raise


@task(executor="inline")
def inline(payload: Any) -> None:
    """Fork on the event loop."""
    if forks(f"inline {payload}"):
        end(payload)


@task
async def loop(payload: Any) -> None:
    """Fork on the event loop."""
    if forks(f"loop {payload}"):
        end(payload)


@task
async def nothing_given() -> None:
    """Fork without a payload."""
    if forks("nothing given"):
        end("raise")


@task
async def waits(payload: Any) -> None:
    """Wait in the fork, whose event loop is the parent's."""
    if forks("waits"):
        await asyncio.sleep(0.01)
        said("a fork has waited")


@task
async def connected(payload: Any, ctx: JobContext) -> None:
    """Fork in a transaction, and commit it in the fork."""
    async with ctx.connection() as conn:
        await conn.execute("begin")
        if not forks(f"connected {payload}"):
            await conn.execute("insert into done select 1")
            await conn.execute("commit")
            return
        end(payload)


@task
async def completes(payload: Any, ctx: JobContext) -> None:
    """Fork in the transaction that completes the job, and leave it in the fork."""
    async with ctx.transaction() as conn:
        await conn.execute("insert into done select 1")
        if forks(f"completes {payload}"):
            end(payload)


@task
async def commits(payload: Any, ctx: JobContext) -> None:
    """Leave a transaction in the fork."""
    async with ctx.connection() as conn:
        async with conn.transaction():
            forked = forks("commits")
            await conn.execute("insert into done select 1")
        if forked:
            said("a fork has committed")


@task(executor="thread")
def thread_completes(payload: Any, ctx: SyncJobContext) -> None:
    """Fork in the transaction that completes the job, and leave it in the fork."""
    with ctx.transaction() as conn:
        conn.execute("insert into done select 1")
        if forks(f"thread completes {payload}"):
            end(payload)


@task(executor="thread")
def thread_commits(payload: Any, ctx: SyncJobContext) -> None:
    """Leave a transaction in the fork."""
    with ctx.connection() as conn:
        with conn.transaction():
            forked = forks("thread commits")
            conn.execute("insert into done select 1")
        if forked:
            said("a fork has committed")


@task
async def adds(payload: Any, ctx: JobContext) -> None:
    """Use the context in the fork."""
    if forks("adds"):
        try:
            await ctx.add_job("last")
        except Exception as error:
            said(type(error).__name__)
            raise


@task
async def last(payload: Any, ctx: JobContext) -> None:
    """Look whether the worker's connections still serve it."""
    async with ctx.connection() as conn:
        said("connected", (await (await conn.execute("select 1")).fetchone()))
    await ctx.add_job("final")


@task
async def final(payload: Any) -> None:
    """End."""
    said("final")


TASKS: dict[str, Any] = {
    "thread": thread,
    "thread_adds": thread_adds,
    "inline": inline,
    "loop": loop,
    "nothing_given": nothing_given,
    "waits": waits,
    "connected": connected,
    "completes": completes,
    "commits": commits,
    "thread_completes": thread_completes,
    "thread_commits": thread_commits,
    "adds": adds,
    "last": last,
    "final": final,
}


async def main(dsn: str) -> None:
    """Run one job after the other, each with a fork."""
    worker = os.getpid()
    events.subscribe(PoolListenError, lambda event: said("lost", str(event.error)))
    done = asyncio.Event()

    def completed(event: JobComplete) -> None:
        if os.getpid() != worker or event.error is not None:
            said("wrong", event.job.task_identifier, str(event.error))
        if event.job.task_identifier == "final":
            done.set()

    events.subscribe(JobComplete, completed)
    names = ("thread", "inline", "loop", "connected", "completes", "thread_completes")
    jobs = [(name, way) for name in names for way in WAYS]
    others = ("nothing_given", "waits", "commits", "thread_commits", "adds", "thread_adds")
    jobs += [(name, "") for name in others]
    runner = Runner(
        dsn,
        tasks=TASKS,
        concurrent_jobs=2,
        poll_interval=3600,
        no_handle_signals=True,
        events=events,
    )
    async with runner, WorkerUtils(dsn) as utils:
        for name, way in jobs:
            await utils.add_job(name, way, queue_name="one at a time")
        await utils.add_job("last", queue_name="one at a time")
        await done.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
