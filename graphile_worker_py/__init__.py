"""Jobs in PostgreSQL, side by side with Graphile Worker for Node on one schema.

The life of a job, which is the order to read this package in:

| step | module | statement (in `sql/`) |
| --- | --- | --- |
| ask | `worker_utils`, `context`: `add_job`, `add_jobs`, by the steps in `adding` | `add_jobs` |
| wake | `listener`: `jobs:insert` → `pool.nudge(count)` | `notifications` |
| fetch | `local_queue`: idle workers are served by one fetch of `fetcher` | `get_jobs` |
| run | `worker` takes it, calls the task on the loop or through `executors` | none |
| settle | `batcher` → `settler` | `complete_jobs`, `fail_jobs`, `return_jobs` |
| tell | `events`: observers such as `event_log` | none |
"""

from graphile_worker_py.context import JobContext, SyncJobContext
from graphile_worker_py.cron import (
    CronItem,
    CronItemOptions,
    ParsedCronItem,
    parse_cron_item,
    parse_cron_items,
    parse_crontab,
    read_crontab,
)
from graphile_worker_py.errors import (
    ConfigurationError,
    CrontabError,
    GraphileWorkerError,
    IncompatibleSchemaError,
    MigrationError,
    PayloadError,
    UnknownTaskError,
    UnsupportedPostgresError,
    WorkerPoolError,
)
from graphile_worker_py.events import Events
from graphile_worker_py.hooks import FetchRequest, Plugin, SchemaStep
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, TaskName
from graphile_worker_py.options import LocalQueueOptions, RefetchDelay, WorkerOptions
from graphile_worker_py.runner import Runner, RunnerOptions, run, run_migrations, run_once
from graphile_worker_py.sql.admin import Unlocked
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.inspect import (
    JobCounts,
    JobQueue,
    JobState,
    ListedJob,
    LockHolder,
    StateCounts,
)
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils
from graphile_worker_py.tasks import Task, task
from graphile_worker_py.worker_utils import WorkerUtils, add_job_adhoc

__all__ = [
    "CleanupTask",
    "ConfigurationError",
    "CronItem",
    "CronItemOptions",
    "CrontabError",
    "Events",
    "FetchRequest",
    "Fetched",
    "GraphileWorkerError",
    "IncompatibleSchemaError",
    "Job",
    "JobContext",
    "JobCounts",
    "JobKeyMode",
    "JobQueue",
    "JobSpec",
    "JobState",
    "ListedJob",
    "LocalQueueOptions",
    "LockHolder",
    "MigrationError",
    "ParsedCronItem",
    "PayloadError",
    "Plugin",
    "RefetchDelay",
    "Runner",
    "RunnerOptions",
    "SchemaStep",
    "StateCounts",
    "SyncJobContext",
    "SyncWorkerUtils",
    "Task",
    "TaskName",
    "UnknownTaskError",
    "Unlocked",
    "UnsupportedPostgresError",
    "WorkerOptions",
    "WorkerPoolError",
    "WorkerUtils",
    "add_job_adhoc",
    "parse_cron_item",
    "parse_cron_items",
    "parse_crontab",
    "read_crontab",
    "run",
    "run_migrations",
    "run_once",
    "task",
]
