"""Live stacks of running jobs: asked for and answered by notifications, and kept nowhere.

A pool answers for jobs that it runs on its event loop or in a thread, and asks the process of a
task. While a task blocks the event loop, there is no answer; then the watchdog logs the stack.
"""

import asyncio
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Final

import psycopg

from graphile_worker_py import json_codec
from graphile_worker_py.errors import one_line
from graphile_worker_py.executors import calls
from graphile_worker_py.executors.thread import thread_of
from graphile_worker_py.postgres.connecting import connect_like
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import notifications
from graphile_worker_py.tasks.context import RunningJob

ASK: Final = "stack"
"""Topic of notifications that ask for the stack of a job."""
ANSWER: Final = "stack-of"
"""Topic of the answers."""
PAUSE: Final = 0.2
"""Seconds between two answers: any role that may connect can ask."""
MOST_BYTES: Final = 7_500
"""Size of an answer; PostgreSQL allows 8,000 bytes. The outer calls are left out."""
ELSEWHERE: Final = "No code of the task runs in the worker itself: it has a process of its own.\n"
SILENT: Final = "The process of the task does not answer: it starts, or native code keeps it.\n"
SILENCE: Final = 0.5
"""Seconds until `SILENT` is the answer."""


class Stacks:
    """Answers for one pool.

    Args:
        pool: The `WorkerPool`.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._asked: int | None = None
        self._wake = asyncio.Event()

    def hear(self, said: Mapping[str, Any] | None) -> None:
        """Note which job was asked for."""
        job_id = None if said is None else said.get("id")
        if isinstance(job_id, int) and job_id in self._pool.running:
            self._asked = job_id
            self._wake.set()

    async def show_when_asked(self) -> None:
        """Answer, the latest question at a time."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            running = self._pool.running.get(self._asked)
            if running is not None:
                stack = await _where(running)
                answer = _payload(self._pool.database.schema, running.job.id, stack)
                try:
                    await self._pool.database.run(notifications.notify(notifications.OWN, answer))
                except (psycopg.Error, OSError) as error:
                    self._pool.logger.debug("Could not show a stack (%s)", one_line(error))
            await asyncio.sleep(PAUSE)


async def _where(running: RunningJob) -> str:
    """The calls of a task, the innermost last."""
    if running.show is None:
        return stack_of(running.worker_id) or ELSEWHERE
    try:
        async with asyncio.timeout(SILENCE):
            return await running.show() or SILENT
    except TimeoutError:
        return SILENT


def stack_of(worker_id: str) -> str:
    """The calls of the task that a worker runs now, the innermost last."""
    found = [task for task in asyncio.all_tasks() if task.get_name() == worker_id]
    suspended = list(_suspended(found[0].get_coro())) if found else []
    for frame, _ in suspended:
        thread = thread_of(frame)
        if thread is not None:
            return calls.written(calls.of_thread(thread))
    return calls.written(suspended)


def _suspended(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """The frames of a coroutine, and of what it awaits."""
    while awaited is not None:
        for kind, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame, frame.f_lineno
                awaited = getattr(awaited, inner)
                break
        else:
            return


def _payload(schema: str, job_id: int, stack: str) -> str:
    lines = stack.splitlines(keepends=True)
    while True:
        said = {"s": schema, "t": ANSWER, "id": job_id, "stack": "".join(lines)}
        text = json_codec.dumps(said)
        if len(text) <= MOST_BYTES:
            return text.decode()
        lines = ["  …\n", *lines[2:]] if len(lines) > 2 else [lines[-1][:1000]]


async def ask(database: Database, job_id: int, *, timeout: float) -> str | None:
    """Ask the pool that runs a job where its task is.

    Args:
        database: Where the job is. A connection of its own is opened.
        job_id: The job.
        timeout: Seconds to wait for the answer.

    Returns:
        The calls, the innermost last; None if no pool has answered.

    Raises:
        psycopg.Error: The database could not be reached, or is a replica.
    """
    question = json_codec.dumps({"s": database.schema, "t": ASK, "id": job_id}).decode()
    async with await connect_like(database.pool) as conn:
        listen_on = notifications.listen_on(notifications.OWN)
        await database.run_script(listen_on, conn=conn)  # pyright: ignore[reportArgumentType]
        await database.run(notifications.notify(notifications.OWN, question), conn=conn)
        async for notification in conn.notifies(timeout=timeout):
            said = _said(notification.payload)
            is_meant = (said.get("t"), said.get("id")) == (ANSWER, job_id)
            if is_meant and said.get("s") == database.schema:
                return str(said.get("stack", ""))
    return None


def _said(payload: str) -> Mapping[str, Any]:
    try:
        said = json_codec.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
