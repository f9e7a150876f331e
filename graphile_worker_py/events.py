"""What can be observed: one frozen dataclass per event, and the place to subscribe.

It is long because it is a list: all events stand in one place, in the order of a run.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, fields
from datetime import datetime
from inspect import iscoroutinefunction
from typing import Any, ClassVar, TypeVar, dataclass_transform

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job, JobSpec

logger = logging.getLogger(__name__)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """Base of every event; `name` is the name that Graphile Worker gives it.

    A subclass is a frozen dataclass with keyword-only fields, without being decorated. Its methods
    are the ones below, for all events the same: those that `dataclass` writes for each class anew
    took a tenth of the time in which a worker starts.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    _names: ClassVar[frozenset[str]] = frozenset()
    _required: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)
        known = fields(cls)
        cls._names = frozenset(each.name for each in known)
        cls._required = frozenset(each.name for each in known if each.default is MISSING)

    def __init__(self, **values: Any) -> None:
        if values.keys() != self._names:
            missing = self._required - values.keys()
            unknown = values.keys() - self._names
            if missing or unknown:
                raise TypeError(
                    f"{type(self).__name__}() needs {sorted(self._required)} and takes no others "
                    f"than {sorted(self._names)}; given were {sorted(values)}"
                )
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))
        return f"{type(self).__qualname__}({shown})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, each.name) for each in fields(self))


class PoolEvent(Event):
    """Something about a worker pool."""

    pool_id: str


class PoolCreate(PoolEvent):
    """A worker pool begins to run."""

    name: ClassVar = "pool:create"


class PoolListenConnecting(PoolEvent):
    """The listener is about to connect; `attempts` counts from 1 since it last listened."""

    name: ClassVar = "pool:listen:connecting"
    attempts: int


class PoolListenSuccess(PoolEvent):
    """The server confirmed that the listener listens."""

    name: ClassVar = "pool:listen:success"


class PoolListenError(PoolEvent):
    """The listening connection could not be made, or was lost; it will be made again."""

    name: ClassVar = "pool:listen:error"
    error: Exception


class PoolListenNotification(PoolEvent):
    """A notification came in."""

    name: ClassVar = "pool:listen:notification"
    channel: str
    payload: str


class PoolListenRelease(PoolEvent):
    """The listening connection is closed, at shutdown."""

    name: ClassVar = "pool:listen:release"


class PoolFatalError(PoolEvent):
    """The pool can't go on; `action` is what it could not do. It stops gracefully."""

    name: ClassVar = "pool:fatalError"
    error: BaseException
    action: str


class PoolGracefulShutdown(PoolEvent):
    """The pool was told to stop: no more jobs are fetched, running ones finish."""

    name: ClassVar = "pool:gracefulShutdown"
    message: str


class PoolGracefulShutdownWorkerError(PoolEvent):
    """A worker broke down while the pool was stopping; `job` is returned, if it had one."""

    name: ClassVar = "pool:gracefulShutdown:workerError"
    error: BaseException
    job: Job | None


class PoolGracefulShutdownError(PoolEvent):
    """The pool stopped, but not cleanly; `run` raises `error`."""

    name: ClassVar = "pool:gracefulShutdown:error"
    error: BaseException


class PoolGracefulShutdownComplete(PoolEvent):
    """The pool stopped, and no part of it runs any more."""

    name: ClassVar = "pool:gracefulShutdown:complete"


class PoolForcefulShutdown(PoolEvent):
    """The pool was told to stop at once: running jobs are cut off and returned."""

    name: ClassVar = "pool:forcefulShutdown"
    message: str


class PoolForcefulShutdownError(PoolEvent):
    """The pool stopped by force, but not cleanly; `run` raises `error`."""

    name: ClassVar = "pool:forcefulShutdown:error"
    error: BaseException


class PoolForcefulShutdownComplete(PoolEvent):
    """The pool stopped by force; `returned` are the jobs that were cut off and given back."""

    name: ClassVar = "pool:forcefulShutdown:complete"
    returned: Sequence[Job]


class PoolRelease(PoolEvent):
    """The pool has ended, the last event of a pool."""

    name: ClassVar = "pool:release"


class PoolTakenForDead(PoolEvent):
    """Others have found this pool dead, because it stood still or was cut off.

    Its jobs are no longer its own. It stops by force, and the runner begins anew with another one.
    """

    name: ClassVar = "pool:takenForDead"


class PoolRecovered(PoolEvent):
    """This pool has freed what dead ones had locked.

    `jobs` and `queues` tell how many these were, `given_up` are the jobs that are not tried again
    because worker processes died under them too often.
    """

    name: ClassVar = "pool:recovered"
    dead_pool_ids: Sequence[str]
    jobs: int
    queues: int
    given_up: Sequence[int]


class LocalQueueInit(PoolEvent):
    """The local queue begins to work."""

    name: ClassVar = "localQueue:init"


class LocalQueueSetMode(PoolEvent):
    """The local queue changes its mode."""

    name: ClassVar = "localQueue:setMode"
    old_mode: str
    new_mode: str


class LocalQueueGetJobsComplete(PoolEvent):
    """A fetch brought these jobs, maybe none."""

    name: ClassVar = "localQueue:getJobs:complete"
    jobs: Sequence[Job]


class LocalQueueReturnJobs(PoolEvent):
    """These jobs were fetched, not started, and are given back with their attempt."""

    name: ClassVar = "localQueue:returnJobs"
    jobs: Sequence[Job]


class LocalQueueRefetchDelayStart(PoolEvent):
    """A fetch brought few jobs: the local queue rests for `delay` seconds."""

    name: ClassVar = "localQueue:refetchDelay:start"
    job_count: int
    threshold: int
    delay: float
    abort_threshold: float


class LocalQueueRefetchDelayAbort(PoolEvent):
    """So many jobs were announced that the rest ends early."""

    name: ClassVar = "localQueue:refetchDelay:abort"
    count: int
    abort_threshold: float


class LocalQueueRefetchDelayExpired(PoolEvent):
    """The rest ended in its time."""

    name: ClassVar = "localQueue:refetchDelay:expired"


class WorkerEvent(PoolEvent):
    """Something about one worker of a pool."""

    worker_id: str


class WorkerCreate(WorkerEvent):
    """A worker was made; `tasks` are the identifiers that it runs."""

    name: ClassVar = "worker:create"
    tasks: Sequence[str]


class WorkerRelease(WorkerEvent):
    """A worker was told to stop."""

    name: ClassVar = "worker:release"


class WorkerStop(WorkerEvent):
    """A worker ended; `error` is None if it ended as told."""

    name: ClassVar = "worker:stop"
    error: BaseException | None = None


class WorkerGetJobStart(WorkerEvent):
    """A worker asks for a job."""

    name: ClassVar = "worker:getJob:start"


class WorkerGetJobError(PoolEvent):
    """A fetch, which is for all workers of the pool, failed; it will be tried again."""

    name: ClassVar = "worker:getJob:error"
    error: Exception


class WorkerGetJobEmpty(PoolEvent):
    """A fetch, which is for all workers of the pool, brought no job."""

    name: ClassVar = "worker:getJob:empty"


class WorkerFatalError(WorkerEvent):
    """A worker broke down, which is a fault of this library; the pool stops.

    `job_error` is what the task had raised before, if it was its failure that could not be told.
    """

    name: ClassVar = "worker:fatalError"
    error: BaseException
    job_error: BaseException | None = None


class JobEvent(WorkerEvent):
    """Something about a job that a worker has."""

    job: Job


class JobStart(JobEvent):
    """The task of a job is about to be called."""

    name: ClassVar = "job:start"


class JobSuccess(JobEvent):
    """The task succeeded after `duration` seconds."""

    name: ClassVar = "job:success"
    duration: float


class JobError(JobEvent):
    """The task failed after `duration` seconds.

    `batch_job_errors` are the errors of the failed items of a batch job, else None.
    """

    name: ClassVar = "job:error"
    error: BaseException
    duration: float
    batch_job_errors: Sequence[BaseException] | None = None


class JobFailed(JobError):  # noqa: N818  # an event, not an exception
    """The task failed and has no attempts left. Follows `JobError`."""

    name: ClassVar = "job:failed"


class ThreadStuck(JobEvent):
    """A plain function was cut off by its timeout or a forced stop, but its thread runs on.

    There are `stuck` such threads now. With `most_stuck` of them no function is begun that needs
    a new thread, before one of them returns.
    """

    name: ClassVar = "thread:stuck"
    stuck: int
    most_stuck: int


class JobReturned(JobEvent):
    """The job was cut off by a stop and is given back with its attempt."""

    name: ClassVar = "job:returned"
    reason: str


class JobComplete(JobEvent):
    """The outcome of a job is on its way to the database; `error` is None on success."""

    name: ClassVar = "job:complete"
    error: BaseException | None


class JobLost(PoolEvent):
    """An outcome changed nothing: the jobs were no longer locked by this pool."""

    name: ClassVar = "job:lost"
    job_ids: Sequence[int]


class CronStarting(Event):
    """Cron is about to register its items and to backfill."""

    name: ClassVar = "cron:starting"
    start: datetime


class CronStarted(Event):
    """Cron has backfilled and now waits for the next minute."""

    name: ClassVar = "cron:started"
    start: datetime


class CronBackfill(Event):
    """Runs that were missed are about to be added.

    `jobs`, `known_since` and `last_executions` tell of each item, in the order of `identifiers`,
    what is added, since when it was known, and when its last run was before this start.
    """

    name: ClassVar = "cron:backfill"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]
    known_since: Sequence[datetime]
    last_executions: Sequence[datetime | None]


class CronPrematureTimer(Event):
    """The clock went back, or the timer came early: nothing is due yet."""

    name: ClassVar = "cron:prematureTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


class CronOverdueTimer(Event):
    """The expected minute has gone by (sleep, load, a clock step): it is caught up."""

    name: ClassVar = "cron:overdueTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


class CronSchedule(Event):
    """These items are due and about to be added: `jobs`, in the order of `identifiers`."""

    name: ClassVar = "cron:schedule"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]


class CronScheduled(Event):
    """These items were due and are in the database, added here or by another worker."""

    name: ClassVar = "cron:scheduled"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]


class ResetLockedStarted(PoolEvent):
    """The sweep for locks older than four hours begins."""

    name: ClassVar = "resetLocked:started"


class ResetLockedSuccess(PoolEvent):
    """The sweep is done; the next one comes after `delay` seconds."""

    name: ClassVar = "resetLocked:success"
    delay: float


class ResetLockedFailure(PoolEvent):
    """The sweep failed; it is tried again after `delay` seconds."""

    name: ClassVar = "resetLocked:failure"
    error: Exception
    delay: float


class GracefulShutdown(Event):
    """A first signal asks the process to stop."""

    name: ClassVar = "gracefulShutdown"
    signal: str


class ForcefulShutdown(Event):
    """A second signal asks it to stop at once."""

    name: ClassVar = "forcefulShutdown"
    signal: str


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
            subscriber: Called with the event; a plain function.

        Returns:
            A function that ends the subscription.

        Raises:
            ConfigurationError: There is no such event, or the subscriber is no plain function.
        """
        kinds = _kinds(event)
        _check_subscriber(subscriber)
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
    if not isinstance(event, str) and not (isinstance(event, type) and issubclass(event, Event)):
        raise ConfigurationError(
            f"event must be a class of events or a name like 'job:start', not {event!r}"
        )
    if not isinstance(event, str) and hasattr(event, "name"):
        return [event]
    concrete = [kind for kind in _descendants(Event) if hasattr(kind, "name")]
    if isinstance(event, str):
        found = [kind for kind in concrete if kind.name == event]
        if not found:
            known = ", ".join(sorted(kind.name for kind in concrete))
            raise ConfigurationError(f"there is no event {event!r}; events are {known}")
        return found
    return [kind for kind in concrete if issubclass(kind, event)]


def _check_subscriber(subscriber: object) -> None:
    if not callable(subscriber):
        raise ConfigurationError(f"subscriber must be a function, not {subscriber!r}")
    # Objects whose class has an async __call__ are no functions by themselves.
    if iscoroutinefunction(subscriber) or iscoroutinefunction(type(subscriber).__call__):
        raise ConfigurationError(
            f"subscriber must be a plain function, not the async {subscriber!r}: nobody awaits it; "
            f"hand the event on, to a queue for example"
        )


def _descendants(kind: type[Event]) -> list[type[Event]]:
    below = kind.__subclasses__()
    return below + [further for each in below for further in _descendants(each)]
