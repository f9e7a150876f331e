"""Let calls of `add_job` that arrive while one is under way go together in the next statement."""

import asyncio
from collections import deque
from collections.abc import Sequence

from graphile_worker_py import aio
from graphile_worker_py.adding.statements import add_alone
from graphile_worker_py.adding.together import (
    PATIENCE,
    Single,
    add_together,
    share_of,
    take,
    was_refused,
)
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.database import Database


class Gathering:
    """Sends the calls of `add_job` of everything that uses a database.

    While nothing is under way, a call is sent at once, by its own statement. What arrives
    meanwhile waits, and goes together in the next statement, with one commit and one notification.

    No call waits for others for long. A statement that takes more than `PATIENCE` may be waiting
    for a lock, and perhaps for a transaction whose owner waits here: the next one then does not
    wait for its end. A shared statement fails rather than wait for a lock, and each of its jobs is
    then added by itself; so it is after an error that one of the jobs may have caused.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Call] = deque()
        self._crew = aio.Crew()
        # What those that arrive wait for.
        self._under_way: object | None = None
        self._late: asyncio.TimerHandle | None = None

    async def add(self, spec: JobSpec, payload: str) -> Job:
        """Add a job that can share a statement."""
        if self._under_way is not None or self._waiting:
            return await self._add_with_others(_Call(spec, payload))
        way = self._under_way = object()
        try:
            return await self._database.drive(add_alone(spec, payload))
        finally:
            self._end(way)

    async def _add_with_others(self, call: "_Call") -> Job:
        self._waiting.append(call)
        self._watch()
        try:
            return await call.job
        except asyncio.CancelledError:
            if call.shipment is None:
                self._waiting.remove(call)
            else:
                await call.shipment.leave(call)
            raise

    def _watch(self) -> None:
        if self._late is None:
            self._late = asyncio.get_running_loop().call_later(PATIENCE, self._go_past)

    def _go_past(self) -> None:
        self._late = None
        if self._waiting:
            self._start()

    def _end(self, way: object) -> None:
        if self._under_way is not way:
            return  # the next one did not wait for it
        self._under_way = None
        if self._waiting:
            self._start()

    def _start(self) -> None:
        # The task begins after the callers that have just got their jobs went on: what they add
        # next goes along.
        shipment = self._under_way = _Shipment()
        shipment.task = self._crew.start(self._ship(shipment), name="add-jobs-together")

    async def _ship(self, shipment: "_Shipment") -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        calls = take(self._waiting)
        if self._waiting:
            self._watch()
        for call in calls:
            call.shipment = shipment
        shipment.wanted = len(calls)
        try:
            await self._send(calls)
            # The callers go on first. Otherwise the first of them would be sent alone, and the
            # others would wait for its commit.
            await asyncio.sleep(0)
        finally:
            for call in calls:
                call.job.cancel()  # nothing, unless this task was cancelled
            self._end(shipment)

    async def _send(self, calls: Sequence["_Call"]) -> None:
        if len(calls) <= 1:
            await self._send_each(calls)
            return
        try:
            jobs = await self._database.drive(add_together(calls))
        except Exception as error:
            if was_refused(error):
                await self._send_each(calls)
                return
            for call in calls:
                call.fail(share_of(error))
            return
        for call, job in zip(calls, jobs, strict=True):
            if job is not None:
                call.succeed(job)
        await self._send_each([call for call in calls if not call.job.done()])

    async def _send_each(self, calls: Sequence["_Call"]) -> None:
        if len(calls) == 1:
            await self._send_alone(calls[0])
        elif calls:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._send_alone(call), name="add-job-alone")

    async def _send_alone(self, call: "_Call") -> None:
        if call.job.done():
            return
        try:
            job = await self._database.drive(add_alone(call.spec, call.payload))
        except Exception as error:
            call.fail(error)
        else:
            call.succeed(job)


class _Call(Single):
    """A call that waits for its job."""

    __slots__ = ("job", "shipment")

    def __init__(self, spec: JobSpec, payload: str) -> None:
        super().__init__(spec, payload)
        self.job: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.shipment: _Shipment | None = None

    def succeed(self, job: Job) -> None:
        if not self.job.done():
            self.job.set_result(job)

    def fail(self, error: Exception) -> None:
        if not self.job.done():
            self.job.set_exception(error)


class _Shipment:
    """A statement for several calls, and how many of them are still waiting for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.wanted = 0

    async def leave(self, call: _Call) -> None:
        """One of the calls was cancelled; the last one ends the statement, as its own."""
        if not call.job.cancelled():
            call.job.exception()  # its result came together with the cancellation
        self.wanted -= 1
        if self.wanted == 0 and self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
