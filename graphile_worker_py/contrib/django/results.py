"""What is known of a Django task: from its job, and from the runs of its attempts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.utils.module_loading import import_string

from graphile_worker_py.contrib.django import api
from graphile_worker_py.errors import ConfigurationError, MissingTablesError
from graphile_worker_py.job import Job
from graphile_worker_py.sql.inspect import JobState, ListedJob
from graphile_worker_py.sql.runs import JobRun, RunOutcome
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils
from graphile_worker_py.tasks.job_log import Capture

_KEPT: Final = "Traceback of the attempt"
_NOT_ATTEMPTS: Final = (RunOutcome.SNOOZED,)


def added(task: Any, job: Job, payload: Mapping[str, Any]) -> Any:
    """The result of a task that was added just now."""
    return api.TaskResult(
        task=task,
        id=str(job.id),
        status=api.TaskResultStatus.READY,
        enqueued_at=job.created_at,
        started_at=None,
        last_attempted_at=None,
        finished_at=None,
        args=payload["args"],
        kwargs=payload["kwargs"],
        backend=payload["backend"],
        errors=[],
        worker_ids=[],
    )


def running(task: Any, job: Job, pool_id: str, *, now: Any) -> Any:
    """The result of a task that a worker begins to run; earlier attempts count for this worker."""
    payload = job.payload
    return api.TaskResult(
        task=task_of_job(task, job),
        id=str(job.id),
        status=api.TaskResultStatus.RUNNING,
        enqueued_at=job.created_at,
        started_at=now,
        last_attempted_at=now,
        finished_at=None,
        args=payload.get("args", []),
        kwargs=payload.get("kwargs", {}),
        backend=payload.get("backend", task.backend),
        errors=[],
        worker_ids=[pool_id] * max(job.attempts, 1),
    )


def task_of_job(task: Any, job: Job) -> Any:
    """The task with the values that its job was added with."""
    payload = job.payload if isinstance(job.payload, Mapping) else {}
    return task.using(
        priority=-job.priority,
        queue_name=payload.get("queue"),
        run_after=job.run_at if payload.get("deferred") else None,
        backend=payload.get("backend"),
    )


def read(utils: SyncWorkerUtils, result_id: str, *, alias: str) -> Any:
    """The result of a task.

    Raises:
        TaskResultDoesNotExist: Nothing is known of it.
    """
    try:
        job = utils.get_job(result_id)
        runs = _runs_of(utils, result_id)
    except ConfigurationError as error:  # it is not an id
        raise api.TaskResultDoesNotExist(result_id) from error
    task = _task_called(job.task_identifier if job else runs[0].task if runs else "")
    if task is None:
        raise api.TaskResultDoesNotExist(result_id)
    return _result(task, job, runs, result_id=result_id, alias=alias)


def _runs_of(utils: SyncWorkerUtils, result_id: str) -> Sequence[JobRun]:
    """The ended attempts, the oldest first."""
    try:
        return utils.list_runs(job_id=result_id, limit=None)[::-1]
    except MissingTablesError:
        return []


def _task_called(path: str) -> Any:
    try:
        found = import_string(path)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, api.Task) else None


def _result(
    task: Any, job: ListedJob | None, runs: Sequence[JobRun], *, result_id: str, alias: str
) -> Any:
    payload = job.payload if job is not None else (runs[-1].payload or {})
    attempts = [run for run in runs if run.outcome not in _NOT_ATTEMPTS]
    status = _status(job, attempts)
    is_finished = status in (api.TaskResultStatus.SUCCESSFUL, api.TaskResultStatus.FAILED)
    begun = [run.started_at for run in attempts if run.started_at is not None]
    if job is not None and job.locked_at is not None:
        begun.append(job.locked_at)
    result = api.TaskResult(
        task=task if job is None else task_of_job(task, job),
        id=result_id,
        status=status,
        enqueued_at=job.created_at if job is not None else runs[-1].job_created_at,
        started_at=begun[0] if begun else None,
        last_attempted_at=begun[-1] if begun else None,
        finished_at=attempts[-1].finished_at if is_finished and attempts else None,
        args=payload.get("args", []),
        kwargs=payload.get("kwargs", {}),
        backend=payload.get("backend", alias),
        errors=_errors(job, attempts),
        worker_ids=_worker_ids(job, attempts),
    )
    if status == api.TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", attempts[-1].result)
    return result


def _status(job: ListedJob | None, attempts: Sequence[JobRun]) -> Any:
    match None if job is None else job.state:
        case JobState.RUNNING:
            return api.TaskResultStatus.RUNNING
        case JobState.READY | JobState.SCHEDULED:
            return api.TaskResultStatus.READY
        case None if attempts and attempts[-1].outcome is RunOutcome.COMPLETED:
            return api.TaskResultStatus.SUCCESSFUL
    return api.TaskResultStatus.FAILED


def _errors(job: ListedJob | None, attempts: Sequence[JobRun]) -> list[Any]:
    found = [
        api.TaskError(exception_class_path=_class_path(run.error_group), traceback=_traceback(run))
        for run in attempts
        if run.error is not None
    ]
    if not found and job is not None and job.last_error is not None:
        path = _class_path(None)
        found.append(api.TaskError(exception_class_path=path, traceback=job.last_error))
    return found


def keep_traceback(error: BaseException, capture: Capture | None) -> None:
    """Keep the traceback of an attempt at the end of its logs, for `TaskError.traceback`."""
    if capture is not None:
        raised = (type(error), error, error.__traceback__)
        capture.add(logging.LogRecord(__name__, logging.ERROR, "", 0, _KEPT, (), raised))


def _traceback(run: JobRun) -> str:
    """The traceback of an attempt; the error alone, if its logs were not kept."""
    _, found, text = (run.logs or "").rpartition(f"{_KEPT}\n")
    return f"{text}\n" if found else str(run.error)


def _class_path(group: str | None) -> str:
    """The path of an error's class, from the name of its group: `ValueError in app:charge`."""
    name = "Exception" if group is None else group.partition(" in ")[0]
    return name if "." in name else f"builtins.{name}"


def _worker_ids(job: ListedJob | None, attempts: Sequence[JobRun]) -> list[str]:
    ids = [run.pool_id or "" for run in attempts]
    if job is not None and job.locked_by is not None:
        ids.append(job.locked_by)
    # Attempts without a record were made by workers that are not known.
    return [""] * ((job.attempts if job is not None else 0) - len(ids)) + ids
