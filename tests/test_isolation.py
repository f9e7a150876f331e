"""What a job leaves behind does not reach the next one that its worker runs."""

import asyncio
import contextvars
import decimal
import weakref
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from graphile_worker_py import Runner, run_once, task
from graphile_worker_py.events import JobError, JobSuccess
from tests import process_tasks
from tests.support.running import Jobs, Told

pytestmark = pytest.mark.any_server

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
KINDS = ["async", "async that waits", "inline", "thread"]


def task_of(kind: str, function: Any) -> Any:
    """A task named `work` that calls a function with the payload."""

    async def modern(payload: Any) -> None:
        function(payload)

    async def waiting(payload: Any) -> None:
        await asyncio.sleep(0.001)
        function(payload)
        await asyncio.sleep(0.001)

    def plain(payload: Any) -> None:
        function(payload)

    match kind:
        case "async":
            return task("work")(modern)
        case "async that waits":
            return task("work")(waiting)
        case _:
            return task("work", executor=kind)(plain)  # type: ignore[call-overload]


def call(held: Any) -> None:
    """Cancel an asyncio task, if it is still there."""
    current = held()
    if current is not None:
        current.cancel()


@pytest.fixture
def _decimals_as_at_the_start() -> Iterator[None]:
    with decimal.localcontext():
        yield


@pytest.mark.parametrize("kind", KINDS)
async def test_context_variables_that_a_job_sets_are_not_seen_by_the_next(
    dsn: str, kind: str
) -> None:
    jobs, seen = Jobs(dsn), []
    jobs.add_many(3, "work")

    def work(payload: Any) -> None:
        seen.append(COLOUR.get())
        COLOUR.set("red")

    await run_once(dsn, tasks=[task_of(kind, work)])
    assert seen == ["none"] * 3


@pytest.mark.usefixtures("_decimals_as_at_the_start")
@pytest.mark.parametrize("program", ["does not calculate", "calculates", "has a precision"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_decimal_context_of_a_job_is_that_of_the_program(
    dsn: str, kind: str, program: str
) -> None:
    jobs, seen = Jobs(dsn), []
    jobs.add_many(3, "work")

    def work(payload: Any) -> None:
        context = decimal.getcontext()
        seen.append((context.prec, context.flags[decimal.Inexact]))
        context.prec = 5
        assert str(Decimal(1) / Decimal(3)) == "0.33333"

    async def main() -> None:
        if program == "calculates":
            Decimal(1) / Decimal(3)
        elif program == "has a precision":
            decimal.getcontext().prec = 40
        await run_once(dsn, tasks=[task_of(kind, work)])
        decimal.getcontext()

    without = contextvars.Context()
    if program != "does not calculate":
        await asyncio.create_task(main(), context=contextvars.copy_context())
    else:
        await asyncio.create_task(main(), context=without)
    assert [precision for precision, _ in seen] == [40 if "has" in program else 28] * 3
    assert len({inexact for _, inexact in seen}) == 1


@pytest.mark.parametrize("hold", ["the task", "its method", "a weak reference", "a time-out"])
@pytest.mark.parametrize("kind", ["async", "async that waits", "inline"])
async def test_what_cancels_the_asyncio_task_of_a_job_later_hits_no_other_job(
    dsn: str, kind: str, hold: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    first, second = jobs.add("work"), jobs.add("next")
    reached: list[Any] = []
    fired = asyncio.Event()

    def work(payload: Any) -> None:
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None
        match hold:
            case "the task":
                loop.call_later(0.05, call, lambda: current)
            case "its method":
                loop.call_later(0.05, current.cancel)
            case "a weak reference":
                late = weakref.ref(current)
                loop.call_later(0.05, call, late)
            case "a time-out":
                reached.append(asyncio.timeout(0.05).__aenter__().send)
                with pytest.raises(StopIteration):
                    reached[0](None)
        loop.call_later(0.06, fired.set)

    async def next_(payload: Any) -> None:
        await fired.wait()
        await asyncio.sleep(0.01)

    await run_once(dsn, tasks=[task_of(kind, work), task("next")(next_)], events=told.events)
    assert [event.job.id for event in told.of(JobSuccess)] == [first, second]
    assert not told.of(JobError)


async def test_a_worker_keeps_its_asyncio_task_where_jobs_leave_nothing(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(20, "work")
    seen: set[int] = set()

    async def work(payload: Any) -> None:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        token = COLOUR.set("red")
        COLOUR.reset(token)
        seen.add(id(asyncio.current_task()))

    await run_once(dsn, tasks={"work": work})
    assert len(seen) == 1
    assert jobs.ids() == []


async def test_what_a_job_in_a_process_sets_is_not_seen_by_the_next(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(2, "colour")
    await run_once(dsn, tasks=[process_tasks.colour], events=told.events)
    assert not told.of(JobError)
    assert jobs.ids() == []


async def test_a_stop_reaches_a_worker_that_goes_on_in_another_asyncio_task(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")

    async def work(payload: Any) -> None:
        COLOUR.set("red")
        jobs.add("last")

    async def last(payload: Any) -> None:
        await asyncio.Event().wait()

    async with Runner(dsn, tasks={"work": work, "last": last}, events=told.events) as runner:
        await told.seen(JobSuccess)
        await runner.kill()
    assert [job["attempts"] for job in jobs.all()] == [0]
