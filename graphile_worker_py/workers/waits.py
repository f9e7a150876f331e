"""How long a worker pool waits for answers, and for tasks to end."""

from typing import Final

from graphile_worker_py.backoff import Backoff
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.records import Record

RECONNECT: Final = Backoff(shortest=0.1, longest=40.0, factor=2.7)
DEAF: Final = Backoff(shortest=60.0, longest=600.0, factor=2.0)


class Waits(Record):
    """Seconds that a worker pool waits. They are no options: only tests need other values.

    Attributes:
        stop: How long a stop waits for the last fetch, and for the jobs of one that was lost.
        kill: How long a forced stop waits for cancelled tasks, and then for the last outcomes.
        overrun: How long a job that was cancelled at its time limit gets to end: until it is
            cancelled again, and then until its worker goes on without it.
        confirm: The pause between two tries to confirm that the pool was not declared dead.
        plugins: How long plugins get to report that their fetch was cancelled.
        plugins_parts: How long parts that plugins add to the pool get to end.
        slow_scan: A scan from the start is slow if it takes longer than the first number of
            seconds, plus the second one for each job that it brings.
        resume_factor: After a slow scan, fetches resume for this many times as long as it took.
        resume_longest: But for at most this long.
        rest: How long a fetch that starts at the first wanted job, and finds few, is not followed
            by a slow scan from the start.
        begin_listening: How long a new listening connection gets for each of its first statements.
        echo: How long the listener waits for its own notification.
        late_echo: How long it waits in addition: the time may be up because the event loop stood
            still.
        reconnect: Pauses between two tries to connect the listener.
        deaf: Pauses between two tries to listen where LISTEN has no effect.
        suspect_alone: How long a suspect that runs alone keeps the other suspects waiting.
        recovery_lock: How long a recovery waits for rows and tables that other sessions have
            locked. The next recovery comes soon.
        old_locks: The longest pause between two looks after old locks, so that a lock is looked
            after several times an hour.
        look: The pause between two looks of the watchdog, if `watchdog_timeout` allows it.
        first_warning: How long the event loop stands still before the watchdog first warns. It
            warns again each time that this has doubled.
        chores: The pause between two times that a chore of history is done.
        process_use: How long processes of tasks are used.
    """

    stop: float = 3.0
    kill: float = 5.0
    overrun: float = 5.0
    confirm: float = 1.0
    plugins: float = 0.1
    plugins_parts: float = 3.0
    slow_scan: tuple[float, float] = (0.002, 10e-6)
    resume_factor: float = 10.0
    resume_longest: float = 2.0
    rest: float = 0.5
    begin_listening: float = 10.0
    echo: float = 5.0
    late_echo: float = 1.0
    reconnect: Backoff = RECONNECT
    deaf: Backoff = DEAF
    suspect_alone: float = 30.0
    recovery_lock: float = 10.0
    old_locks: float = 600.0
    look: float = 1.0
    first_warning: float = 10.0
    chores: float = 60.0
    process_use: ProcessUse = ProcessUse()

    def resume_for(self, took: float, *, jobs: int) -> float:
        """Seconds for which fetches may resume after a scan from the start that brought jobs."""
        at_once, each = self.slow_scan
        is_slow = took > at_once + each * jobs
        return min(self.resume_factor * took, self.resume_longest) if is_slow else 0.0
