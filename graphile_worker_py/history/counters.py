"""Counters of a pool: how its jobs ended in each minute, how long they waited and ran.

They are kept in memory and written with every fifth heartbeat. A pool that is killed loses what it
has not written.

Each outcome is counted. The times of a large batch are taken from a sample, in which each run
stands for several: measuring each would slow down a pool that runs 80,000 jobs a second.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from graphile_worker_py.outcomes import Completed, Settled
from graphile_worker_py.sql.runs import RunOutcome
from graphile_worker_py.sql.task_minutes import TaskMinute, bucket_of

SAMPLE: Final = 8
"""Most runs of a task in a batch of which the times are measured."""
MOST_ENTRIES: Final = 10_000
"""Tasks and minutes that are kept in memory while the database can't be reached."""


class Counters:
    """The counters of one pool.

    Args:
        server_time: The server's clock, in seconds since 1970, at a moment of `perf_counter`; None
            before it is known.
        outcome_of: How an attempt ended; None if it is not counted.
    """

    def __init__(
        self,
        server_time: Callable[[float], float | None],
        outcome_of: Callable[[Settled], RunOutcome | None],
    ) -> None:
        self._server_time = server_time
        self._outcome_of = outcome_of
        self._entries: dict[tuple[str, int], TaskMinute] = {}

    def count(self, batch: Sequence[Settled]) -> None:
        """Count outcomes of one kind that were recorded together."""
        now = self._server_time(batch[-1][2]) if batch else None
        if now is None:
            return
        minute = 60 * int(now // 60)
        by_task: defaultdict[str, list[Settled]] = defaultdict(list)
        for settled in batch:
            by_task[settled[0].task_identifier].append(settled)
        for task, runs in by_task.items():
            entry = self._entry(task, minute)
            if isinstance(runs[0][1], Completed):
                entry.outcomes[RunOutcome.COMPLETED] += len(runs)
            else:
                entry.outcomes.update(filter(None, map(self._outcome_of, runs)))
            self._measure(entry, runs, now - batch[-1][2])

    def _entry(self, task: str, minute: int) -> TaskMinute:
        entry = self._entries.get((task, minute))
        if entry is None:
            entry = TaskMinute(task=task, minute=minute)
            if len(self._entries) < MOST_ENTRIES:
                self._entries[task, minute] = entry
        return entry

    def _measure(self, entry: TaskMinute, runs: Sequence[Settled], clocks_apart: float) -> None:
        step = -(-len(runs) // SAMPLE)
        for at in range(0, len(runs), step):
            weight = min(step, len(runs) - at)
            job, _, ended, duration = runs[at]
            began = ended - duration + clocks_apart
            entry.run[bucket_of(duration)] += weight
            entry.wait[bucket_of(began - job.run_at_seconds)] += weight

    def take(self) -> list[TaskMinute]:
        """What was counted since the last call, in order; it is forgotten here."""
        entries, self._entries = self._entries, {}
        return [entries[place] for place in sorted(entries)]

    def give_back(self, minutes: Sequence[TaskMinute]) -> None:
        """Keep what could not be written."""
        for each in minutes:
            self._entry(each.task, each.minute).add(each)
