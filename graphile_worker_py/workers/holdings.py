"""Which jobs are locked for this pool: the one place that knows.

- A job is *held* from the moment its fetch hands it to the local queue until its outcome is
  recorded. It waits in store, runs, or has an outcome on its way to the database.
- A job is *withheld* if it was locked and a plugin did not pass it on.
- A job was *locked anew* if a fetch brought it while it was held: an operator, or another pool's
  sweep, had unlocked it. It runs on. If its outcome is recorded before the new lock, that lock is
  left behind.
- A fetch whose answer was lost may have locked jobs that the pool does not know about.

Withheld jobs, locks left behind and lost answers put the holdings *in doubt*. The fetcher then
returns all jobs locked by the pool that are not held, before its next fetch and at the end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.outages import is_outage

_UNDONE: Final = (errors.QueryCanceled, errors.LockNotAvailable, errors.ReadOnlySqlTransaction)
"""Outages that the server itself reports in a session that goes on: the statement was undone."""


class Holdings:
    """The jobs that are locked for one pool. State changes between awaits only."""

    def __init__(self) -> None:
        self._held: set[int] = set()
        self._withheld: set[int] = set()
        self._locked_anew: set[int] = set()
        self._answer_lost = False
        self._on_recorded: Callable[[], None] | None = None
        self.queues_freed = 0
        """How often outcomes have freed serial queues; a change means a hidden job may be due."""

    @property
    def ids(self) -> AbstractSet[int]:
        """Ids of the jobs that are held."""
        return self._held

    @property
    def in_doubt(self) -> bool:
        """Whether jobs may be locked for the pool that it does not hold."""
        if self._answer_lost or self._withheld:
            return True
        return bool(self._locked_anew) and not self._locked_anew.issubset(self._held)

    @property
    def has_withheld(self) -> bool:
        """Whether plugins kept back jobs that their fetch has locked."""
        return bool(self._withheld)

    @contextmanager
    def locking(self) -> Iterator[None]:
        """Surround the statement that locks jobs: if its answer is lost, they may be locked."""
        before, self._answer_lost = self._answer_lost, True
        try:
            yield
        except psycopg.Error as error:
            # An error that the server reports undid the statement. One with which it ends the
            # session may follow the commit.
            if not is_outage(error) or isinstance(error, _UNDONE):
                self._answer_lost = before
            raise
        self._answer_lost = before

    def withhold(self, jobs: Iterable[Job]) -> None:
        """Note jobs that were locked, until plugins pass them on."""
        self._withheld.update(job.id for job in jobs)

    def passed_on(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Hold jobs from a fetch.

        Returns:
            The jobs that were not held before; only these may be run.
        """
        ids = {job.id for job in jobs}
        if self._withheld:
            self._withheld -= ids
        again = self._held & ids
        self._held |= ids
        if not again:
            return jobs
        self._locked_anew |= again
        return [job for job in jobs if job.id not in again]

    def recorded(self, jobs: Sequence[Job]) -> None:
        """Let go of jobs whose outcome is recorded."""
        self._held.difference_update(job.id for job in jobs)
        if any(job.job_queue_id is not None for job in jobs):
            self.queues_freed += 1
        if self._on_recorded is not None:
            self._on_recorded()

    def when_recorded(self, call: Callable[[], None]) -> None:
        """Call a function each time that outcomes were recorded."""
        self._on_recorded = call

    def resolved(self, known: AbstractSet[int]) -> None:
        """End the doubt: everything that was not `known` has been returned."""
        self._answer_lost = False
        self._withheld.clear()
        self._locked_anew &= known
