"""What one pool writes of the jobs that it has run: runs, with their outcomes, and counters."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, assert_never

import orjson
from psycopg import AsyncConnection, errors

from graphile_worker_py.errors import shortened
from graphile_worker_py.history.counters import Counters
from graphile_worker_py.history.error_groups import error_group
from graphile_worker_py.history.settings import Kept, kept_of
from graphile_worker_py.history.texts import LARGEST_STATEMENT, LONGEST_TEXT
from graphile_worker_py.job.results import written_result
from graphile_worker_py.options.history import HistoryLevel
from graphile_worker_py.outcomes import (
    Cancelled,
    Completed,
    Failed,
    Returned,
    Settled,
    Snoozed,
)
from graphile_worker_py.sql import awaited
from graphile_worker_py.sql.fail_jobs import storable
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.run_riders import EndedRun, completed_runs, failed_runs, killed_runs
from graphile_worker_py.sql.runs import RunOutcome
from graphile_worker_py.sql.suspects import HeldJob
from graphile_worker_py.sql.task_minutes import add_counts

AWAIT: Final = "await"
"""Topic of notifications that jobs are awaited."""
FLUSH_EVERY: Final = 5
"""Heartbeats after which what was counted is written."""
MOST_LOGS: Final = 10_000
"""Attempts of which logs wait for their outcome to be recorded."""
FLUSH_PATIENCE: Final = 2.0
"""Seconds that the last write may take."""


def run_outcome(settled: Settled) -> RunOutcome | None:
    """How an attempt ended; None if it was returned, which leaves no trace."""
    match settled[1]:
        case Completed():
            return RunOutcome.COMPLETED
        case Failed(is_discarded=True):
            return RunOutcome.DISCARDED
        case Failed(is_final=is_final):
            return RunOutcome.FAILED if is_final else RunOutcome.RETRIED
        case Snoozed():
            return RunOutcome.SNOOZED
        case Cancelled():
            return RunOutcome.CANCELLED
        case Returned():
            return None
        case _:
            assert_never(settled[1])


class Recorder:
    """The history of one pool.

    Args:
        pool: The `WorkerPool`.

    Attributes:
        ready: Whether the tables exist; until then nothing is written.
        logs: What running jobs have logged, by their ids.
    """

    def __init__(self, pool: Any) -> None:
        self.ready = False
        self.logs: dict[int, str] = {}
        self._pool = pool
        self._options = pool.options
        self._schema: str = pool.database.schema
        self._kept = {name: kept_of(task, pool.options) for name, task in pool.tasks.items()}
        self._otherwise = kept_of(None, pool.options)
        self._successes = any(kept.successes for kept in self._kept.values())
        self._failures = any(kept.failures for kept in self._kept.values())
        self._plain = all(
            kept.successes and not kept.results and kept.log_level is None
            for kept in self._kept.values()
        )
        self._awaited = self._heard = False
        self._counts = pool.options.history != HistoryLevel.NONE
        self._counters = Counters(pool.server_time, run_outcome)
        self._beats = 0

    def _kept_of(self, task: str) -> Kept:
        return self._kept.get(task, self._otherwise)

    # Runs.

    def bind(self, batch: Sequence[Settled]) -> BoundRider | None:
        """The statement that writes runs, as a part of the one that records outcomes."""
        if not self.ready:
            return None
        outcome = batch[0][1]  # all are of one kind
        if isinstance(outcome, Completed):
            if self._plain and not self._awaited:
                return self._completed(batch, {})
            return self._some_completed(batch) if self._successes or self._awaited else None
        if isinstance(outcome, Returned):
            return None
        return self._some_failed(batch) if self._failures or self._awaited else None

    def _completed(self, batch: Sequence[Settled], more: dict[str, Any]) -> BoundRider:
        now = perf_counter()
        return completed_runs(
            worker_schema=self._schema,
            pool_id=self._pool.pool_id,
            awaited=self._awaited,
            payloads=self._options.history_payloads,
            tasks=self._pool.task_ids,
            # This is the fastest way to write numbers.
            ids=_array([settled[0].id for settled in batch]),
            durations=_array([settled[3] for settled in batch]),
            ages=_array([now - settled[2] for settled in batch]),
            attempts=_array([settled[0].attempts for settled in batch]),
            **more,
        )

    def _some_completed(self, batch: Sequence[Settled]) -> BoundRider | None:
        """Runs of the tasks of which successes are kept, and of jobs that may be awaited."""
        chosen: list[Settled] = []
        rows: list[tuple[Any, ...]] = []
        size = 0
        covers: int | None = None
        for at, settled in enumerate(batch):
            kept = self._kept_of(settled[0].task_identifier)
            if not kept.successes and not self._awaited:
                continue
            result, omitted = self._result(settled, kept)
            logs = self.logs.get(settled[0].id)
            size += len(result or "") + len(logs or "")
            if size > LARGEST_STATEMENT and chosen:
                covers = at
                break
            chosen.append(settled)
            rows.append((kept.successes, kept.results, result, omitted, logs))
        if not chosen:
            return None
        names = ("keep", "keep_result", "results", "omitted", "logs")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        return self._completed(chosen, {**columns, "covers": covers})

    def _result(self, settled: Settled, kept: Kept) -> tuple[str | None, str | None]:
        """A result as JSON, and why it is missing."""
        job, outcome, _, _ = settled
        if not isinstance(outcome, Completed) or outcome.result is None:
            return None, None
        if not kept.results and not self._awaited:
            return None, None
        result, omitted = written_result(outcome.result, limit=self._options.result_limit)
        if omitted is not None and kept.results:
            self._pool.logger.warning(
                "The result of job %d (%s) is not kept: %s",
                job.id,
                job.task_identifier,
                omitted,
                extra={"pool_id": self._pool.pool_id, "job_id": job.id},
            )
        return result, omitted

    def _some_failed(self, batch: Sequence[Settled]) -> BoundRider | None:
        """Runs of the tasks of which failures are kept, and of jobs that may be awaited."""
        runs: list[EndedRun] = []
        size = 0
        covers: int | None = None
        now = perf_counter()
        for at, settled in enumerate(batch):
            kept = self._kept_of(settled[0].task_identifier)
            if not kept.failures and not self._awaited:
                continue
            run = self._ended(settled, keep=kept.failures, now=now)
            size += sum(len(text or "") for text in (run.error, run.logs, run.payload))
            if size > LARGEST_STATEMENT and runs:
                covers = at
                break
            runs.append(run)
        if not runs:
            return None
        return failed_runs(
            runs,
            worker_schema=self._schema,
            pool_id=self._pool.pool_id,
            awaited=self._awaited,
            covers=covers,
        )

    def _ended(self, settled: Settled, *, keep: bool, now: float) -> EndedRun:
        job, outcome, ended, duration = settled
        error = outcome.error if isinstance(outcome, Failed) else None
        match outcome:
            case Failed(message=message) | Cancelled(reason=message):
                pass
            case _:
                message = None
        payload = job.payload_json.decode() if self._options.history_payloads else None
        return EndedRun(
            job_id=job.id,
            duration=duration,
            age=now - ended,
            keep=keep,
            task=job.task_identifier,
            attempt=job.attempts,
            outcome=str(run_outcome(settled)),
            run_at=job.run_at,
            error=None if message is None else storable(shortened(message, LONGEST_TEXT)),
            error_group=None if error is None else storable(error_group(error)),
            logs=self.logs.get(job.id),
            payload=payload,
        )

    async def write_killed(
        self, conn: AsyncConnection[Any], killed: Sequence[tuple[HeldJob, str]]
    ) -> None:
        """Write runs of jobs under which another pool died, each with the message that says so."""
        if not killed:
            return
        unkept = [name for name, kept in self._kept.items() if not kept.failures]
        query = killed_runs(
            killed,
            worker_schema=self._schema,
            unkept_tasks=unkept,
            payloads=self._options.history_payloads,
        )
        await self._pool.database.run(query, conn=conn)

    # Logs.

    def log_level(self, task: str) -> int | None:
        """The lowest level of the logs that are kept of a task's jobs; None keeps none."""
        level = self._kept_of(task).log_level
        return None if level is None else logging.getLevelNamesMapping()[level]

    def keep_logs(self, job_id: int, text: str | None) -> None:
        """Keep what an attempt has logged until its outcome is recorded."""
        if text is not None:
            self.logs[job_id] = storable(text)
        while len(self.logs) > MOST_LOGS:  # of jobs that were taken from the pool
            del self.logs[next(iter(self.logs))]

    # Counters, and what follows each heartbeat.

    def settled(self, batch: Sequence[Settled]) -> None:
        """Count outcomes that were recorded, and forget the logs of their jobs."""
        if isinstance(batch[0][1], Returned):
            return
        if self._counts:
            self._counters.count(batch)
        if self.logs:
            for settled in batch:
                self.logs.pop(settled[0].id, None)

    def hear_awaited(self, _said: Mapping[str, Any] | None) -> None:
        """A caller may wait for jobs now; heartbeats report when none does."""
        self._awaited = self._heard = True

    async def beat(self, conn: AsyncConnection[Any]) -> None:
        """Look whether jobs are awaited, and write what was counted from time to time."""
        self.ready = True
        run = self._pool.database.run
        self._heard = False
        are_awaited = await run(awaited.are_awaited(self._schema), conn=conn)
        # A notification meanwhile is newer than the answer, or could not be heard.
        is_deaf = not self._pool.once and not self._pool.listening
        self._awaited = are_awaited or self._heard or is_deaf
        self._beats += 1
        if self._beats % FLUSH_EVERY == 0:
            await self.flush(conn)

    async def flush(self, conn: AsyncConnection[Any] | None = None) -> None:
        """Write what was counted; what an outage keeps from being written is written later."""
        counted = self._counters.take()
        if not counted or not self.ready:
            return
        query = add_counts(self._schema, counted)
        try:
            await self._pool.database.run(query, conn=conn, within=FLUSH_PATIENCE)
        except BaseException as error:
            # A partition that is missing does not come back for a minute that is over.
            if not isinstance(error, errors.CheckViolation):
                self._counters.give_back(counted)
            raise


def _array(numbers: Iterable[float]) -> str:
    """Numbers as PostgreSQL writes an array."""
    return f"{{{orjson.dumps(list(numbers))[1:-1].decode()}}}"
