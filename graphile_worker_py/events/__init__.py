"""The list of all events: a frozen dataclass for each kind, in the order of a run.

`docs/events.md` has a table made from this list, which is why it stays one module.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from graphile_worker_py.events.event import Event as Event
from graphile_worker_py.events.subscribing import Events as Events
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec


class PoolEvent(Event):
    """Base of the events about a worker pool."""

    pool_id: str


class PoolCreate(PoolEvent):
    """A worker pool has started."""

    name: ClassVar = "pool:create"


class PoolListenConnecting(PoolEvent):
    """The listener is about to connect. `attempts` counts from 1 since it last listened."""

    name: ClassVar = "pool:listen:connecting"
    attempts: int


class PoolListenSuccess(PoolEvent):
    """The listener is connected and listening, as confirmed by the server."""

    name: ClassVar = "pool:listen:success"


class PoolListenError(PoolEvent):
    """The listener could not connect, or lost its connection. It will reconnect."""

    name: ClassVar = "pool:listen:error"
    error: Exception


class PoolListenNotification(PoolEvent):
    """The listener received a notification."""

    name: ClassVar = "pool:listen:notification"
    channel: str
    payload: str


class PoolListenRelease(PoolEvent):
    """The listening connection was closed at shutdown."""

    name: ClassVar = "pool:listen:release"


class PoolFatalError(PoolEvent):
    """The pool can't continue, and stops gracefully. `action` is what failed."""

    name: ClassVar = "pool:fatalError"
    error: BaseException
    action: str


class PoolGracefulShutdown(PoolEvent):
    """The pool begins to stop: it fetches no more jobs, and running jobs finish."""

    name: ClassVar = "pool:gracefulShutdown"
    message: str


class PoolGracefulShutdownWorkerError(PoolEvent):
    """A worker broke down while the pool was stopping. Its `job`, if it had one, has failed."""

    name: ClassVar = "pool:gracefulShutdown:workerError"
    error: BaseException
    job: Job | None


class PoolGracefulShutdownError(PoolEvent):
    """The pool has stopped, but not cleanly. `run` raises `error`."""

    name: ClassVar = "pool:gracefulShutdown:error"
    error: BaseException


class PoolGracefulShutdownComplete(PoolEvent):
    """The pool has stopped completely."""

    name: ClassVar = "pool:gracefulShutdown:complete"


class PoolForcefulShutdown(PoolEvent):
    """The pool begins to stop by force: running jobs are cancelled and returned."""

    name: ClassVar = "pool:forcefulShutdown"
    message: str


class PoolForcefulShutdownError(PoolEvent):
    """The pool has stopped by force, but not cleanly. `run` raises `error`."""

    name: ClassVar = "pool:forcefulShutdown:error"
    error: BaseException


class PoolForcefulShutdownComplete(PoolEvent):
    """The pool has stopped by force. `returned` are the jobs that it cancelled and returned."""

    name: ClassVar = "pool:forcefulShutdown:complete"
    returned: Sequence[Job]


class PoolRelease(PoolEvent):
    """The pool has ended. This is its last event."""

    name: ClassVar = "pool:release"


class PoolTakenForDead(PoolEvent):
    """Another pool declared this one dead, because it was paused or disconnected.

    Its jobs have been released. It stops by force, and the runner starts a new pool.
    """

    name: ClassVar = "pool:takenForDead"


class PoolRecovered(PoolEvent):
    """This pool has released the jobs and queues of dead pools.

    `jobs` and `queues` are their numbers. `given_up` are the ids of jobs that are not retried,
    because their worker processes died too often. `failed_plugins` is the number of plugins whose
    `recovered` failed.
    """

    name: ClassVar = "pool:recovered"
    dead_pool_ids: Sequence[str]
    jobs: int
    queues: int
    given_up: Sequence[int]
    failed_plugins: int


class LocalQueueInit(PoolEvent):
    """The local queue has started."""

    name: ClassVar = "localQueue:init"


class LocalQueueSetMode(PoolEvent):
    """The local queue has changed its mode."""

    name: ClassVar = "localQueue:setMode"
    old_mode: str
    new_mode: str


class LocalQueueGetJobsComplete(PoolEvent):
    """A fetch returned these jobs, possibly none."""

    name: ClassVar = "localQueue:getJobs:complete"
    jobs: Sequence[Job]


class LocalQueueReturnJobs(PoolEvent):
    """These jobs were fetched but not started, and are returned with their attempt."""

    name: ClassVar = "localQueue:returnJobs"
    jobs: Sequence[Job]


class LocalQueueRefetchDelayStart(PoolEvent):
    """A fetch returned few jobs: the next one follows after a refetch delay of `delay` seconds."""

    name: ClassVar = "localQueue:refetchDelay:start"
    job_count: int
    threshold: int
    delay: float
    abort_threshold: float


class LocalQueueRefetchDelayAbort(PoolEvent):
    """The refetch delay ended early: enough jobs were announced."""

    name: ClassVar = "localQueue:refetchDelay:abort"
    count: int
    abort_threshold: float


class LocalQueueRefetchDelayExpired(PoolEvent):
    """The refetch delay elapsed."""

    name: ClassVar = "localQueue:refetchDelay:expired"


class WorkerEvent(PoolEvent):
    """Base of the events about one worker of a pool."""

    worker_id: str


class WorkerCreate(WorkerEvent):
    """A worker was created. `tasks` are the identifiers of the tasks that it runs."""

    name: ClassVar = "worker:create"
    tasks: Sequence[str]


class WorkerRelease(WorkerEvent):
    """A worker was asked to stop."""

    name: ClassVar = "worker:release"


class WorkerStop(WorkerEvent):
    """A worker has ended. `error` is None if it was asked to."""

    name: ClassVar = "worker:stop"
    error: BaseException | None = None


class WorkerGetJobStart(WorkerEvent):
    """A worker asks its pool for a job."""

    name: ClassVar = "worker:getJob:start"


class WorkerGetJobError(PoolEvent):
    """A fetch for the workers of the pool failed. It will be retried."""

    name: ClassVar = "worker:getJob:error"
    error: Exception


class WorkerGetJobEmpty(PoolEvent):
    """A fetch for the workers of the pool returned no job."""

    name: ClassVar = "worker:getJob:empty"


class WorkerFatalError(WorkerEvent):
    """A worker broke down because of a fault in this library. The pool stops.

    Its job has failed, and the attempt counts. `job_error` is the error of the task, if the worker
    broke down while it handled that error.
    """

    name: ClassVar = "worker:fatalError"
    error: BaseException
    job_error: BaseException | None = None


class JobEvent(WorkerEvent):
    """Base of the events about a job that a worker has."""

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

    `batch_job_errors` are the errors of the failed items of a batch job, otherwise None. `retry_at`
    is about when the next attempt is due, None after the last one.
    """

    name: ClassVar = "job:error"
    error: BaseException
    duration: float
    batch_job_errors: Sequence[BaseException] | None = None
    retry_at: datetime | None


class JobFailed(JobError):  # noqa: N818  # an event, not an exception
    """The task failed and the job has no attempts left.

    Emitted after `JobError`, whose subscribers hear it, too.
    """

    name: ClassVar = "job:failed"


class JobSnoozed(JobEvent):
    """The task snoozed the job after `duration` seconds; it is due again at about `due_at`."""

    name: ClassVar = "job:snoozed"
    duration: float
    due_at: datetime


class JobCancelled(JobEvent):
    """The job was cancelled while it ran, and has ended. Its row is being deleted."""

    name: ClassVar = "job:cancelled"
    duration: float
    reason: str | None


class JobDiscarded(JobEvent):
    """The task, or its retry policy, discarded the job, which is not retried.

    `JobError` and `JobFailed` are not emitted.
    """

    name: ClassVar = "job:discarded"
    duration: float
    error: BaseException


class ThreadStuck(JobEvent):
    """A plain function keeps running in its thread after its timeout or a forced stop.

    `stuck` is the number of such threads. When it reaches `most_stuck`, functions that need a new
    thread wait until one of these threads returns.
    """

    name: ClassVar = "thread:stuck"
    stuck: int
    most_stuck: int


class TaskStuck(JobEvent):
    """An async task keeps running after its timeout, although it was cancelled twice.

    Its job has failed, and its worker goes on with the next job. `stuck` is the number of such
    tasks; `stack` shows where this one waits.
    """

    name: ClassVar = "task:stuck"
    stuck: int
    stack: str


class JobReturned(JobEvent):
    """The job was cancelled by a stop and is returned with its attempt."""

    name: ClassVar = "job:returned"
    reason: str


class JobComplete(JobEvent):
    """The outcome of a job is being recorded. `error` is None if the job succeeded."""

    name: ClassVar = "job:complete"
    error: BaseException | None


class JobLost(PoolEvent):
    """Outcomes were not recorded, because the jobs were no longer locked by this pool."""

    name: ClassVar = "job:lost"
    job_ids: Sequence[int]


class JobsAdded(Event):
    """Jobs were added through `WorkerUtils`, a runner or the context of a task.

    In a transaction of the caller's, they are not committed yet.
    """

    name: ClassVar = "jobs:added"
    jobs: Sequence[Job]


class CronStarting(Event):
    """Cron is about to register its items and to add missed runs."""

    name: ClassVar = "cron:starting"
    start: datetime


class CronStarted(Event):
    """Cron has added missed runs and now waits for the next minute."""

    name: ClassVar = "cron:started"
    start: datetime


class CronBackfill(Event):
    """Cron is about to add missed runs.

    `jobs`, `known_since` and `last_executions` have one entry for each of `identifiers`: the job
    to add, the time since which the item is known, and its last run before this start.
    """

    name: ClassVar = "cron:backfill"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]
    known_since: Sequence[datetime]
    last_executions: Sequence[datetime | None]


class CronPrematureTimer(Event):
    """The clock went back, or the timer fired early: nothing is due yet."""

    name: ClassVar = "cron:prematureTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


class CronOverdueTimer(Event):
    """The expected minute has passed (sleep, load, a clock step): cron catches up."""

    name: ClassVar = "cron:overdueTimer"
    current_timestamp: datetime
    expected_timestamp: datetime


class CronSchedule(Event):
    """Cron is about to add the due items: `jobs`, in the order of `identifiers`."""

    name: ClassVar = "cron:schedule"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]


class CronScheduled(Event):
    """The due items are in the database, added by this worker or another one."""

    name: ClassVar = "cron:scheduled"
    identifiers: Sequence[str]
    timestamp: datetime
    jobs: Sequence[JobSpec]


class ResetLockedStarted(PoolEvent):
    """The sweep for locks older than four hours has started."""

    name: ClassVar = "resetLocked:started"


class ResetLockedSuccess(PoolEvent):
    """The sweep is done. The next one follows after `delay` seconds."""

    name: ClassVar = "resetLocked:success"
    delay: float


class ResetLockedFailure(PoolEvent):
    """The sweep failed. It is retried after `delay` seconds."""

    name: ClassVar = "resetLocked:failure"
    error: Exception
    delay: float


class GracefulShutdown(Event):
    """The process received a first signal: it stops gracefully."""

    name: ClassVar = "gracefulShutdown"
    signal: str


class ForcefulShutdown(Event):
    """The process received a second signal: it stops by force."""

    name: ClassVar = "forcefulShutdown"
    signal: str


class Stop(Event):
    """The runner has ended."""

    name: ClassVar = "stop"
