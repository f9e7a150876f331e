"""A value that is not allowed is refused before anything is sent, by an error that names it."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    JobContext,
    JobSpec,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
)
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001  # that is what is wrong with it
BEYOND = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
CYCLE: list[Any] = []
CYCLE.append(CYCLE)

SPECS: list[tuple[str, dict[str, Any]]] = [
    ("identifier", {"identifier": "i" * 129}),
    ("identifier", {"identifier": None}),
    ("identifier", {"identifier": 5}),
    ("identifier", {"identifier": "a\0"}),
    ("identifier", {"identifier": "\udc80"}),
    ("identifier", {"identifier": ""}),
    ("identifier", {"identifier": " a"}),
    ("identifier", {"identifier": "a\n"}),
    ("payload", {"payload": object()}),
    ("payload", {"payload": {1, 2}}),
    ("payload", {"payload": CYCLE}),
    ("queue_name", {"queue_name": "q" * 129}),
    ("queue_name", {"queue_name": 5}),
    ("run_at", {"run_at": NAIVE}),
    ("run_at", {"run_at": BEYOND}),
    ("run_at", {"run_at": "2030-01-01T00:00:00Z"}),
    ("run_at", {"run_at": date(2030, 1, 1)}),
    ("priority", {"priority": 32768}),
    ("priority", {"priority": -32769}),
    ("priority", {"priority": 1.0}),
    ("priority", {"priority": False}),
    ("max_attempts", {"max_attempts": 0}),
    ("max_attempts", {"max_attempts": 32768}),
    ("max_attempts", {"max_attempts": "3"}),
    ("job_key", {"job_key": ""}),
    ("job_key", {"job_key": "k" * 513}),
    ("job_key", {"job_key": 5}),
    ("job_key_mode", {"job_key": "k", "job_key_mode": "dedupe"}),
    ("job_key_mode", {"job_key": "k", "job_key_mode": 5}),
    ("job_key_mode", {"job_key_mode": "replace"}),
    ("flags", {"flags": "eu"}),
    ("flags", {"flags": 5}),
    ("flags", {"flags": False}),
    (r"flags\[1\] must be a string, not None", {"flags": ["eu", None]}),
    (r"flags\[0\]", {"flags": ["a\0"]}),
]

CALLS: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("JobSpec", "add_jobs", ([{"identifier": "a"}],), {}),
    ("JobSpec", "add_jobs", (JobSpec("a"),), {}),
    ("JobSpec", "add_jobs", ("a",), {}),
    ("conn", "add_job", ("a",), {"conn": "postgresql://"}),
    ("conn", "add_jobs", ([JobSpec("a")],), {"conn": 5}),
    ("conn", "complete_jobs", ([1],), {"conn": 5}),
    *[
        ("ids", method, (ids,), {})
        for method in ("complete_jobs", "permanently_fail_jobs", "reschedule_jobs")
        for ids in (
            ["x"],
            [1.5],
            [True],
            [-1],
            [2**63],
            ["-1"],
            [None],
            ["9" * 30],
            ["٣"],
            [""],
            "12",
            b"12",
            12,
            None,
            {12: 12},
        )
    ],
    *[
        ("reason", "permanently_fail_jobs", ([1], reason), {})
        for reason in (5, "U+0000 \0", b"no", "\ud800")
    ],
    *[("run_at", "reschedule_jobs", ([1],), {"run_at": at}) for at in (NAIVE, BEYOND, "now")],
    *[
        (name, "reschedule_jobs", ([1],), {name: value})
        for name, smallest in (("priority", -32768), ("attempts", 0), ("max_attempts", 1))
        for value in (smallest - 1, 32768, 1.5, True, "1")
    ],
    *[
        ("pool_ids", "force_unlock_workers", (pool_ids,), {})
        for pool_ids in ("pool-1", None, 5, [1], [None], ["\0"], {"pool-1": 1})
    ],
    *[("job_key", "remove_job", (key,), {}) for key in ("", "k" * 513, None, 5, "\0")],
    *[
        ("tasks", "cleanup", (tasks,), {})
        for tasks in ("GC_JOB_QUEUES", 5, [5], ["gc_job_queues"], ["ALL"], {"GC_JOB_QUEUES": 1})
    ],
    *[
        ("task_identifiers_to_keep", "cleanup", (), {"task_identifiers_to_keep": keep})
        for keep in ("a", 5, [5])
    ],
    *[("id", "get_job", (value,), {}) for value in (None, "x", 1.0, 2**63)],
    ("state", "list_jobs", (), {"state": "done"}),
    ("state", "list_jobs", (), {"state": 5}),
    *[
        (name, "list_jobs", (), {name: value})
        for name in ("task", "queue", "key", "text", "locked_by")
        for value in (5, "\0")
    ],
    *[("limit", "list_jobs", (), {"limit": value}) for value in (0, -1, "5", 1.5, True)],
    ("not 2147483648", "list_jobs", (), {"limit": 2**31}),
    *[("after", "list_jobs", (), {"after": value}) for value in ("x", -1, 1.5)],
]


async def test_every_call_names_the_value(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job("a", job_key="there")
    before = stored.all()
    for name, method, args, kwargs in CALLS:
        with pytest.raises(ConfigurationError) as caught:
            await getattr(utils, method)(*args, **kwargs)
        assert name in str(caught.value), (method, args, kwargs)
    assert stored.all() == before
    assert await utils.get_job(job.id) is not None


async def test_add_job_names_the_value(utils: WorkerUtils, stored: Jobs) -> None:
    for name, given in SPECS:
        arguments = {"identifier": "a", **given}
        with pytest.raises(ConfigurationError) as caught:
            await utils.add_job(**arguments)
        assert re.search(name, str(caught.value)), given
    assert stored.all() == []


@pytest.mark.parametrize(("name", "given"), SPECS)
def test_a_spec_names_the_value_when_it_is_made(name: str, given: dict[str, Any]) -> None:
    arguments = {"identifier": "a", **given}
    with pytest.raises(ConfigurationError, match=name):
        JobSpec(**arguments).payload_json()


def test_what_the_schema_can_hold_is_allowed() -> None:
    JobSpec("i", queue_name="", run_at=datetime.min.replace(tzinfo=UTC), priority=-32768)
    JobSpec("i" * 128, queue_name="q" * 128, job_key="k" * 512, max_attempts=32767, flags=[])
    JobSpec("😀" * 128, queue_name="😀" * 128, job_key="😀" * 512)


async def test_use_before_entering_is_told() -> None:
    utils = WorkerUtils("postgresql://")
    with pytest.raises(GraphileWorkerError, match="this WorkerUtils was not entered: use `async"):
        await utils.add_job("a")
    with pytest.raises(GraphileWorkerError, match="WorkerUtils was not entered"):
        await utils.complete_jobs([1])
    with pytest.raises(GraphileWorkerError, match="WorkerUtils was not entered"):
        utils.pool  # noqa: B018
    sync = SyncWorkerUtils("postgresql://")
    with pytest.raises(GraphileWorkerError, match="this SyncWorkerUtils was not entered: use `wi"):
        sync.add_jobs([JobSpec("a")])
    with pytest.raises(GraphileWorkerError, match="SyncWorkerUtils was not entered"):
        sync.migrate()
    runner = Runner("postgresql://", tasks={"work": print})
    with pytest.raises(GraphileWorkerError, match="this Runner was not entered: use `async with`"):
        await runner.add_job("a")


NAN = float("nan")


@dataclass
class Item:
    """A part of a payload."""

    price: Any


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        ({"a": {"b": {1, 2}}}, r"\$\.a\.b is a set; write list\(\.\.\.\)"),
        ({"a": [1, {"price": Decimal("1.5")}]}, r"\$\.a\[1\]\.price is a Decimal; write str"),
        ({"items": [Item(1), Item(object())]}, r"\$\.items\[1\]\.price is an object"),
        ({"a b": {"c": print}}, r"\$\['a b'\]\.c is a builtin_function_or_method"),
        ({"a": [1.5, {"x": NAN}]}, r"\$\.a\[1\]\.x is nan, not a finite number"),
        ([Item(-float("inf")), None], r"\$\[0\]\.price is -inf, not a finite number"),
        (NAN, r"\$ is nan"),
    ],
)
async def test_what_can_not_be_written_is_named_with_its_place(
    utils: WorkerUtils, payload: Any, place: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"payload of task 'a' is .*: {place}"):
        await utils.add_job("a", payload)
    with pytest.raises(ConfigurationError, match=rf"jobs\[1\]: payload of task 'a' is .*: {place}"):
        await utils.add_jobs([JobSpec("a", 1), JobSpec("a", payload)])


async def test_numbers_that_are_not_finite_are_null_if_so_wished(api: Api, dsn: str) -> None:
    jobs = Jobs(dsn)
    async with api.opened(dsn, nan_as_null=True) as utils:
        await utils.add_job("a", {"n": [NAN, Item(NAN), 1.5, None]})
        await utils.add_jobs([JobSpec("a", NAN)])
    assert [job["payload"] for job in jobs.all()] == [
        {"n": [None, {"price": None}, 1.5, None]},
        None,
    ]


async def test_tasks_add_numbers_that_are_not_finite_as_the_option_says(dsn: str) -> None:
    async def work(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("next", NAN, run_at=datetime(2100, 1, 1, tzinfo=UTC))

    jobs = Jobs(dsn)
    for as_null in (False, True):
        jobs.add("work")
        await run_once(dsn, tasks={"work": work}, nan_as_null=as_null)
    left = [(job["task_identifier"], job["attempts"]) for job in jobs.all()]
    assert left == [("work", 1), ("next", 0)]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("queue", "did you mean 'queue_name'"),
        ("delay", "did you mean 'run_in'"),
        ("retries", "did you mean 'max_attempts'"),
        ("jobKey", "did you mean 'job_key'"),
        ("priorty", "did you mean 'priority'"),
        ("xyz", "allowed are queue_name, "),
    ],
)
async def test_an_unknown_argument_gets_a_suggestion(
    utils: WorkerUtils, word: str, hint: str
) -> None:
    with pytest.raises(TypeError, match=f"unknown argument '{word}'; {hint}"):
        await utils.add_job("a", **{word: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"unknown argument '{word}'; {hint}"):
        JobSpec("a", **{word: 1})  # type: ignore[arg-type]


async def test_a_function_that_is_no_task_is_refused(utils: WorkerUtils) -> None:
    def send_email(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="'send_email' is a function and no task: decora"):
        await utils.add_job(send_email)  # type: ignore[arg-type]
