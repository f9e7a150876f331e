"""A task decides its fate: RetryIn, Snooze, Discard, and the retry policy of the task."""

import asyncio
import copy
import pickle
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    CrontabError,
    Discard,
    GraphileWorkerError,
    Job,
    JobLostError,
    JobSpec,
    PayloadError,
    RetryIn,
    RetryPolicy,
    Snooze,
    StoppedError,
    SyncWorkerUtils,
    Task,
    exponential,
    fixed,
    run_once,
    task,
)
from graphile_worker_py.events import JobDiscarded, JobError, JobFailed, JobSnoozed, JobSuccess
from tests.support.running import Jobs, Told

IN = "extract(epoch from run_at - now())::float8 as due_in"


class NotFoundError(Exception):
    """What a policy discards in these tests."""


def kinds_of(decide: Callable[[], Any]) -> list[Task[Any]]:
    """The same decision, raised and returned, by an async, an inline and a thread's function."""

    @task("raise async")
    async def raise_async(_payload: Any) -> None:
        raise decide()

    @task("return async")
    async def return_async(_payload: Any) -> Any:
        return decide()

    @task("raise inline", executor="inline")
    def raise_inline(_payload: Any) -> None:
        raise decide()

    @task("return in thread")
    def return_in_thread(_payload: Any) -> Any:
        return decide()

    @task("raise in thread")
    def raise_in_thread(_payload: Any) -> None:
        raise decide()

    return [raise_async, return_async, raise_inline, return_in_thread, raise_in_thread]


def row(jobs: Jobs, job_id: int) -> dict[str, Any]:
    """The job, with the seconds until it is due."""
    due = jobs.query(f"select {IN} from graphile_worker._private_jobs where id = %s", job_id)
    return {**jobs.one(job_id), "due_in": due[0]["due_in"]}


async def test_retry_in_counts_the_attempt_and_sets_when_the_next_one_is_due(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    tasks = kinds_of(lambda: RetryIn(3600, reason="429"))
    ids = [jobs.add(each.identifier) for each in tasks]
    await run_once(dsn, tasks=tasks, events=told.events)
    for job_id in ids:
        job = row(jobs, job_id)
        assert (job["attempts"], job["last_error"], job["locked_by"]) == (1, "429", None)
        assert 3590 < job["due_in"] <= 3600
    for event in told.of(JobError):
        assert event.retry_at is not None
        assert abs((event.retry_at - datetime.now(UTC)).total_seconds() - 3600) < 30
    assert told.of(JobFailed) == []


async def test_retry_in_at_the_last_attempt_is_a_final_failure(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    (first, *_) = kinds_of(lambda: RetryIn(1))
    job_id = jobs.add(first.identifier, max_attempts=1)
    await run_once(dsn, tasks=[first], events=told.events)
    assert jobs.one(job_id)["attempts"] == 1
    assert len(told.of(JobFailed)) == 1


async def test_snooze_gives_the_attempt_back_and_leaves_the_error(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    tasks = kinds_of(lambda: Snooze(timedelta(hours=1)))
    ids = [jobs.add(each.identifier, queue_name="q") for each in tasks]
    for job_id in ids:
        jobs.query(
            "update graphile_worker._private_jobs set attempts = 3, last_error = 'before' "
            "where id = %s returning id",
            job_id,
        )
    await run_once(dsn, tasks=tasks, events=told.events)
    for job_id in ids:
        job = row(jobs, job_id)
        assert (job["attempts"], job["last_error"], job["locked_by"]) == (3, "before", None)
        assert 3590 < job["due_in"] <= 3600
    assert len(told.of(JobSnoozed)) == len(tasks)
    assert told.of(JobError) + told.of(JobSuccess) == []


async def test_discard_gives_up_at_once_and_is_no_error(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    tasks = kinds_of(lambda: Discard("no such user"))
    ids = [jobs.add(each.identifier) for each in tasks]
    await run_once(dsn, tasks=tasks, events=told.events)
    for job_id in ids:
        job = jobs.one(job_id)
        assert (job["attempts"], job["max_attempts"], job["locked_by"]) == (25, 25, None)
        assert job["last_error"] == "no such user"
    assert len(told.of(JobDiscarded)) == len(tasks)
    assert told.of(JobError) + told.of(JobFailed) == []
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


async def test_a_class_that_is_returned_decides_as_one_that_is_raised(dsn: str) -> None:
    jobs = Jobs(dsn)
    discards, retries = kinds_of(lambda: Discard), kinds_of(lambda: RetryIn)

    @task
    async def items(_payload: Any) -> list[Any]:
        async def item() -> Any:
            return RetryIn

        return [Discard, item(), None]

    ids = [jobs.add(each.identifier) for each in discards]
    batch = jobs.add("items", [1, 2, 3])
    await run_once(dsn, tasks=[*discards, items])
    for job_id in ids:
        job = jobs.one(job_id)
        assert (job["attempts"], job["last_error"]) == (25, "discarded")
    assert jobs.one(batch)["json"] == "[2]"
    ids = [batch, *(jobs.add(each.identifier) for each in retries)]
    await run_once(dsn, tasks=retries)
    for job_id in ids:
        job = jobs.one(job_id)
        assert job["attempts"] == 1
        assert "missing 1 required positional argument: 'delay'" in job["last_error"]


@pytest.mark.parametrize(
    "error",
    [
        RetryIn(5, reason="429"),
        Snooze(3),
        Discard("gone"),
        CrontabError("no such day", line=3),
        PayloadError("wrong", faults=["$.a"]),
        StoppedError("SIGTERM"),
        JobLostError("taken"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled_and_copied(error: GraphileWorkerError) -> None:
    error.add_note("seen")
    for same in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))


async def test_a_reason_that_cannot_be_stored_is_escaped(dsn: str) -> None:
    jobs = Jobs(dsn)
    (first, *_) = kinds_of(lambda: Discard("answer: \0"))
    (second, *_) = kinds_of(lambda: RetryIn(3600, reason="answer: \ud800"))
    discarded, retried = jobs.add("discard"), jobs.add("retry")
    await run_once(dsn, tasks={"discard": first, "retry": second})
    assert jobs.one(discarded)["last_error"] == "answer: \\u0000"
    assert jobs.one(discarded)["attempts"] == 25
    assert jobs.one(retried)["last_error"] == "answer: \\ud800"


async def test_a_time_in_the_past_is_now(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    at = datetime(2020, 1, 1, tzinfo=UTC)
    (snoozed, *_) = kinds_of(lambda: Snooze(at))
    assert RetryIn(at).delay == 0
    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": snoozed}, events=told.events)
    # It lasts a tenth of a second like each snooze, so the worker has nothing more to do.
    assert len(told.of(JobSnoozed)) == 1
    assert jobs.one(job_id)["attempts"] == 0


async def test_an_absolute_time_is_kept_as_it_is(dsn: str) -> None:
    jobs = Jobs(dsn)
    at = datetime(2050, 1, 1, 12, tzinfo=UTC)
    (first, *_) = kinds_of(lambda: RetryIn(at))
    (second, *_) = kinds_of(lambda: Snooze(at))
    retried, snoozed = jobs.add("retry"), jobs.add("snooze")
    await run_once(dsn, tasks={"retry": first, "snooze": second})
    assert jobs.one(retried)["run_at"] == jobs.one(snoozed)["run_at"] == at


DELAYS = [
    *(-1, float("inf"), float("nan"), "5", True, None, 1e12, timedelta(days=-1)),
    datetime(2100, 1, 1),  # noqa: DTZ001
    datetime(9999, 1, 1, tzinfo=UTC),
]


@pytest.mark.parametrize("kind", [RetryIn, Snooze])
@pytest.mark.parametrize(
    "delay",
    DELAYS,
    ids=str,
)
async def test_a_delay_that_makes_no_sense_fails_the_job_with_a_clear_error(
    dsn: str, kind: Any, delay: Any
) -> None:
    jobs = Jobs(dsn)

    async def decide(_payload: Any) -> None:
        raise kind(delay)

    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": decide})
    job = jobs.one(job_id)
    assert f"delay of {kind.__name__}" in job["last_error"]
    assert (job["attempts"], job["locked_by"]) == (1, None)


POLICIES: list[tuple[RetryPolicy, BaseException, dict[str, Any]]] = [
    (RetryPolicy(delay=fixed(100)), ValueError("x"), {"attempts": 1, "due": 100}),
    (RetryPolicy(max_attempts=1), ValueError("x"), {"attempts": 25}),
    (RetryPolicy(retry_on=(OSError,)), ValueError("x"), {"attempts": 25}),
    (RetryPolicy(retry_on=(OSError,), delay=fixed(7)), OSError("x"), {"attempts": 1, "due": 7}),
    (RetryPolicy(discard_on=(NotFoundError,)), NotFoundError("x"), {"attempts": 25, "gone": True}),
    (RetryPolicy(), SystemExit("x"), {"attempts": 1, "due": 2.718}),
    (RetryPolicy(delay=lambda attempt, error: attempt * 50), OSError("x"), {"due": 50}),
]


@pytest.mark.parametrize(("policy", "error", "expected"), POLICIES)
async def test_a_policy_decides_in_the_worker_whoever_added_the_job(
    dsn: str, policy: RetryPolicy, error: BaseException, expected: dict[str, Any]
) -> None:
    jobs, told = Jobs(dsn), Told()

    @task("work", retry=policy)
    async def work(_payload: Any) -> None:
        raise error

    job_id = jobs.add("work")
    await run_once(dsn, tasks=[work], events=told.events)
    job = row(jobs, job_id)
    assert job["attempts"] == expected.get("attempts", 1)
    if "due" in expected:
        assert expected["due"] - 5 < job["due_in"] <= expected["due"] + 0.1
    assert len(told.of(JobDiscarded)) == int("gone" in expected)


@pytest.mark.parametrize("answer", [-1, "soon", None, float("nan"), ZeroDivisionError()], ids=str)
async def test_a_policy_function_that_fails_is_logged_and_the_default_applies(
    dsn: str, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)

    def delay(_attempt: int, _error: BaseException) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    @task("work", retry=RetryPolicy(delay=delay))
    async def work(_payload: Any) -> None:
        raise ValueError("x")

    job_id = jobs.add("work")
    await run_once(dsn, tasks=[work])
    assert 0 < row(jobs, job_id)["due_in"] <= 2.8
    assert f"The retry policy of job {job_id} (work) gave no delay" in caplog.text


async def test_items_of_a_batch_are_discarded_or_retried_each_by_itself(dsn: str) -> None:
    jobs = Jobs(dsn)

    async def one(item: Any) -> None:
        match item:
            case "gone":
                raise Discard("gone")
            case "later":
                raise RetryIn(100)
            case "much later":
                raise RetryIn(1000)
            case "asleep":
                raise Snooze(5)

    @task
    async def batch(payload: list[Any]) -> Any:
        return [one(item) for item in payload]

    job_id = jobs.add("batch", ["done", "gone", "later", "much later", "asleep"])
    only_gone = jobs.add("batch", ["done", "gone"])
    await run_once(dsn, tasks=[batch])
    job = row(jobs, job_id)
    assert job["payload"] == ["later", "much later", "asleep"]
    assert 990 < job["due_in"] <= 1000
    assert "an item of a batch job can't snooze" in job["last_error"]
    assert only_gone not in jobs.ids()


def test_delays_grow_exponentially_with_jitter_up_to_the_longest() -> None:
    random.seed(1)
    delay = exponential(base=2, factor=3, max=100, jitter=0.1)
    for attempt, expected in ((1, 2), (2, 6), (3, 18), (4, 54), (5, 100), (30_000, 100)):
        assert 0.9 * expected <= delay(attempt, ValueError()) <= 1.1 * expected
    assert exponential(jitter=0)(3, ValueError()) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: exponential(base=-1),
        lambda: exponential(factor=0.5),
        lambda: exponential(jitter=2),
        lambda: fixed(float("inf")),
        lambda: RetryPolicy(max_attempts=0),
        lambda: RetryPolicy(delay=5),  # type: ignore[arg-type]
        lambda: RetryPolicy(retry_on=("OSError",)),  # type: ignore[arg-type]
        lambda: RetryPolicy(retry_on=OSError),  # type: ignore[arg-type]
        lambda: RetryPolicy(discard_on=[OSError]),  # type: ignore[arg-type]
        lambda: RetryIn(1, reason=429),  # type: ignore[arg-type]
        lambda: Discard(404),  # type: ignore[arg-type]
        lambda: task("a", retry=5),  # type: ignore[call-overload]
        lambda: task("a", queue_name=""),
        lambda: task("a", priority=1e9),  # type: ignore[call-overload]
        lambda: task("a", history="some"),  # type: ignore[call-overload]
        lambda: task("a", keep_result="yes"),  # type: ignore[call-overload]
        lambda: task("a", capture_logs="LOUD"),  # type: ignore[call-overload]
        lambda: task("a", max_snoozes=-1),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        made = make()
        made(lambda _payload: None)


@task(
    "invoice",
    queue_name=lambda payload: f"customer:{payload['customer']}",
    priority=-1,
    max_attempts=5,
    flags=["eu"],
    job_key=lambda payload: f"invoice:{payload['number']}",
)
async def invoice(_payload: dict[str, Any]) -> None:
    """A task with defaults for its jobs."""


def test_a_task_has_defaults_for_jobs_that_are_added_with_it(dsn: str) -> None:
    payload = {"customer": 7, "number": 1}
    with SyncWorkerUtils(dsn) as utils:
        added: list[Job] = [utils.add_job(invoice, payload)]
        added += utils.add_jobs([invoice.spec({**payload, "number": 2})])
        added.append(invoice.add_job(utils, {**payload, "number": 3}))
        for job, number in zip(added, (1, 2, 3), strict=True):
            assert (job.priority, job.max_attempts, job.flags) == (-1, 5, {"eu": True})
            assert job.key == f"invoice:{number}"
        assert [queue.name for queue in utils.queues()] == ["customer:7"]
        # Explicit arguments win, and a name has no defaults.
        explicit = utils.add_job(invoice, payload, priority=3, job_key="other", flags=[])
        assert (explicit.priority, explicit.key, explicit.max_attempts) == (3, "other", 5)
        by_name = utils.add_job("invoice", payload)
        assert (by_name.priority, by_name.key, by_name.job_queue_id) == (0, None, None)


@pytest.mark.parametrize("run_in", [60, timedelta(minutes=1)])
def test_run_in_is_a_time_from_now(dsn: str, run_in: Any) -> None:
    with SyncWorkerUtils(dsn) as utils:
        job = utils.add_job("work", run_in=run_in)
    assert abs((job.run_at - datetime.now(UTC)).total_seconds() - 60) < 30


@pytest.mark.parametrize("run_in", [-1, float("nan"), "5", timedelta(seconds=-1)])
def test_run_in_must_be_a_length_of_time(run_in: Any) -> None:
    with pytest.raises(ConfigurationError, match="run_in"):
        JobSpec("work", run_in=run_in)
    with pytest.raises(ConfigurationError, match="run_at and run_in were both given"):
        JobSpec("work", run_at=datetime.now(UTC), run_in=1)


async def test_a_payload_error_can_be_discarded(dsn: str) -> None:
    jobs = Jobs(dsn)

    @task("work", retry=RetryPolicy(discard_on=(PayloadError,)))
    async def work(payload: list[int]) -> None:
        await asyncio.sleep(0)

    job_id = jobs.add("work", {"not": "a list"})
    await run_once(dsn, tasks=[work])
    assert jobs.ids() in ([], [job_id])
