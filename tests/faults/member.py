"""A worker of a crew: `python -m tests.faults.member DSN FILE SETTINGS`; the twin of
compat_tests/faults_worker.mjs.

Its jobs write down their runs in a file, for the database may be what fails. What goes wrong in a
job is said by its payload.
"""

import asyncio
import ctypes
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from graphile_worker_py import Events, JobContext, LocalQueueOptions, Runner, clock
from graphile_worker_py.events import Event, PoolCreate, PoolEvent, PoolRecovered, PoolTakenForDead
from tests.faults.trial import DURATION
from tests.faults.worker import put_clock_forward
from tests.support.running import impatient


class Tasks:
    """What its jobs do.

    Args:
        file: Where they write down their runs.
    """

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND)
        self._numbers = itertools.count()
        self.over = asyncio.Event()

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """Take a moment, or do what is wrong."""
        number = next(self._numbers)
        self._note(number, "began", n=payload["n"], pool=ctx.pool_id, attempt=ctx.job.attempts)
        try:
            await self._go_on(payload)
        except asyncio.CancelledError:
            self._note(number, "cut off")
            if payload.get("swallows"):
                await self._refuse_to_end()
            raise
        self._note(number, "ended")

    async def _go_on(self, payload: Any) -> None:
        if payload.get("segfaults"):
            ctypes.string_at(0)
        if payload.get("blocks"):
            time.sleep(payload["blocks"])  # noqa: ASYNC251  # that is the fault
        await asyncio.sleep(payload.get("lasts", DURATION))

    async def _refuse_to_end(self) -> None:
        while not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                pass

    def _note(self, run: int, what: str, **more: Any) -> None:
        line = {"run": run, "what": what, "at": time.monotonic(), **more}
        # At once, and unbuffered: the process may be gone the next moment.
        os.write(self._file, f"{json.dumps(line)}\n".encode())


def say(event: Event) -> None:
    """Print a line that the test can wait for."""
    if isinstance(event, PoolEvent):
        print("pool" if isinstance(event, PoolCreate) else event.name, event.pool_id, flush=True)


async def kill_twice(runner: Runner) -> None:
    """Force the runner to stop, when SIGUSR1 comes, and again before it has stopped."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    await asked.wait()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(runner.kill())


async def main(dsn: str, file: Path, settings: dict[str, Any]) -> None:
    """Run until told to stop."""
    options = settings["options"]
    if "local_queue" in options:
        options["local_queue"] = LocalQueueOptions(size=options["local_queue"])
    tasks = Tasks(file)
    events = Events()
    for kind in (PoolCreate, PoolRecovered, PoolTakenForDead):
        events.subscribe(kind, say)
    named = {"work": tasks.work, "python only": tasks.work}
    try:
        async with (
            impatient(**settings.get("waits", {}))(
                dsn, tasks=named, events=events, **options
            ) as runner,
            asyncio.TaskGroup() as group,
        ):
            killing = group.create_task(kill_twice(runner))
            await runner.wait()
            killing.cancel()
    finally:
        tasks.over.set()


def set_clock(hours: float) -> None:
    """Let this process believe that it is later, or earlier."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Wrong":
            return super().now(tz) + timedelta(hours=hours)

    put_clock_forward(hours)
    clock.datetime = Wrong  # type: ignore[attr-defined]


if __name__ == "__main__":
    # Whoever dies of a signal on purpose need not leave its memory behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.loads(sys.argv[3])
    for name, value in given.get("constants", {}).items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    set_clock(given.get("hours_ahead", 0))
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), given))
