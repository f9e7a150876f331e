"""What a task in a process is given besides its payload."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, NoReturn, Unpack

from graphile_worker_py.checks import check_progress
from graphile_worker_py.errors import GraphileWorkerError, JobCancelledError
from graphile_worker_py.executors import wire
from graphile_worker_py.executors.link import Link
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.job_log import job_logger


class ProcessJobContext:
    """What a task in a process knows of its job, and what it can ask of its worker.

    It has no `connection()`: a process makes its own connections.

    Attributes:
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        pool_id: Id of the worker's pool, which has locked the job under this name.
        abort_event: Set when the job should end. See `JobContext.abort_event`.
        logger: A logger of the worker, whose records carry the job's id, task, attempt, worker
            and pool.
    """

    def __init__(self, order: wire.Run, setting: wire.Setting, link: Link) -> None:
        self.job = order.job
        self.worker_id = order.worker_id
        self.pool_id = setting.pool_id
        self.abort_event = link.abort_event
        self.logger = job_logger(
            logging.getLogger(setting.logger), order.job, order.worker_id, setting.pool_id
        )
        self._number = order.number
        self._link = link
        self._cursor = order.cursor
        self._result: Any = None

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why `abort_event` is set. See `JobContext.abort_reason`."""
        return self._link.abort_reason if self._number == self._link.number else None

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, and should end. See `JobContext.cancelled`."""
        return self.abort_reason == "cancelled"

    def raise_if_cancelled(self) -> None:
        """End the task here if the job was cancelled. See `JobContext.raise_if_cancelled`.

        Raises:
            JobCancelledError: It was.
        """
        if self.cancelled:
            raise JobCancelledError("the job was cancelled")

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the job is. See `JobContext.progress`.

        It does not wait: the latest values are sent to the worker ten times a second at the most.
        """
        self._link.report(self._number, wire.Reported(*check_progress(done, total, message)))

    @property
    def cursor(self) -> Any:
        """What `checkpoint` has left. See `JobContext.cursor`."""
        return self._cursor

    def checkpoint(self, cursor: Any) -> None:
        """Keep a value from which the next attempt can go on. See `JobContext.checkpoint`."""
        self._call("checkpoint", cursor=cursor)
        self._cursor = cursor

    def set_result(self, result: Any) -> None:
        """Set the result that is kept. See `JobContext.set_result`."""
        self._result = result

    @property
    def result(self) -> Any:
        """What `set_result` has set; None if nothing."""
        return self._result

    def transaction(self) -> NoReturn:
        """Not available: a process has no connection of the worker.

        Raises:
            GraphileWorkerError: Always.
        """
        raise GraphileWorkerError(
            "a task in a process can't complete its job in a transaction: use an async task or "
            "one in a thread"
        )

    complete_with = transaction

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job, through the worker. See `WorkerUtils.add_job`."""
        return self.add_jobs([JobSpec(identifier, payload, **options)])[0]  # pyright: ignore[reportArgumentType]

    def add_jobs(self, specs: Iterable[JobSpec]) -> list[Job]:
        """Add many jobs, all or none, through the worker. See `WorkerUtils.add_jobs`."""
        jobs: list[Job] = self._call("add_jobs", specs=[_as_data(spec) for spec in specs])
        return jobs

    def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one. See `JobContext.get_queue_name`."""
        name: str | None = self._call("get_queue_name", queue_id=queue_id)
        return name

    def _call(self, method: str, **arguments: Any) -> Any:
        """Have the worker call a method of the job's `JobContext`."""
        return self._link.ask(self._number, wire.Call(method, arguments))


def _as_data(spec: JobSpec) -> dict[str, Any]:
    """A job to be added, as JSON values."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    fields["payload"] = None if spec.payload is None else spec.payload_json()
    fields["run_at"] = None if spec.run_at is None else spec.run_at.isoformat()
    return fields
