"""What the fixture `gw_sync` offers to a test without an event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.postgres.given import SyncGiven
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.testing.asserting import Assertions, Blocking
from graphile_worker_py.testing.clock import TestClock
from graphile_worker_py.testing.draining import Report
from graphile_worker_py.testing.inlining import Inline
from graphile_worker_py.testing.kit import GivenTasks, Kit
from graphile_worker_py.testing.matching import NOT_GIVEN, Expected, Wanted

T = TypeVar("T")


class SyncKit:
    """`Kit` for plain tests: the same methods, which block. A context manager.

    Args:
        dsn: As for `Kit`.
        tasks: As for `Kit`.
        clock: As for `Kit`.

    Attributes:
        dsn: The database.
        clock: The clock of the test.
        utils: `SyncWorkerUtils` on the database.
    """

    def __init__(
        self, dsn: str, *, tasks: GivenTasks | None = None, clock: TestClock | None = None
    ) -> None:
        self._kit = Kit(dsn, tasks=tasks, clock=clock)
        self._inline = Inline(self._perform)
        self.dsn = dsn
        self.clock = self._kit.clock
        self.utils = SyncWorkerUtils(
            dsn, schema="graphile_worker", migrate=False, hooks=[self._inline]
        )

    def __enter__(self) -> Self:
        self.utils.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.utils.__exit__(kind, error, traceback)

    def assert_added(
        self,
        task: str | TaskName[Any],
        payload: Any = NOT_GIVEN,
        *,
        conn: SyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> ListedJob:
        """Assert that there is a job as described. See `Kit.assert_added`."""
        __tracebackhide__ = True
        wanted = Wanted(task, payload, **expected)
        return self._asserted(conn, lambda asserting: asserting.found(wanted))

    def refute_added(
        self,
        task: str | TaskName[Any],
        payload: Any = NOT_GIVEN,
        *,
        conn: SyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> None:
        """Assert that there is no job as described. See `Kit.refute_added`."""
        __tracebackhide__ = True
        wanted = Wanted(task, payload, **expected)
        self._asserted(conn, lambda asserting: asserting.none_found(wanted))

    def all_added(
        self,
        task: str | TaskName[Any] | None = None,
        payload: Any = NOT_GIVEN,
        *,
        conn: SyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> list[ListedJob]:
        """Read the jobs as described, the oldest first. See `Kit.all_added`."""
        wanted = Wanted("" if task is None else task, payload, **expected)
        return self._asserted(conn, lambda asserting: asserting.all_found(wanted))

    def clear(self) -> None:
        """Delete all jobs that no worker runs. See `Kit.clear`."""
        _blocking(self._kit.clear())

    def add_recurring(
        self, tasks: GivenTasks | None = None, *, crontab: str | None = None
    ) -> Sequence[Job]:
        """Add the recurring jobs that were due since the last call. See `Kit.add_recurring`."""
        return _blocking(self._kit.add_recurring(tasks, crontab=crontab))

    def drain(
        self,
        tasks: GivenTasks | None = None,
        *,
        with_scheduled: bool = True,
        raise_errors: bool = True,
        hooks: Plugins = (),
    ) -> Report:
        """Run the jobs that are there, and those that they add. See `Kit.drain`."""
        return _blocking(
            self._kit.drain(
                tasks, with_scheduled=with_scheduled, raise_errors=raise_errors, hooks=hooks
            )
        )

    def perform(
        self,
        task: Task[PayloadT],
        payload: PayloadT | None = None,
        *,
        attempt: int = 1,
        **options: Unpack[SpecOptions],
    ) -> Any:
        """Call a task as a worker does. See `Kit.perform`."""
        return _blocking(self._kit.perform(task, payload, attempt=attempt, **options))

    @contextmanager
    def inline(self, tasks: GivenTasks | None = None) -> Iterator[None]:
        """Within the block, `utils.add_job` calls the task at once. See `Kit.inline`."""
        with (
            self._kit.inline(tasks),
            self._inline.switched_on(self._kit.named_tasks(tasks)),
        ):
            yield

    @contextmanager
    def provide(
        self,
        *resources: Any,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> Iterator[None]:
        """Within the block, give tasks what they ask for. See `Kit.provide`."""
        with self._kit.provide(*resources, overrides=overrides):
            yield

    def _asserted(
        self,
        conn: SyncGiven | None,
        look: Callable[[Assertions], Coroutine[Any, Any, T]],
    ) -> T:
        __tracebackhide__ = True
        if conn is None:
            return _blocking(look(self._kit.assertions()))
        # In this thread, to which the connection may belong.
        return _at_once(look(self._kit.assertions(Blocking(self.utils), conn)))

    async def _perform(self, task: Task[Any], spec: JobSpec) -> Any:
        # `SyncWorkerUtils` has no event loop: this blocks, and awaits nothing.
        return _blocking(self._kit.call(task, spec))


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread, because an event loop may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, without an event loop."""
    __tracebackhide__ = True
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError("a coroutine that must not wait did")
