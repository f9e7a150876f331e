"""`Gathering` for threads."""

from collections import deque
from collections.abc import Sequence
from threading import Event, Lock
from typing import Final

import psycopg

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
from graphile_worker_py.postgres.blocking import SyncDatabase

_INTERRUPTED: Final = (
    "the call that sent this job with others was interrupted; the job may have been added"
)


class SyncGathering:
    """Sends the calls of `add_job` of all threads, as `Gathering` does those of an event loop.

    There is no thread of its own: one of the calls that wait is given the others to send.
    """

    def __init__(self, database: SyncDatabase) -> None:
        self._database = database
        self._lock = Lock()
        self._waiting: deque[_Call] = deque()
        self._under_way: object | None = None

    def add(self, spec: JobSpec, payload: str) -> Job:
        """Add a job that can share a statement."""
        with self._lock:
            if is_first := self._under_way is None and not self._waiting:
                way = self._under_way = object()
            else:
                call = _Call(spec, payload)
                self._waiting.append(call)
        if not is_first:
            return self._add_with_others(call)
        try:
            return self._database.drive(add_alone(spec, payload))
        finally:
            self._end(way)

    def _add_with_others(self, call: "_Call") -> Job:
        try:
            while call.outcome is None:
                is_told = call.turn.wait(PATIENCE)
                calls = self._calls_to_send(call) if is_told else self._go_past(call)
                if calls:
                    self._send(calls, sender=call)
                elif call.is_alone:
                    self._send_alone(call)
        except BaseException:
            self._leave(call)
            raise
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def _calls_to_send(self, call: "_Call") -> "Sequence[_Call]":
        with self._lock:
            call.turn.clear()
            calls, call.to_send = call.to_send, ()
            return calls

    def _go_past(self, call: "_Call") -> "Sequence[_Call]":
        """What waits, for a call that has waited for long enough."""
        with self._lock:
            if call not in self._waiting:
                return ()
            calls = take(self._waiting)
            self._under_way = calls[0]
            return calls

    def _send(self, calls: "Sequence[_Call]", *, sender: "_Call") -> None:
        try:
            if len(calls) == 1 and calls[0] is sender:
                self._send_alone(sender)
            else:
                self._send_together(calls)
        finally:
            for call in calls:
                if not call.is_settled:
                    call.settle(psycopg.OperationalError(_INTERRUPTED))
            self._end(calls[0])

    def _send_together(self, calls: "Sequence[_Call]") -> None:
        try:
            jobs = self._database.drive(add_together(calls))
        except Exception as error:
            refused = was_refused(error)
            for call in calls:
                call.settle(None if refused else share_of(error))
        else:
            for call, job in zip(calls, jobs, strict=True):
                call.settle(job)

    def _send_alone(self, call: "_Call") -> None:
        try:
            call.outcome = self._database.drive(add_alone(call.spec, call.payload))
        except Exception as error:
            call.outcome = error

    def _leave(self, call: "_Call") -> None:
        """Stop waiting, for example because of a KeyboardInterrupt."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            left, call.to_send = call.to_send, ()
            self._waiting.extendleft(reversed([each for each in left if each is not call]))
        if left:
            self._end(left[0])

    def _end(self, way: object) -> None:
        with self._lock:
            if self._under_way is not way:
                return  # the next one did not wait for it
            self._under_way = None
            if self._waiting:
                calls = take(self._waiting)
                self._under_way = calls[0]
                calls[0].to_send = calls
                calls[0].turn.set()


class _Call(Single):
    """A call that waits for its job, in its thread."""

    __slots__ = ("is_alone", "outcome", "to_send", "turn")

    def __init__(self, spec: JobSpec, payload: str) -> None:
        super().__init__(spec, payload)
        self.turn = Event()
        self.to_send: Sequence[_Call] = ()
        self.outcome: Job | Exception | None = None
        self.is_alone = False

    @property
    def is_settled(self) -> bool:
        return self.is_alone or self.outcome is not None

    def settle(self, outcome: Job | Exception | None) -> None:
        """Tell what became of it; None means that it must be added by itself."""
        self.outcome = outcome
        self.is_alone = outcome is None
        self.turn.set()
