"""Jobs in PostgreSQL, side by side with Graphile Worker for Node on one schema.

The life of a job, which is the order to read this package in:

| step | module | statement (in `sql/`) |
| --- | --- | --- |
| add | `worker_utils`, `tasks.context`: `add_job` and `add_jobs`, from `adding` | `add_jobs` |
| wake | `workers.listener`, `workers.hearing`: `jobs:insert` → `pool.nudge` | `notifications` |
| fetch | `workers.local_queue`: a fetch by `workers.fetcher` for all idle workers | `get_jobs` |
| run | `workers.worker` calls the task, on the event loop or through `executors` | none |
| decide | `outcomes`: what the task returned or raised becomes one outcome | none |
| record | `workers.batcher` → `workers.settler` | `complete_jobs`, `fail_jobs`, `return_jobs` |
| observe | `events`: subscribers such as `observing.log` | none |
"""

import ast
import functools
import importlib
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Final

__all__: list[str]
_LOADER: Final = globals()["__loader__"]
# Where pytest rewrites assertions, its loader gives no source.
_SOURCE: Final[str | None] = (
    _LOADER if hasattr(_LOADER, "get_source") else SourceFileLoader(__name__, __file__)
).get_source(__name__)

# The public names, listed here only. Type checkers read this list as it stands; at run time
# `_homes` reads it from the source, and `__getattr__` imports a module when one of its names is
# first asked for: a module of tasks needs `task`, but not what runs jobs. Where the source is
# missing (only bytecode is installed), all names are imported at once.
if TYPE_CHECKING or _SOURCE is None:
    from graphile_worker_py.cron import CronItem as CronItem
    from graphile_worker_py.cron import CronItemOptions as CronItemOptions
    from graphile_worker_py.cron import ParsedCronItem as ParsedCronItem
    from graphile_worker_py.cron import parse_cron_item as parse_cron_item
    from graphile_worker_py.cron import parse_cron_items as parse_cron_items
    from graphile_worker_py.cron import parse_crontab as parse_crontab
    from graphile_worker_py.cron import read_crontab as read_crontab
    from graphile_worker_py.errors import ConfigurationError as ConfigurationError
    from graphile_worker_py.errors import CrontabError as CrontabError
    from graphile_worker_py.errors import GraphileWorkerError as GraphileWorkerError
    from graphile_worker_py.errors import IncompatibleSchemaError as IncompatibleSchemaError
    from graphile_worker_py.errors import JobCancelledError as JobCancelledError
    from graphile_worker_py.errors import JobFailedError as JobFailedError
    from graphile_worker_py.errors import JobGoneError as JobGoneError
    from graphile_worker_py.errors import JobLostError as JobLostError
    from graphile_worker_py.errors import MigrationError as MigrationError
    from graphile_worker_py.errors import MissingRightsError as MissingRightsError
    from graphile_worker_py.errors import MissingTablesError as MissingTablesError
    from graphile_worker_py.errors import PayloadError as PayloadError
    from graphile_worker_py.errors import StoppedError as StoppedError
    from graphile_worker_py.errors import UnknownTaskError as UnknownTaskError
    from graphile_worker_py.errors import UnsupportedPostgresError as UnsupportedPostgresError
    from graphile_worker_py.errors import WorkerPoolError as WorkerPoolError
    from graphile_worker_py.events import Events as Events
    from graphile_worker_py.executors.process_context import ProcessJobContext as ProcessJobContext
    from graphile_worker_py.job import Job as Job
    from graphile_worker_py.job.spec import JobKeyMode as JobKeyMode
    from graphile_worker_py.job.spec import JobSpec as JobSpec
    from graphile_worker_py.job.spec import TaskName as TaskName
    from graphile_worker_py.loading.directory import load_tasks as load_tasks
    from graphile_worker_py.looking.explaining import Cause as Cause
    from graphile_worker_py.looking.explaining import Explanation as Explanation
    from graphile_worker_py.looking.explaining import Reason as Reason
    from graphile_worker_py.observing.doctor import doctor as doctor
    from graphile_worker_py.observing.findings import Finding as Finding
    from graphile_worker_py.observing.findings import Severity as Severity
    from graphile_worker_py.once import RunOnceResult as RunOnceResult
    from graphile_worker_py.once import run_once as run_once
    from graphile_worker_py.options import LocalQueueOptions as LocalQueueOptions
    from graphile_worker_py.options import RefetchDelay as RefetchDelay
    from graphile_worker_py.options import WorkerOptions as WorkerOptions
    from graphile_worker_py.options.history import HistoryRetention as HistoryRetention
    from graphile_worker_py.options.limits import CircuitBreaker as CircuitBreaker
    from graphile_worker_py.options.limits import ConcurrencyLimit as ConcurrencyLimit
    from graphile_worker_py.options.limits import RateLimit as RateLimit
    from graphile_worker_py.options.pools import Pool as Pool
    from graphile_worker_py.options.shedding import Shedding as Shedding
    from graphile_worker_py.outcomes import Discard as Discard
    from graphile_worker_py.outcomes import RetryIn as RetryIn
    from graphile_worker_py.outcomes import RetryPolicy as RetryPolicy
    from graphile_worker_py.outcomes import Snooze as Snooze
    from graphile_worker_py.outcomes import exponential as exponential
    from graphile_worker_py.outcomes import fixed as fixed
    from graphile_worker_py.plugins import FetchRequest as FetchRequest
    from graphile_worker_py.plugins import Part as Part
    from graphile_worker_py.plugins import PartEnd as PartEnd
    from graphile_worker_py.plugins import Plugin as Plugin
    from graphile_worker_py.plugins import Rider as Rider
    from graphile_worker_py.plugins import SchemaStep as SchemaStep
    from graphile_worker_py.runner import Runner as Runner
    from graphile_worker_py.runner import run as run
    from graphile_worker_py.runner import run_migrations as run_migrations
    from graphile_worker_py.runner_options import RunnerOptions as RunnerOptions
    from graphile_worker_py.sql.admin import Unlocked as Unlocked
    from graphile_worker_py.sql.backlog import Backlog as Backlog
    from graphile_worker_py.sql.backlog import RegisteredPool as RegisteredPool
    from graphile_worker_py.sql.breakers import Breaker as Breaker
    from graphile_worker_py.sql.cancel_jobs import Cancellation as Cancellation
    from graphile_worker_py.sql.cancel_jobs import CancelState as CancelState
    from graphile_worker_py.sql.cleanup import CleanupPreview as CleanupPreview
    from graphile_worker_py.sql.cleanup import CleanupTask as CleanupTask
    from graphile_worker_py.sql.error_groups import ErrorGroup as ErrorGroup
    from graphile_worker_py.sql.get_jobs import Fetched as Fetched
    from graphile_worker_py.sql.inspect import JobCounts as JobCounts
    from graphile_worker_py.sql.inspect import JobQueue as JobQueue
    from graphile_worker_py.sql.inspect import JobState as JobState
    from graphile_worker_py.sql.inspect import ListedJob as ListedJob
    from graphile_worker_py.sql.inspect import LockHolder as LockHolder
    from graphile_worker_py.sql.inspect import StateCounts as StateCounts
    from graphile_worker_py.sql.job_ends import EndStatus as EndStatus
    from graphile_worker_py.sql.job_ends import JobOutcome as JobOutcome
    from graphile_worker_py.sql.job_ends import JobProgress as JobProgress
    from graphile_worker_py.sql.known_crontabs import KnownCrontab as KnownCrontab
    from graphile_worker_py.sql.limits import Limit as Limit
    from graphile_worker_py.sql.limits import LimitKind as LimitKind
    from graphile_worker_py.sql.pauses import Pause as Pause
    from graphile_worker_py.sql.pauses import PauseTarget as PauseTarget
    from graphile_worker_py.sql.pools import DeadPool as DeadPool
    from graphile_worker_py.sql.runs import JobRun as JobRun
    from graphile_worker_py.sql.runs import RunOutcome as RunOutcome
    from graphile_worker_py.sql.task_minutes import Percentiles as Percentiles
    from graphile_worker_py.sql.task_minutes import TaskStats as TaskStats
    from graphile_worker_py.steering.handles import JobHandle as JobHandle
    from graphile_worker_py.steering.sync_handles import SyncJobHandle as SyncJobHandle
    from graphile_worker_py.sync_worker_utils import SyncWorkerUtils as SyncWorkerUtils
    from graphile_worker_py.tasks.context import JobContext as JobContext
    from graphile_worker_py.tasks.current import current_job as current_job
    from graphile_worker_py.tasks.injection import Inject as Inject
    from graphile_worker_py.tasks.injection import Resource as Resource
    from graphile_worker_py.tasks.injection import State as State
    from graphile_worker_py.tasks.sync_context import SyncJobContext as SyncJobContext
    from graphile_worker_py.tasks.task import Task as Task
    from graphile_worker_py.tasks.task import task as task
    from graphile_worker_py.worker_utils import WorkerUtils as WorkerUtils
    from graphile_worker_py.worker_utils import add_job_adhoc as add_job_adhoc

if not TYPE_CHECKING:  # Type checkers know the names above and no others.

    @functools.cache
    def _homes() -> dict[str, str]:
        """The module of each public name."""
        return {
            alias.name: node.module
            for node in ast.walk(ast.parse(_SOURCE or ""))
            if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{__name__}.")
            for alias in node.names
        }

    def __getattr__(name: str) -> object:
        if name == "__all__":
            value = sorted(_homes())
        elif name in _homes():
            value = getattr(importlib.import_module(_homes()[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_homes()})
