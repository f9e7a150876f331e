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

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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
        MissingRightsError,
        PayloadError,
        UnknownTaskError,
        UnsupportedPostgresError,
        WorkerPoolError,
    )
    from graphile_worker_py.events import Events
    from graphile_worker_py.executors.child import ProcessJobContext
    from graphile_worker_py.job import Job, JobKeyMode, JobSpec, TaskName
    from graphile_worker_py.loading.directory import load_tasks
    from graphile_worker_py.options import LocalQueueOptions, RefetchDelay, WorkerOptions
    from graphile_worker_py.plugins import FetchRequest, Plugin, SchemaStep
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
    from graphile_worker_py.tasks.context import JobContext, SyncJobContext
    from graphile_worker_py.tasks.task import Task, task
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
    "MissingRightsError",
    "ParsedCronItem",
    "PayloadError",
    "Plugin",
    "ProcessJobContext",
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
    "load_tasks",
    "parse_cron_item",
    "parse_cron_items",
    "parse_crontab",
    "read_crontab",
    "run",
    "run_migrations",
    "run_once",
    "task",
]

# The modules of the names. Each is read when one of its names is first asked for: a module of tasks
# needs `task`, and not all the rest.
_HOMES: Final = {
    name: module
    for module, names in {
        "tasks.context": ("JobContext", "SyncJobContext"),
        "cron": (
            "CronItem",
            "CronItemOptions",
            "ParsedCronItem",
            "parse_cron_item",
            "parse_cron_items",
            "parse_crontab",
            "read_crontab",
        ),
        "errors": (
            "ConfigurationError",
            "CrontabError",
            "GraphileWorkerError",
            "IncompatibleSchemaError",
            "MigrationError",
            "MissingRightsError",
            "PayloadError",
            "UnknownTaskError",
            "UnsupportedPostgresError",
            "WorkerPoolError",
        ),
        "events": ("Events",),
        "executors.child": ("ProcessJobContext",),
        "plugins": ("FetchRequest", "Plugin", "SchemaStep"),
        "job": ("Job", "JobKeyMode", "JobSpec", "TaskName"),
        "options": ("LocalQueueOptions", "RefetchDelay", "WorkerOptions"),
        "runner": ("Runner", "RunnerOptions", "run", "run_migrations", "run_once"),
        "sql.admin": ("Unlocked",),
        "sql.cleanup": ("CleanupTask",),
        "sql.get_jobs": ("Fetched",),
        "sql.inspect": (
            "JobCounts",
            "JobQueue",
            "JobState",
            "ListedJob",
            "LockHolder",
            "StateCounts",
        ),
        "sync_worker_utils": ("SyncWorkerUtils",),
        "loading.directory": ("load_tasks",),
        "tasks.task": ("Task", "task"),
        "worker_utils": ("WorkerUtils", "add_job_adhoc"),
    }.items()
    for name in names
}

if not TYPE_CHECKING:  # To type checkers only the names above exist.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
