"""The parts of a worker pool at work, in rings.

The outermost ring proves that the pool is alive; the next one records outcomes, so it sees every
one; the next one feeds (local queue, listener, sweep for stale locks); the inner one works.
Stopping goes from the inside out: no more jobs are handed out, running jobs finish, fetched jobs
that were not started are returned, the last outcomes are recorded, the pool leaves.

Parts are asked to stop, never cancelled; only the workers are, at a forced stop.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from graphile_worker_py import aio
from graphile_worker_py.errors import WorkerPoolError, one_line
from graphile_worker_py.plugins import Part, PartEnd
from graphile_worker_py.processes.interrupts import is_ctrl_c
from graphile_worker_py.workers.in_common import InCommon
from graphile_worker_py.workers.parts import Parts
from graphile_worker_py.workers.waits import Waits


class Rings:
    """Starts the parts of a pool, and ends them in order.

    Args:
        parts: The parts.
        in_common: What the pool has in common with others.
        added: Makes the parts that plugins add; called when the pool has proved to be alive.
        once: Whether to end when no job is due.
        stopping: Set when the pool is to stop.
        killed: Set when it is to stop at once.
        stop: Asks the pool to stop, with the reason.
        broken: Stops the pool in order because of an error, with what failed.
        waits: How long parts wait.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        in_common: InCommon,
        added: Callable[[], Sequence[Part]],
        once: bool,
        stopping: asyncio.Event,
        killed: asyncio.Event,
        stop: Callable[[str], None],
        broken: Callable[[BaseException, str], None],
        waits: Waits,
    ) -> None:
        self._parts = parts
        self._in_common = in_common
        self._added = added
        self._once = once
        self._stopping = stopping
        self._killed = killed
        self._stop = stop
        self._broken = broken
        self._waits = waits
        self._started: list[asyncio.Task[None]] = []
        self._gave_up = False
        self._plugins_end = False

    async def run(self) -> None:
        """Run the parts until the pool is to stop; an error of one of them stops the pool."""
        parts = self._parts
        await parts.heartbeat.begin(self._stopping)
        async with asyncio.TaskGroup() as present:
            self._start(present, parts.heartbeat.run(), "prove to be alive")
            for part, action in parts.looking_after_others():
                self._start(present, part.run(), action)
            try:
                if not self._stopping.is_set():
                    async with self._plugins_parts():
                        await self._settle_and_below()
                    await self._leave_nothing_locked()
            finally:
                for part, _ in parts.looking_after_others():
                    part.close()
                left_locks = bool(parts.holdings.ids) or parts.holdings.in_doubt
                parts.heartbeat.close(left_locks=left_locks)

    async def _settle_and_below(self) -> None:
        settler = self._parts.settler
        async with asyncio.TaskGroup() as settling:
            for part, action in settler.parts():
                self._start(settling, part, action)
            try:
                await self._feed_and_below()
            finally:
                settler.close()

    async def _leave_nothing_locked(self) -> None:
        """Return jobs that are locked but not held, now that all outcomes are recorded."""
        if not self._gave_up:
            async with asyncio.TaskGroup() as last:
                work = self._parts.fetcher.resolve_doubt_in_time()
                self._start(last, work, "return lost jobs")

    async def _feed_and_below(self) -> None:
        parts = self._parts
        async with asyncio.TaskGroup() as feeding:
            self._start(feeding, self._fetch_jobs(feeding), "fetch jobs")
            if not self._once:
                self._start(feeding, self._in_common.listen(parts.hearing), "listen")
                self._start(feeding, parts.sweep.run(), "reset locks")
            try:
                await parts.team.work()
            finally:
                self._stop("No more jobs are due" if self._once else "All workers have ended")
                parts.hearing.closed.set()
                parts.queue.close()

    @asynccontextmanager
    async def _plugins_parts(self) -> AsyncIterator[None]:
        """Run the parts that plugins add to the pool."""
        crew = aio.Crew()
        try:
            added = self._added()
        except Exception as error:  # raised again by run()
            self._broken(error, "make the parts that plugins add")
            added = ()
        for part in added:
            crew.start(self._run_plugins_part(part), name=part.name)
        try:
            yield
        finally:
            self._plugins_end = True
            await crew.cancel(patience=self._waits.plugins_parts)

    async def _run_plugins_part(self, part: Part) -> None:
        try:
            if part.ends is PartEnd.WITH_FETCHING:
                async with aio.until(self._stopping):
                    await part.run()
            else:
                await part.run()
        except asyncio.CancelledError:
            if not self._plugins_end:
                self._broken(_ended(part, "CancelledError"), f"run {part.name}")
            raise
        except BaseException as error:  # raised again by run()
            if isinstance(error, KeyboardInterrupt) and is_ctrl_c(error):
                raise
            # Left to asyncio, SystemExit would end the event loop under the running jobs.
            broken = error if isinstance(error, Exception) else _ended(part, one_line(error))
            self._broken(broken, f"run {part.name}")

    async def _fetch_jobs(self, group: asyncio.TaskGroup) -> None:
        """Run the local queue; after a stop, do not wait long for its last fetch."""
        cutting_off = group.create_task(self._cut_off_fetch(), name="cut off the last fetch")
        try:
            await self._parts.queue.run()
        except Exception:
            await self._parts.fetcher.resolve_doubt_in_time()
            raise
        finally:
            cutting_off.cancel()

    async def _cut_off_fetch(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._waits.stop)
        await self._parts.fetcher.cut_off()

    def give_up(self) -> None:
        """Cancel the parts that still run: their time is over."""
        self._gave_up = True
        for part in self._started:
            part.cancel()

    def _start(self, group: asyncio.TaskGroup, part: Awaitable[None], action: str) -> None:
        self._started.append(group.create_task(self._guarded(part, action), name=action))

    async def _guarded(self, part: Awaitable[None], action: str) -> None:
        """Run a part; if it breaks, stop the pool in order instead of tearing it down."""
        try:
            await part
        except asyncio.CancelledError:
            if not self._killed.is_set():
                error = WorkerPoolError(
                    f"the task that should {action} was cancelled by other code"
                )
                self._broken(error, action)
            raise
        except Exception as error:  # raised again by run()
            self._broken(error, action)


def _ended(part: Part, reason: str) -> WorkerPoolError:
    return WorkerPoolError(f"part {part.name!r}, which a plugin has added, ended with {reason}")
