"""What can be observed, and when it is told."""

import logging
from functools import partial
from typing import Any, ClassVar

import pytest

from graphile_worker_py import ConfigurationError, Events, Runner, run_once
from graphile_worker_py.events import (
    Event,
    JobComplete,
    JobError,
    JobEvent,
    JobFailed,
    JobStart,
    JobSuccess,
    PoolCreate,
    PoolEvent,
    PoolListenSuccess,
    PoolRelease,
    Stop,
    WorkerCreate,
    WorkerEvent,
    WorkerFatalError,
    WorkerGetJobStart,
    WorkerStop,
)
from tests.support.running import Jobs, Told
from tests.support.upstream import EVENTS


def released(pool_id: str = "pool-1") -> PoolRelease:
    """An event to emit."""
    return PoolRelease(pool_id=pool_id)


async def test_a_run_is_told_from_its_beginning_to_its_end(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    good = jobs.add("work", "good")
    bad = jobs.add("work", "bad", max_attempts=1)

    async def work(payload: str) -> None:
        if payload == "bad":
            raise ValueError("no")

    async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
        await told.seen(PoolListenSuccess)
        await told.seen(JobComplete, count=2)
    names = told.names()
    assert names[0] == "pool:create"
    assert names[-3:] == ["pool:gracefulShutdown:complete", "pool:release", "stop"]
    about_jobs = [(event.name, event.job.id) for event in told.of(JobEvent)]
    assert about_jobs == [
        ("job:start", good),
        ("job:success", good),
        ("job:complete", good),
        ("job:start", bad),
        ("job:error", bad),
        ("job:failed", bad),
        ("job:complete", bad),
    ]
    assert {event.pool_id for event in told.of(PoolEvent)} == {runner.pool_id}
    (created,) = told.of(WorkerCreate)
    (stopped,) = told.of(WorkerStop)
    assert created.tasks == ("work",)
    assert stopped.error is None
    assert {event.worker_id for event in told.of(WorkerEvent)} == {created.worker_id}
    failed = told.of(JobFailed)[0]
    assert isinstance(failed.error, ValueError)
    assert failed.duration >= 0
    assert told.of(JobSuccess)[0].job.task_identifier == "work"
    assert isinstance(told.all[-1], Stop)
    order = [name for name in names if name.startswith(("worker:", "pool:listen"))]
    assert order.index("worker:create") < order.index("worker:stop")
    assert order.count("pool:listen:release") == 1


async def test_a_worker_tells_when_it_asks_for_a_job(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    await run_once(dsn, tasks={"work": print}, events=told.events)
    order = [event.name for event in told.all if isinstance(event, WorkerEvent)]
    asks = [index for index, name in enumerate(order) if name == "worker:getJob:start"]
    # Before the job, and after it, when there is none.
    assert len(asks) == 2
    assert asks[0] < order.index("job:start") < order.index("job:complete") < asks[1]
    (created,) = told.of(WorkerCreate)
    assert {event.worker_id for event in told.of(WorkerGetJobStart)} == {created.worker_id}


class FaultyEvents(Events):
    """Events of somebody's own, at fault when an event of a name is told."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def emit(self, event: Event) -> None:
        if event.name == self._name:
            raise LookupError("at fault")
        super().emit(event)


@pytest.mark.parametrize(
    ("faulty_at", "job_error"), [("job:error", "from the task"), ("job:success", None)]
)
async def test_a_worker_that_breaks_down_is_told_with_what_its_task_raised(
    dsn: str, faulty_at: str, job_error: str | None
) -> None:
    jobs, events = Jobs(dsn), FaultyEvents(faulty_at)
    told: list[Event] = []
    events.subscribe(Event, told.append)
    job_id = jobs.add("work")

    async def work(payload: Any) -> None:
        if job_error is not None:
            raise ValueError(job_error)

    with pytest.raises(LookupError, match="at fault"):
        await run_once(dsn, tasks={"work": work}, events=events)
    (event,) = [each for each in told if isinstance(each, WorkerFatalError)]
    assert (event.name, str(event.error)) == ("worker:fatalError", "at fault")
    assert (None if event.job_error is None else str(event.job_error)) == job_error
    assert event.worker_id
    # Nothing is known of the outcome: the job is there for others, and its attempt counts.
    assert jobs.one(job_id)["attempts"] == 1
    assert jobs.locked() == []


async def test_without_subscribers_everything_works_the_same(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(3, "work", "q")
    logger = logging.getLogger("silent")
    logger.setLevel(logging.CRITICAL)
    await run_once(dsn, tasks={"work": print}, logger=logger)
    assert jobs.ids() == []


def test_subscribers_are_called_in_their_order() -> None:
    events, seen = Events(), list[str]()
    events.subscribe(PoolRelease, lambda event: seen.append(f"first {event.pool_id}"))
    events.subscribe("pool:release", lambda event: seen.append("second"))
    events.subscribe(PoolEvent, lambda event: seen.append("third"))
    events.subscribe(Event, lambda event: seen.append("fourth"))
    events.subscribe(PoolCreate, lambda event: seen.append("never"))
    events.emit(released())
    assert seen == ["first pool-1", "second", "third", "fourth"]


async def test_a_subscriber_of_a_class_hears_its_subclasses_and_one_of_a_name_does_not(
    dsn: str,
) -> None:
    jobs, events = Jobs(dsn), Events()
    by_class, by_name = list[str](), list[str]()
    events.subscribe(JobError, lambda event: by_class.append(event.name))
    events.subscribe("job:error", lambda event: by_name.append(event.name))
    jobs.add("fail", max_attempts=1)

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    await run_once(dsn, tasks={"fail": fail}, events=events)
    assert by_class == ["job:error", "job:failed"]
    assert by_name == ["job:error"]


def test_a_subscriber_hears_kinds_of_events_that_are_defined_later() -> None:
    events, seen = Events(), list[str]()
    events.subscribe(PoolEvent, lambda event: seen.append(event.name))

    class PoolRenamed(PoolEvent):
        name: ClassVar = "pool:renamed"

    assert events.wants(PoolRenamed)
    events.subscribe("pool:renamed", lambda event: seen.append("by name"))
    events.emit(PoolRenamed(pool_id="pool-1"))
    assert seen == ["pool:renamed", "by name"]


def test_a_subscription_can_be_ended() -> None:
    events, seen = Events(), list[Event]()
    end_one = events.subscribe(Event, seen.append)
    end_two = events.subscribe(PoolRelease, seen.append)
    assert events.wants(PoolRelease)
    events.emit(released())
    assert len(seen) == 2
    end_one()
    end_one()
    events.emit(released())
    assert len(seen) == 3
    end_two()
    events.emit(released())
    assert len(seen) == 3
    assert not events.wants(PoolRelease)


def test_a_subscriber_may_unsubscribe_or_subscribe_while_it_is_told() -> None:
    events, seen = Events(), list[str]()

    def once(event: PoolRelease) -> None:
        seen.append("once")
        end()
        events.subscribe(PoolRelease, lambda event: seen.append("new"))

    end = events.subscribe(PoolRelease, once)
    events.subscribe(PoolRelease, lambda event: seen.append("other"))
    events.emit(released())
    assert seen == ["once", "other"]
    events.emit(released())
    assert seen == ["once", "other", "other", "new"]


def test_a_subscriber_that_raises_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, seen = Events(), list[Event]()

    def fail(event: Event) -> None:
        raise LookupError("broken subscriber")

    events.subscribe(Event, fail)
    events.subscribe(Event, seen.append)
    events.emit(released())
    assert len(seen) == 1
    assert "broken subscriber" in caplog.text
    assert "pool:release" in caplog.text


async def test_a_subscriber_that_raises_does_not_change_what_becomes_of_a_job(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    bad = jobs.add("fail")
    events = Events()

    def fail(event: Event) -> None:
        raise LookupError("broken subscriber")

    async def fail_task(payload: Any) -> None:
        raise ValueError("no")

    for kind in (JobStart, JobSuccess, JobError, JobComplete):
        events.subscribe(kind, fail)
    tasks: dict[str, Any] = {"work": print, "fail": fail_task}
    await run_once(dsn, tasks=tasks, events=events)
    assert jobs.ids() == [bad]
    assert jobs.one(bad)["last_error"] == "no"
    assert caplog.text.count("LookupError: broken subscriber") == 6


def test_an_unknown_name_is_refused_and_the_known_ones_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"'job:begun'; events are .*job:start"):
        Events().subscribe("job:begun", print)


class AsyncObject:
    """Async when it is called."""

    async def __call__(self, event: Event) -> None: ...


async def async_function(event: Event) -> None: ...


@pytest.mark.parametrize(
    ("event", "subscriber", "message"),
    [
        (int, print, "event must be a class of events or a name like 'job:start', not <class"),
        (3, print, "or a name like 'job:start', not 3"),
        (released(), print, "or a name like 'job:start', not PoolRelease"),
        ("job:start", 5, "subscriber must be a function, not 5"),
        (Event, async_function, "must be a plain function, not the async <function async_fun"),
        (Event, partial(async_function), "must be a plain function, not the async"),
        ("job:start", AsyncObject(), "must be a plain function, not the async"),
    ],
)
def test_a_subscription_that_can_not_work_is_refused(
    event: Any, subscriber: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Events().subscribe(event, subscriber)


def test_every_event_has_a_name_of_its_own_and_says_when_it_is_told() -> None:
    def below(kind: type[Event]) -> list[type[Event]]:
        return [kind, *(each for sub in kind.__subclasses__() for each in below(sub))]

    named = [kind for kind in below(Event) if hasattr(kind, "name")]
    names = {kind.name for kind in named}
    assert len(names) == len(named) > 30
    assert all(kind.__doc__ and "Event(" not in kind.__doc__ for kind in named)


def test_every_event_of_graphile_worker_is_here_under_its_name() -> None:
    events = Events()
    for name in EVENTS.split():
        events.subscribe(name, print)
