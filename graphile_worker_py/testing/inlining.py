"""Run jobs at the moment when they are added, instead of adding them."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from graphile_worker_py.errors import UnknownTaskError
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.plugins import Plugin
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.testing.performing import unsaved_job


class Inline(Plugin):
    """Calls the tasks of added jobs at once, while it is switched on.

    Args:
        perform: Calls a task for a job.
    """

    def __init__(self, perform: Callable[[Task[Any], JobSpec], Awaitable[Any]]) -> None:
        self._perform = perform
        self._tasks: Mapping[str, Task[Any]] | None = None

    @contextmanager
    def switched_on(self, tasks: Mapping[str, Task[Any]]) -> Iterator[None]:
        """Call tasks instead of adding jobs, within the block."""
        before, self._tasks = self._tasks, tasks
        try:
            yield
        finally:
            self._tasks = before

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        proceed: Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]],
    ) -> Sequence[Job]:
        """Call the tasks of the jobs one after the other; what one raises is raised."""
        if self._tasks is None:
            return await proceed(specs)
        jobs = []
        for spec in specs:
            task = self._tasks.get(spec.identifier)
            if task is None:
                raise UnknownTaskError(
                    f"there is no task {spec.identifier!r} to run inline; there are: "
                    f"{', '.join(sorted(self._tasks))}"
                )
            await self._perform(task, spec)
            jobs.append(unsaved_job(spec))
        return jobs
