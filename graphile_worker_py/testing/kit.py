"""What the fixture `gw` offers to a test with an event loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias, Unpack

from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.loading.given import collected_tasks
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import AsyncGiven
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.tasks.injection import NO_STATE, State
from graphile_worker_py.tasks.task import Task, Tasks
from graphile_worker_py.testing.asserting import Assertions, Looking
from graphile_worker_py.testing.clock import TestClock
from graphile_worker_py.testing.connections import LooseConnections
from graphile_worker_py.testing.draining import Drain, Report
from graphile_worker_py.testing.inlining import Inline
from graphile_worker_py.testing.matching import NOT_GIVEN, Expected, Wanted
from graphile_worker_py.testing.performing import perform
from graphile_worker_py.testing.recurring import recurring_jobs
from graphile_worker_py.worker_utils import WorkerUtils

GivenTasks: TypeAlias = Tasks | ModuleType | str
"""Tasks as `run` takes them."""


class _Utils(WorkerUtils):
    """WorkerUtils that need not be entered, because they hold no connections."""

    def __init__(self, pool: LooseConnections, inline: Inline) -> None:
        super().__init__(pool, schema="graphile_worker", migrate=False, hooks=[inline])
        self.database = Database(pool, schema="graphile_worker")
        self.around = Hooks([inline]).around_adding(self.events)
        JobAdder.__init__(self, self.database, self.around)


class Kit:
    """Looks for the jobs that an application added, and runs tasks.

    Args:
        dsn: A database with the schema `graphile_worker`.
        tasks: The tasks that `drain` and `inline` use where none are given.
        clock: The clock of the test; None makes one.

    Attributes:
        dsn: The database.
        clock: The clock of the test.
        utils: `WorkerUtils` on the database. They are ready to use on any event loop.
    """

    def __init__(
        self, dsn: str, *, tasks: GivenTasks | None = None, clock: TestClock | None = None
    ) -> None:
        self.dsn = dsn
        self.clock = TestClock() if clock is None else clock
        self._tasks = tasks
        self._state = NO_STATE
        self._inline = Inline(self.call)
        self._utils = _Utils(LooseConnections(dsn), self._inline)
        self._drained: list[Report] = []
        self._recurred_until = self.clock.now()

    @property
    def utils(self) -> WorkerUtils:
        """`WorkerUtils` on the test's database."""
        return self._utils

    async def assert_added(
        self,
        task: str | TaskName[Any],
        payload: Any = NOT_GIVEN,
        *,
        conn: AsyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> ListedJob:
        """Assert that there is a job as described, and return the one that was added last.

        Args:
            task: Its task, or the identifier.
            payload: What its payload contains: of objects, the given keys.
            conn: The connection or session on which the job was added, if its transaction is not
                committed.
            expected: Its `queue_name`, `priority`, `max_attempts`, `job_key`, `flags`, `run_at`,
                `state`.

        Raises:
            AssertionError: There is none. The message shows jobs that differ, and why they would
                not run.
        """
        __tracebackhide__ = True
        return await self.assertions(conn=conn).found(Wanted(task, payload, **expected))

    async def refute_added(
        self,
        task: str | TaskName[Any],
        payload: Any = NOT_GIVEN,
        *,
        conn: AsyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> None:
        """Assert that there is no job as described. See `assert_added`.

        Raises:
            AssertionError: There is one.
        """
        __tracebackhide__ = True
        await self.assertions(conn=conn).none_found(Wanted(task, payload, **expected))

    async def all_added(
        self,
        task: str | TaskName[Any] | None = None,
        payload: Any = NOT_GIVEN,
        *,
        conn: AsyncGiven | None = None,
        **expected: Unpack[Expected],
    ) -> list[ListedJob]:
        """Read the jobs as described, the oldest first. See `assert_added`.

        Args:
            task: Their task; None means all tasks.
            payload: What their payload contains.
            conn: As for `assert_added`.
            expected: As for `assert_added`.
        """
        wanted = Wanted("" if task is None else task, payload, **expected)
        return await self.assertions(conn=conn).all_found(wanted)

    async def clear(self) -> None:
        """Delete all jobs that no worker runs, for tests on a database that they share."""
        jobs = await self._utils.list_jobs(limit=None)
        await self._utils.complete_jobs(job.id for job in jobs)

    async def add_recurring(
        self, tasks: GivenTasks | None = None, *, crontab: str | None = None
    ) -> Sequence[Job]:
        """Add the recurring jobs that were due since the last call, or since the test began.

        They are those that a worker adds while the test's clock passes these minutes.

        Args:
            tasks: Tasks of which some have `cron`; None means those of the fixture `gw_tasks`.
            crontab: The text of a crontab, for further jobs.

        Returns:
            The jobs, in their order.

        Raises:
            CrontabError: A pattern, a time zone or the crontab is wrong.
        """
        since, until = self._recurred_until, self.clock.now()
        named = self.named_tasks(tasks)
        specs = recurring_jobs(named.values(), crontab, since=since, until=until)
        self._recurred_until = until
        return await self._utils.add_jobs(specs)

    async def drain(
        self,
        tasks: GivenTasks | None = None,
        *,
        with_scheduled: bool = True,
        raise_errors: bool = True,
        hooks: Plugins = (),
    ) -> Report:
        """Run the jobs that are there, and those that they add, one at a time.

        An attempt that fails is not repeated, and a job that its task snoozed is not run again.

        Args:
            tasks: The tasks whose jobs are run; None means those of the fixture `gw_tasks`.
            with_scheduled: Whether to run jobs whose time has not come. Without it, the test's
                clock decides.
            raise_errors: Whether to raise the errors of failed attempts at the end.
            hooks: Plugins that take part, as for `run`.

        Raises:
            BaseException: The error of a task; a `BaseExceptionGroup` if several attempts failed.
            ConfigurationError: A value is not allowed; the message names it.
        """
        drain = Drain(self.dsn, self._utils, self.clock, self.named_tasks(tasks), self._state)
        report = await drain.run(with_scheduled=with_scheduled, hooks=hooks)
        self._drained.append(report)
        if raise_errors:
            report.raise_errors()
        return report

    async def perform(
        self,
        task: Task[PayloadT],
        payload: PayloadT | None = None,
        *,
        attempt: int = 1,
        **options: Unpack[SpecOptions],
    ) -> Any:
        """Call a task as a worker does, for a job that is not in the database.

        The payload goes through JSON, and is checked and built as the task annotates it. The task
        gets a real context; what it does with its connection, or adds with it, is done.

        Args:
            task: The task.
            payload: The payload, as for `add_job`.
            attempt: The number of the attempt, from 1.
            options: What else the job has, as for `add_job`.

        Returns:
            What the task returned.

        Raises:
            BaseException: What the task raised.
        """
        spec: JobSpec = JobSpec(task, payload, **options)  # pyright: ignore[reportArgumentType]
        return await self.call(task, spec, attempt=attempt)

    @contextmanager
    def inline(self, tasks: GivenTasks | None = None) -> Iterator[None]:
        """Within the block, `utils.add_job` calls the task at once, and adds no job.

        The payload goes through JSON. Jobs that these tasks add are run at once, too. `add_job`
        raises what the task raises.

        Args:
            tasks: The tasks; None means those of the fixture `gw_tasks`.
        """
        with self._inline.switched_on(self.named_tasks(tasks)):
            yield

    @contextmanager
    def provide(
        self,
        *resources: Any,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> Iterator[None]:
        """Within the block, give tasks what they ask for, as a `lifespan` does.

        `perform`, `drain` and `inline` use it.

        Args:
            resources: The objects of the `State`.
            overrides: Factories that take the place of those that tasks inject:
                `overrides={load_user: lambda: ada}`.
        """
        before = self._state
        self._state = before.with_all_of(State(*resources, overrides=overrides))
        try:
            yield
        finally:
            self._state = before

    def named_tasks(self, tasks: GivenTasks | None) -> Mapping[str, Task[Any]]:
        """The given tasks by identifier, or those of the kit.

        Raises:
            ConfigurationError: There are none.
        """
        given = self._tasks if tasks is None else tasks
        if given is None:
            raise ConfigurationError(
                "there are no tasks to run: give tasks=..., or let a fixture gw_tasks return them"
            )
        return collected_tasks(given)

    async def call(self, task: Task[Any], spec: JobSpec, attempt: int = 1) -> Any:
        """Call a task for a job that is not in the database."""
        utils = self._utils
        return await perform(
            utils.database,
            task,
            spec,
            attempt=attempt,
            adding=utils.around,
            state=self._state,
        )

    def assertions(self, looking: Looking | None = None, conn: Any = None) -> Assertions:
        """What asserts which jobs are there, read by these utils or by those of the kit."""
        done = [job.task_identifier for report in self._drained for job in report.completed]
        return Assertions(self._utils if looking is None else looking, conn=conn, drained=done)
