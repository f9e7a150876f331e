"""Record the outcomes of a pool's jobs, in batches."""

import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Final

import psycopg

from graphile_worker_py import events
from graphile_worker_py.errors import RowsHiddenError, WorkerPoolError, message_of, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.outcomes import (
    Cancelled,
    Completed,
    Failed,
    Outcome,
    Returned,
    Settled,
    Snoozed,
)
from graphile_worker_py.plugins import Rider
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.schema.rights import check_visible
from graphile_worker_py.sql.complete_jobs import complete_jobs
from graphile_worker_py.sql.fail_jobs import Failure, fail_jobs
from graphile_worker_py.sql.outcomes import BoundRider, ride_alone
from graphile_worker_py.sql.return_jobs import return_jobs
from graphile_worker_py.sql.snooze_jobs import snooze_jobs
from graphile_worker_py.tasks.completing import CompletingStatement
from graphile_worker_py.workers.batcher import Batcher
from graphile_worker_py.workers.holdings import Holdings
from graphile_worker_py.workers.riders import Riders, Riding, is_data_error

MOST_CHARACTERS: Final = 16 * 2**20
"""Most characters of error texts and payloads in a statement, unless one outcome has more.

PostgreSQL takes no message above 1 GB.
"""


class _Statement(Record, kw_only=False):
    """How one kind of outcome is recorded.

    Args:
        verb: Names it in messages: `Could not <verb> job 7`.
        query: Makes the statement for a batch, the pool's id and riders; it returns the ids of
            the jobs that it changed.
        simplify: Makes an outcome storable if the database refuses its values, such as characters
            that the encoding lacks; None if there is nothing left to simplify.
        size: About how many characters of the statement an outcome takes; None if there are few.
    """

    verb: str
    query: Callable[[Sequence[Settled], str, Sequence[BoundRider]], Query[set[int]]]
    simplify: Callable[[Settled], Settled | None] = lambda _settled: None
    size: Callable[[Settled], int] | None = None

    def portion(self, batch: Sequence[Settled]) -> Sequence[Settled]:
        """As many of a batch, from its beginning, as one statement should have; at least one."""
        if self.size is None:
            return batch
        sizes = itertools.accumulate(map(self.size, batch))
        fitting = sum(1 for size in sizes if size <= MOST_CHARACTERS)
        return batch[: max(fitting, 1)]


def _complete(
    batch: Sequence[Settled], pool_id: str, riders: Sequence[BoundRider]
) -> Query[set[int]]:
    return complete_jobs(_jobs_of(batch), pool_id=pool_id, riders=riders)


def _return(
    batch: Sequence[Settled], pool_id: str, riders: Sequence[BoundRider]
) -> Query[set[int]]:
    return return_jobs(_jobs_of(batch), pool_id=pool_id, riders=riders)


def _fail(batch: Sequence[Settled], pool_id: str, riders: Sequence[BoundRider]) -> Query[set[int]]:
    return fail_jobs([_failure(settled) for settled in batch], pool_id=pool_id, riders=riders)


def _snooze(
    batch: Sequence[Settled], pool_id: str, riders: Sequence[BoundRider]
) -> Query[set[int]]:
    snoozes = [(each[0], each[1].delay) for each in batch if isinstance(each[1], Snoozed)]
    return snooze_jobs(snoozes, pool_id=pool_id, riders=riders)


def _jobs_of(batch: Sequence[Settled]) -> list[Job]:
    return [settled[0] for settled in batch]


def _failure(settled: Settled) -> Failure:
    job, outcome, _, _ = settled
    assert isinstance(outcome, Failed)  # noqa: S101  # only these are put into its batcher
    return Failure(job, outcome.message, outcome.payload, outcome.delay, outcome.is_final)


def _simpler(settled: Settled) -> Settled | None:
    """A failure in ASCII; if it is already, one that leaves payload and delay to their defaults."""
    job, outcome, ended, duration = settled
    assert isinstance(outcome, Failed)  # noqa: S101  # only these are put into its batcher
    failure = _failure(settled)
    plain = failure.in_ascii()
    if plain != failure:
        simple = replace(outcome, message=plain.message, payload=plain.payload)
    elif outcome.payload is not None or outcome.delay is not None:
        simple = replace(outcome, payload=None, delay=None)
    else:
        return None
    return job, simple, ended, duration


COMPLETE: Final = _Statement("complete", _complete)
FAIL: Final = _Statement("fail", _fail, _simpler, lambda settled: _failure(settled).size)
CANCEL: Final = _Statement("cancel", _complete)
SNOOZE: Final = _Statement("snooze", _snooze)
RETURN: Final = _Statement("return", _return)
STATEMENTS: Final[dict[type[Outcome], _Statement]] = {
    Completed: COMPLETE,
    Failed: FAIL,
    Cancelled: CANCEL,
    Snoozed: SNOOZE,
    Returned: RETURN,
}


REFUSALS: Final = ("22", "23", "27", "44", "P0")
"""Classes of errors by which constraints and triggers of the user refuse a row."""


class Settler:
    """Records outcomes in batches, and retries until they are recorded.

    Args:
        pool_id: Id of the pool; only jobs that it has locked are changed.
        schema: Name of the schema.
        connection: The connection for outcomes.
        options: The delays for gathering outcomes.
        holdings: The jobs that are locked for the pool.
        riders: What plugins add to the statements.
        settled: What plugins do with outcomes that were recorded.
        events: Where to emit events.
        logger: Where to log.
        broken: Called with an error, and what failed, if an outcome can't be recorded for a
            reason that will not pass; its job stays locked.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        schema: str,
        connection: OwnConnection,
        options: WorkerOptions,
        holdings: Holdings,
        riders: Riders,
        settled: Sequence[Callable[[Sequence[Settled]], None]],
        events: Events,
        logger: logging.Logger,
        broken: Callable[[BaseException, str], None],
    ) -> None:
        self._pool_id = pool_id
        self._schema = schema
        self._connection = connection
        self._holdings = holdings
        self._riders = riders
        self._settled = settled
        self._events = events
        self._logger = logger
        self._broken = broken
        self.returned: list[Job] = []
        """Jobs that were cut off, or must not begin, and were returned."""
        delays: dict[type[Outcome], float] = {
            Completed: options.complete_job_batch_delay,
            Failed: options.fail_job_batch_delay,
        }
        self._batchers = {
            kind: self._batcher(statement, delays.get(kind, 0.0))
            for kind, statement in STATEMENTS.items()
        }
        self._put: dict[type[Outcome], Callable[[Settled], None]] = {
            kind: batcher.put for kind, batcher in self._batchers.items()
        }
        self._put[Returned] = self._put_returned

    def _batcher(self, statement: _Statement, delay: float) -> Batcher[Settled]:
        async def write(batch: Sequence[Settled]) -> None:
            await self._write(statement, batch)

        return Batcher(write, delay=delay)

    def parts(self) -> list[tuple[Awaitable[None], str]]:
        """The coroutines that must run for outcomes to be recorded, and what each does."""
        return [
            (batcher.run(), f"{STATEMENTS[kind].verb} jobs")
            for kind, batcher in self._batchers.items()
        ]

    @property
    def unrecorded(self) -> int:
        """How many outcomes are not recorded yet."""
        return sum(batcher.unwritten for batcher in self._batchers.values())

    def close(self) -> None:
        """Let the parts end once every outcome is recorded."""
        for batcher in self._batchers.values():
            batcher.close()

    def record(self, job: Job, outcome: Outcome, duration: float = 0.0) -> None:
        """Record an outcome with the next batch of its kind; `duration` is how long it ran."""
        self._put[type(outcome)]((job, outcome, perf_counter(), duration))

    def _put_returned(self, settled: Settled) -> None:
        self.returned.append(settled[0])
        self._batchers[Returned].put(settled)

    def completion(self, batch: Sequence[Settled]) -> CompletingStatement:
        """The statement that records completed jobs, for a transaction of their task."""
        plain = COMPLETE.query(batch, self._pool_id, [])
        _, riding = self._riders.bind(batch)
        if not riding:
            return CompletingStatement(plain, None, lambda _: None)
        ridden = COMPLETE.query(batch, self._pool_id, [bound for _, bound in riding])
        riders = [rider for rider, _ in riding]
        return CompletingStatement(plain, ridden, partial(self._riders.failed, riders))

    def recorded(self, settled: Settled) -> None:
        """Let go of a job whose outcome its task has recorded."""
        self._holdings.recorded([settled[0]])
        self._let_count([settled])

    async def return_now(self, jobs: Sequence[Job]) -> None:
        """Return jobs with their attempts; they were not started."""
        await self._write(RETURN, [(job, Returned(), perf_counter(), 0.0) for job in jobs])

    async def _write(self, statement: _Statement, batch: Sequence[Settled]) -> None:
        """Record a batch, in as many statements as its riders need."""
        while batch:
            part, riding = self._riders.bind(statement.portion(batch))
            await self._write_part(statement, part, riding)
            batch = batch[len(part) :]

    async def _write_part(
        self, statement: _Statement, batch: Sequence[Settled], riding: Riding
    ) -> None:
        """Record jobs, however long it takes: until then they stay locked."""
        failures = 0
        left_behind: list[Rider] = []
        availability = self._connection.availability
        part = f"{statement.verb} jobs"
        while True:
            query = statement.query(batch, self._pool_id, [bound for _, bound in riding])
            try:
                written = await self._send(query, rows=len(batch))
                break
            except (psycopg.Error, OSError, UnicodeEncodeError, RowsHiddenError) as error:
                if riding and not self._riders.stay(error):
                    riders, riding = [rider for rider, _ in riding], []
                    self._riders.failed(riders, error)
                    left_behind = riders if is_data_error(error) else []
                    continue
                failures += 1
                backoff = backoff_for(error)
                if backoff is None:
                    await self._write_in_parts(statement, batch, error)
                    return
                delay = backoff.delay(failures)
                about = {"pool_id": self._pool_id}
                availability.failed(part, error, delay=delay, log=self._logger, extra=about)
                await availability.wait(delay)
                if riding:  # what they say of the time has changed
                    riding = self._riders.bind(batch)[1]
        availability.works(part)
        self._written(batch, written, is_first=failures == 0)
        for rider in left_behind:
            await self._ride_singly(rider, [each for each in batch if each[0].id in written])

    def _written(self, batch: Sequence[Settled], written: set[int], *, is_first: bool) -> None:
        recorded = batch
        # After a failure rows may be missing because the first statement was committed.
        if len(written) < len(batch) and is_first:
            lost = [job.id for job in _jobs_of(batch) if job.id not in written]
            self._events.emit(events.JobLost(pool_id=self._pool_id, job_ids=lost))
            recorded = [each for each in batch if each[0].id in written]
        self._holdings.recorded(_jobs_of(batch))
        if recorded:
            self._let_count(recorded)

    def _let_count(self, batch: Sequence[Settled]) -> None:
        for count in self._settled:
            try:
                count(batch)
            except Exception:
                self._logger.exception("A plugin could not count outcomes")

    async def _send(self, query: Query[set[int]], *, rows: int) -> set[int]:
        """Send a statement that should change this many rows; returns the ids of those it changed.

        Raises:
            RowsHiddenError: Some were not changed, because the role may not see rows now.
        """
        written = await self._connection.run(query)
        if len(written) < rows:
            own = self._connection
            await check_visible(own.run, self._schema, renew=own.renew)
        return written

    async def _ride_singly(self, rider: Rider, batch: Sequence[Settled]) -> None:
        """Run a rider for one job after the other, because a value of one of them failed it."""
        for settled in batch:
            bound = self._riders.bound(rider, [settled])
            if bound is None:
                continue
            try:
                await self._connection.run(ride_alone(settled[0], bound))
            except (psycopg.Error, OSError, UnicodeEncodeError) as error:
                self._riders.failed([rider], error)

    async def _write_in_parts(
        self, statement: _Statement, batch: Sequence[Settled], error: Exception
    ) -> None:
        """Record a batch after an error that will not pass, so that only its cause fails."""
        if len(batch) > 1:
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                await self._write(statement, part)
            return
        settled = batch[0]
        # Text that the encoding of the database, or of a caller's connections, lacks.
        if isinstance(error, psycopg.DataError | UnicodeEncodeError):
            plain = statement.simplify(settled)
            if plain is not None:
                await self._write(statement, [plain])
                return
        if statement is COMPLETE and _is_refusal(error):
            await self._write(FAIL, [self._refused(settled, error)])
            return
        verb, job = statement.verb, settled[0]
        if _is_refusal(error):
            # Other jobs go on; that this one stays locked is raised when the pool has stopped.
            self._logger.error(
                "Could not %s job %d (%s), which stays locked by this pool: %s",
                verb,
                job.id,
                job.task_identifier,
                one_line(error),
                extra={"pool_id": self._pool_id, "job_id": job.id},
            )
            return
        failure = WorkerPoolError(f"could not {verb} job {job.id}: {one_line(error)}")
        self._broken(failure, f"{verb} jobs")

    def _refused(self, settled: Settled, error: Exception) -> Settled:
        """The failure of a job that was completed, but that the database refuses to delete."""
        job, _, ended, duration = settled
        message = f"The database refused to complete the job: {message_of(error)}"
        self._logger.error(
            "Could not complete job %d (%s), recording it as failed: %s",
            job.id,
            job.task_identifier,
            one_line(error),
            extra={"pool_id": self._pool_id, "job_id": job.id},
        )
        is_final = job.attempts >= job.max_attempts
        return job, Failed(error=error, message=message, is_final=is_final), ended, duration


def _is_refusal(error: Exception) -> bool:
    """Whether a constraint or trigger of the user refuses a job, instead of all being refused."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(REFUSALS)
