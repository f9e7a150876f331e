"""What can be observed: one frozen dataclass per event, and the place to subscribe.

It is long because it is a list: all events stand in one place, in the order of a run.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of every event; `name` is the name that Graphile Worker gives it."""

    name: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent(Event):
    """Something about a worker pool."""

    pool_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCreate(PoolEvent):
    """A worker pool begins to run."""

    name: ClassVar = "pool:create"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListenConnecting(PoolEvent):
    """The listener is about to connect; `attempts` counts from 1 since it last listened."""

    name: ClassVar = "pool:listen:connecting"
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListenSuccess(PoolEvent):
    """The server confirmed that the listener listens."""

    name: ClassVar = "pool:listen:success"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListenError(PoolEvent):
    """The listening connection could not be made, or was lost; it will be made again."""

    name: ClassVar = "pool:listen:error"
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListenNotification(PoolEvent):
    """A notification came in."""

    name: ClassVar = "pool:listen:notification"
    channel: str
    payload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolListenRelease(PoolEvent):
    """The listening connection is closed, at shutdown."""

    name: ClassVar = "pool:listen:release"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFatalError(PoolEvent):
    """The pool can't go on; `action` is what it could not do. It stops gracefully."""

    name: ClassVar = "pool:fatalError"
    error: BaseException
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGracefulShutdown(PoolEvent):
    """The pool was told to stop: no more jobs are fetched, running ones finish."""

    name: ClassVar = "pool:gracefulShutdown"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGracefulShutdownWorkerError(PoolEvent):
    """A worker broke down while the pool was stopping; `job` is returned, if it had one."""

    name: ClassVar = "pool:gracefulShutdown:workerError"
    error: BaseException
    job: Job | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGracefulShutdownError(PoolEvent):
    """The pool stopped, but not cleanly; `run` raises `error`."""

    name: ClassVar = "pool:gracefulShutdown:error"
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGracefulShutdownComplete(PoolEvent):
    """The pool stopped, and no part of it runs any more."""

    name: ClassVar = "pool:gracefulShutdown:complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolForcefulShutdown(PoolEvent):
    """The pool was told to stop at once: running jobs are cut off and returned."""

    name: ClassVar = "pool:forcefulShutdown"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolForcefulShutdownError(PoolEvent):
    """The pool stopped by force, but not cleanly; `run` raises `error`."""

    name: ClassVar = "pool:forcefulShutdown:error"
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolForcefulShutdownComplete(PoolEvent):
    """The pool stopped by force; `returned` are the jobs that were cut off and given back."""

    name: ClassVar = "pool:forcefulShutdown:complete"
    returned: Sequence[Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRelease(PoolEvent):
    """The pool has ended, the last event of a pool."""

    name: ClassVar = "pool:release"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueInit(PoolEvent):
    """The local queue begins to work."""

    name: ClassVar = "localQueue:init"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueSetMode(PoolEvent):
    """The local queue changes its mode."""

    name: ClassVar = "localQueue:setMode"
    old_mode: str
    new_mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueGetJobsComplete(PoolEvent):
    """A fetch brought these jobs, maybe none."""

    name: ClassVar = "localQueue:getJobs:complete"
    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueReturnJobs(PoolEvent):
    """These jobs were fetched, not started, and are given back with their attempt."""

    name: ClassVar = "localQueue:returnJobs"
    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueRefetchDelayStart(PoolEvent):
    """A fetch brought few jobs: the local queue rests for `delay` seconds."""

    name: ClassVar = "localQueue:refetchDelay:start"
    job_count: int
    threshold: int
    delay: float
    abort_threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueRefetchDelayAbort(PoolEvent):
    """So many jobs were announced that the rest ends early."""

    name: ClassVar = "localQueue:refetchDelay:abort"
    count: int
    abort_threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalQueueRefetchDelayExpired(PoolEvent):
    """The rest ended in its time."""

    name: ClassVar = "localQueue:refetchDelay:expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent(PoolEvent):
    """Something about one worker of a pool."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCreate(WorkerEvent):
    """A worker was made; `tasks` are the identifiers that it runs."""

    name: ClassVar = "worker:create"
    tasks: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRelease(WorkerEvent):
    """A worker was told to stop."""

    name: ClassVar = "worker:release"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStop(WorkerEvent):
    """A worker ended; `error` is None if it ended as told."""

    name: ClassVar = "worker:stop"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGetJobStart(WorkerEvent):
    """A worker asks for a job."""

    name: ClassVar = "worker:getJob:start"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGetJobError(PoolEvent):
    """A fetch failed; it will be tried again."""

    name: ClassVar = "worker:getJob:error"
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGetJobEmpty(PoolEvent):
    """A fetch brought no job."""

    name: ClassVar = "worker:getJob:empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFatalError(WorkerEvent):
    """A worker broke down, which is a fault of this library; the pool stops."""

    name: ClassVar = "worker:fatalError"
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(WorkerEvent):
    """Something about a job that a worker has."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStart(JobEvent):
    """The task of a job is about to be called."""

    name: ClassVar = "job:start"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSuccess(JobEvent):
    """The task succeeded after `duration` seconds."""

    name: ClassVar = "job:success"
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError(JobEvent):
    """The task failed after `duration` seconds.

    `batch_job_errors` are the errors of the failed items of a batch job, else None.
    """

    name: ClassVar = "job:error"
    error: BaseException
    duration: float
    batch_job_errors: Sequence[BaseException] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(JobError):  # noqa: N818  # an event, not an exception
    """The task failed and has no attempts left. Follows `JobError`."""

    name: ClassVar = "job:failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReturned(JobEvent):
    """The job was cut off by a forced stop and is given back with its attempt."""

    name: ClassVar = "job:returned"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobComplete(JobEvent):
    """The outcome of a job is on its way to the database; `error` is None on success."""

    name: ClassVar = "job:complete"
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLost(PoolEvent):
    """An outcome changed nothing: the jobs were no longer locked by this pool."""

    name: ClassVar = "job:lost"
    job_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CronStarting(Event):
    """Cron is about to register its items and to backfill."""

    name: ClassVar = "cron:starting"
    start: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronStarted(Event):
    """Cron has backfilled and now waits for the next minute."""

    name: ClassVar = "cron:started"
    start: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronBackfill(Event):
    """Runs that were missed are about to be added."""

    name: ClassVar = "cron:backfill"
    identifiers: Sequence[str]
    timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronPrematureTimer(Event):
    """The clock went back, or the timer came early: nothing is due yet."""

    name: ClassVar = "cron:prematureTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronOverdueTimer(Event):
    """The expected minute has gone by (sleep, load, a clock step): it is caught up."""

    name: ClassVar = "cron:overdueTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronSchedule(Event):
    """These items are due and about to be added."""

    name: ClassVar = "cron:schedule"
    identifiers: Sequence[str]
    timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CronScheduled(Event):
    """These items were due and are in the database, added here or by another worker."""

    name: ClassVar = "cron:scheduled"
    identifiers: Sequence[str]
    timestamp: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetLockedStarted(PoolEvent):
    """The sweep for locks older than four hours begins."""

    name: ClassVar = "resetLocked:started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetLockedSuccess(PoolEvent):
    """The sweep is done; the next one comes after `delay` seconds."""

    name: ClassVar = "resetLocked:success"
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetLockedFailure(PoolEvent):
    """The sweep failed; it is tried again after `delay` seconds."""

    name: ClassVar = "resetLocked:failure"
    error: Exception
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GracefulShutdown(Event):
    """A first signal asks the process to stop."""

    name: ClassVar = "gracefulShutdown"
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcefulShutdown(Event):
    """A second signal asks it to stop at once."""

    name: ClassVar = "forcefulShutdown"
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Event):
    """The runner has ended."""

    name: ClassVar = "stop"


E = TypeVar("E", bound=Event)


class Events:
    """Where events are told, and where one subscribes to them.

    Subscribers are called at once, one after the other, in the order of their subscription, and
    must not block. One that raises is logged and harms nobody.
    """

    def __init__(self) -> None:
        self._subscribers: dict[type[Event], tuple[Callable[[Any], object], ...]] = {}

    def subscribe(
        self, event: type[E] | str, subscriber: Callable[[E], object]
    ) -> Callable[[], None]:
        """Call `subscriber` for each event of this kind.

        Args:
            event: The class of the event, or Graphile Worker's name for it (`"job:start"`). A
                base class (`JobEvent`, `PoolEvent`, `Event`) stands for all its kinds.
            subscriber: Called with the event.

        Returns:
            A function that ends the subscription.

        Raises:
            ConfigurationError: There is no event of that name.
        """
        kinds = _kinds(event)
        for kind in kinds:
            self._subscribers[kind] = (*self._subscribers.get(kind, ()), subscriber)

        def unsubscribe() -> None:
            # The same subscriber may have subscribed again: a second call ends nothing.
            while kinds:
                kind = kinds.pop()
                left = list(self._subscribers.get(kind, ()))
                if subscriber in left:
                    left.remove(subscriber)
                if left:
                    self._subscribers[kind] = tuple(left)
                else:
                    self._subscribers.pop(kind, None)

        return unsubscribe

    def wants(self, event: type[Event]) -> bool:
        """Whether anybody would be told; lets the hot path save making the event."""
        return event in self._subscribers

    def emit(self, event: Event) -> None:
        """Tell all who subscribed to this kind of event."""
        for subscriber in self._subscribers.get(type(event), ()):
            try:
                subscriber(event)
            except Exception:
                logger.exception("Subscriber %r failed on event %s", subscriber, event.name)


def _kinds(event: type[Event] | str) -> list[type[Event]]:
    """The concrete kinds that a class or name stands for."""
    concrete = [kind for kind in _descendants(Event) if hasattr(kind, "name")]
    if isinstance(event, str):
        found = [kind for kind in concrete if kind.name == event]
        if not found:
            known = ", ".join(sorted(kind.name for kind in concrete))
            raise ConfigurationError(f"there is no event {event!r}; events are {known}")
        return found
    if hasattr(event, "name"):
        return [event]
    return [kind for kind in concrete if issubclass(kind, event)]


def _descendants(kind: type[Event]) -> list[type[Event]]:
    below = kind.__subclasses__()
    return below + [further for each in below for further in _descendants(each)]
