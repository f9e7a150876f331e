"""A task's annotation says what its payload is; a payload that does not fit fails the job."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from graphile_worker_py import (
    ConfigurationError,
    Events,
    JobContext,
    JobSpec,
    PayloadError,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    Task,
    TaskName,
    WorkerUtils,
    json_codec,
    run_once,
    task,
)
from graphile_worker_py.events import JobError
from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mail:
    to: str
    copies: int = 1


class Note(TypedDict):
    text: str


class Point(msgspec.Struct, rename="camel"):
    along_x: int
    along_y: int = 0


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(alias="orderNumber", ge=1)
    at: datetime | None = None


Orders = TypeAliasType("Orders", list[Order])


@dataclass
class Shipment:
    order: Order
    weight: Decimal
    lasts: timedelta = timedelta(0)
    tags: set[str] = field(default_factory=set)


@dataclass
class Checked:
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > 3:
            raise ValueError("Text of `Checked` is too long")


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    x: int


@pytest.fixture
def jobs(dsn: str) -> Jobs:
    return Jobs(dsn)


def recording(annotation: Any) -> tuple[Task[Any], list[Any]]:
    """A task named `record` whose payload is annotated so, and what it was given."""
    given: list[Any] = []

    async def record(payload: Any) -> None:
        given.append(payload)

    record.__annotations__["payload"] = annotation
    return task(record), given


@pytest.mark.parametrize(
    ("annotation", "stored", "built"),
    [
        (Mail, {"to": "ada"}, Mail("ada")),
        (Note, {"text": "hi", "unknown": 1}, {"text": "hi"}),
        (Point, {"alongX": 3}, Point(3)),
        (Order, {"orderNumber": 7}, Order(orderNumber=7)),
        (list[Mail], [{"to": "ada"}, {"to": "bob"}], [Mail("ada"), Mail("bob")]),
        (list[Order], [{"orderNumber": 7}], [Order(orderNumber=7)]),
        (Mail | None, None, None),
        (Annotated[Mail, "for documentation"], {"to": "ada"}, Mail("ada")),
        (dict[str, Point], {"a": {"alongX": 1}}, {"a": Point(1)}),
        (
            Shipment,
            {"order": {"orderNumber": 7}, "weight": "1.50", "lasts": "PT1M", "tags": ["a"]},
            Shipment(Order(orderNumber=7), Decimal("1.50"), timedelta(minutes=1), {"a"}),
        ),
        ("Mail", {"to": "ada"}, Mail("ada")),
        (list["Mail"], [{"to": "ada"}], [Mail("ada")]),
        (Orders, [{"orderNumber": 7}], [Order(orderNumber=7)]),
    ],
    ids=str,
)
async def test_the_payload_is_built_as_annotated(
    dsn: str, jobs: Jobs, annotation: Any, stored: Any, built: Any
) -> None:
    record, given = recording(annotation)
    jobs.add("record", stored)
    await run_once(dsn, tasks=[record])
    assert (given, jobs.ids()) == ([built], [])


@pytest.mark.parametrize(
    "annotation", [Any, object, dict, list, dict[str, Any], list[int], str, "Mapping[str, int]"]
)
def test_a_payload_without_a_model_in_its_annotation_is_not_looked_at(annotation: Any) -> None:
    record, _ = recording(annotation)
    assert record.decode is None


def test_a_task_without_annotation_or_without_payload_builds_nothing() -> None:
    assert task("a")(lambda payload, ctx: None).decode is None
    assert task("b")(lambda: None).decode is None
    assert task("c")(print).decode is None


@pytest.mark.parametrize(
    ("annotation", "stored", "fault"),
    [
        (Mail, {"to": 5}, "$.to: expected str, got int"),
        (Mail, {}, "$.to: required, but missing"),
        (Mail, [], "$: expected object, got array"),
        (list[Mail], [{"to": "ada"}, {"to": 5}], "$[1].to: expected str, got int"),
        (list[Mail], [{"to": "ada"}, {}], "$[1].to: required, but missing"),
        (Note, {"text": None}, "$.text: expected str, got null"),
        (Point, {"along_x": 1}, "$.alongX: required, but missing"),
        (
            Order,
            {"orderNumber": "x"},
            "$.orderNumber: input should be a valid integer, unable to parse string as an integer",
        ),
        (Order, {}, "$.orderNumber: required, but missing"),
        (
            list[Order],
            [{"orderNumber": 1}, {"orderNumber": 0}, {"orderNumber": []}],
            (
                "$[1].orderNumber: input should be greater than or equal to 1; "
                "$[2].orderNumber: input should be a valid integer, got list"
            ),
        ),
        (
            Shipment,
            {"order": {"orderNumber": {}, "at": []}, "weight": 1},
            (
                "$.order.orderNumber: input should be a valid integer, got dict; "
                "$.order.at: input should be a valid datetime, got list"
            ),
        ),
        (Checked, {"text": "long"}, "$: Text of `Checked` is too long"),
        (list[Checked], [{"text": "long"}], "$[0]: Text of `Checked` is too long"),
        (Closed, {"x": 1, "y": 2}, "$: object contains unknown field 'y'"),
    ],
    ids=str,
)
async def test_a_payload_that_does_not_fit_fails_the_job_and_names_the_place(
    dsn: str, jobs: Jobs, annotation: Any, stored: Any, fault: str
) -> None:
    record, given = recording(annotation)
    job_id = jobs.add("record", stored)
    await run_once(dsn, tasks=[record])
    job = jobs.one(job_id)
    assert given == []
    assert job["last_error"] == f"payload does not fit: {fault}"
    assert (job["attempts"], job["locked_by"]) == (1, None)


async def test_the_error_lists_its_faults_and_is_told_as_any_other(dsn: str, jobs: Jobs) -> None:
    record, _ = recording(list[Order])
    jobs.add("record", [{}] * 7)
    events = Events()
    told: list[JobError] = []
    events.subscribe(JobError, told.append)
    await run_once(dsn, tasks=[record], events=events)
    (error,) = [event.error for event in told]
    assert isinstance(error, PayloadError)
    assert isinstance(error, ValueError)
    assert error.faults == tuple(f"$[{at}].orderNumber: required, but missing" for at in range(7))
    assert str(error).endswith("; $[4].orderNumber: required, but missing; and 2 more")


@pytest.mark.parametrize("annotation", [Mail, Order, Shipment])
async def test_what_a_payload_holds_is_neither_in_the_error_nor_in_the_log(
    dsn: str, jobs: Jobs, annotation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record, _ = recording(annotation)
    secret = {"password": "hunter2"}
    job_id = jobs.add("record", {"to": secret, "orderNumber": "hunter2", "order": secret})
    await run_once(dsn, tasks=[record])
    assert "payload does not fit" in caplog.text
    assert "hunter2" not in caplog.text + jobs.one(job_id)["last_error"]


async def test_items_of_a_batch_that_fail_are_tried_again_alone(dsn: str, jobs: Jobs) -> None:
    @task
    async def send(payload: list[Mail]) -> list[Any]:
        async def one(mail: Mail) -> None:
            if mail.to == "bob":
                raise ValueError("bob is away")

        return [one(mail) for mail in payload]

    job_id = jobs.add("send", [{"to": "ada"}, {"to": "bob", "copies": 2}])
    await run_once(dsn, tasks=[send])
    assert jobs.one(job_id)["payload"] == [{"to": "bob", "copies": 2}]


async def test_a_plain_function_gets_what_it_is_annotated_with(dsn: str, jobs: Jobs) -> None:
    given: list[Any] = []

    def send(payload: Mail, ctx: SyncJobContext) -> None:
        given.append((payload, ctx.job.payload))

    jobs.add("send", {"to": "ada"})
    await run_once(dsn, tasks={"send": send})
    assert given == [(Mail("ada"), {"to": "ada"})]


class Sender:
    async def send(self, payload: Mail) -> None: ...

    async def __call__(self, payload: "Mail") -> None: ...


async def with_prefix(prefix: str, payload: "Mail") -> None: ...


@pytest.mark.parametrize(
    "function",
    [Sender().send, Sender(), partial(with_prefix, "a")],
    ids=["method", "callable", "partial"],
)
def test_other_callables_are_looked_at_too(function: Callable[..., Any]) -> None:
    decode = task("send")(function).decode
    assert decode is not None
    assert decode(b'{"to":"ada"}') == Mail("ada")


def test_numbers_and_text_that_only_json_can_hold_arrive(jobs: Jobs) -> None:
    record, _ = recording(dict[str, Mail])
    decode = record.decode
    assert decode is not None
    long = 123456789012345678901234567890
    text = f'{{"a":{{"to":"\\ud800","copies":{long}}}}}'.encode()
    assert decode(text) == {"a": Mail("\ud800", long)}


class Loose(pydantic.BaseModel):
    value: Any
    name: str = ""


def test_lone_surrogates_and_long_numbers_arrive_in_pydantic_models() -> None:
    record, _ = recording(dict[str, Loose])
    decode = record.decode
    assert decode is not None
    text = f'{{"a":{{"value":["\\udfff",{10**30}],"name":"\\ud800"}}}}'.encode()
    assert decode(text) == {"a": Loose(value=["\udfff", 10**30], name="\ud800")}
    with pytest.raises(PayloadError, match=r"\$\.a\.name: input should be a valid string, got int"):
        decode(b'{"a":{"value":"\\ud800","name":7}}')


@dataclass
class Anything:
    value: Any


@pytest.mark.parametrize("kind", [Anything, Loose])
def test_a_payload_nested_too_deeply_is_told_as_one_that_does_not_fit(kind: Any) -> None:
    record, _ = recording(kind)
    decode = record.decode
    assert decode is not None
    deep = b'{"value":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(PayloadError, match="nested too deeply"):
        decode(deep)


LATER = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphile_worker_py import task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from graphile_worker_py import JobContext
    from nowhere import Ghost

@task
async def before_its_type(payload: Mail, ctx: JobContext): ...

@task
async def as_it_is(payload: Mapping[str, int]): ...

@task
async def haunted(payload: Ghost): ...

@dataclass
class Mail:
    to: str
"""


def test_annotations_that_are_kept_as_text_are_resolved_when_the_worker_starts() -> None:
    module: dict[str, Any] = {"__name__": __name__}
    exec(compile(LATER, "later.py", "exec", dont_inherit=True), module)
    assert module["before_its_type"].decode(b'{"to":"ada"}') == module["Mail"]("ada")
    assert module["as_it_is"].decode is None
    with pytest.raises(ConfigurationError, match="'Ghost' of the payload of task 'haunted'"):
        Runner("", tasks=[module["as_it_is"], module["haunted"]])


class Handle:
    """Nothing that JSON could be made into."""


@dataclass
class WithUnion:
    either: Mail | Shipment


class Unfinished(pydantic.BaseModel):
    other: "NotYetThere"  # type: ignore[name-defined]  # noqa: F821


class AStruct(msgspec.Struct):
    to: str


class AModel(pydantic.BaseModel):
    to: str


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (WithUnion, "WithUnion"),
        (Unfinished, "Unfinished"),
        (AStruct | AModel, r".*\.AStruct \| .*\.AModel"),
    ],
)
def test_a_type_that_can_not_be_built_is_refused_when_the_worker_starts(
    annotation: Any, shown: str
) -> None:
    record, _ = recording(annotation)
    message = rf"payload of task 'record' can't be of type {shown}: .+$"
    with pytest.raises(ConfigurationError, match=message) as caught:
        Runner("", tasks=[record])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "payload_type", "message"),
    [
        ("msgspec", "Mail", r"needs msgspec: pip install 'graphile-worker-py\[typed\]'"),
        ("pydantic", "Fake", r"needs pydantic: pip install 'graphile-worker-py\[pydantic\]'"),
    ],
)
def test_a_missing_library_is_named_when_the_worker_starts_and_not_by_who_adds_jobs(
    dsn: str, jobs: Jobs, missing: str, payload_type: str, message: str
) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None

import re
from dataclasses import dataclass
from graphile_worker_py import ConfigurationError, Runner, SyncWorkerUtils, task

@dataclass
class Mail:
    to: str

class Fake(Mail):
    __pydantic_validator__ = None

@task
async def send(payload: {payload_type}): ...

with SyncWorkerUtils(sys.argv[1]) as utils:
    send.add_job(utils, {payload_type}("ada"))
try:
    Runner(sys.argv[1], tasks=[send])
except ConfigurationError as error:
    assert re.search({message!r}, str(error)), error
else:
    sys.exit("it started")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, dsn], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [job["payload"] for job in jobs.all()] == [{"to": "ada"}]


ALL_FIELDS = Shipment(
    Order(orderNumber=7, at=datetime(2026, 1, 2, tzinfo=UTC)), Decimal("1.50"), timedelta(1), {"a"}
)


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Mail, Mail("ada", 2**70)),
        (Mail, Mail("\ud800")),
        (Point, Point(3)),
        (Order, Order(orderNumber=7)),
        (Shipment, ALL_FIELDS),
        (list[Shipment], [ALL_FIELDS]),
        (dict[str, list[Point]], {"a": [Point(1), Point(2)]}),
    ],
    ids=str,
)
def test_what_is_added_is_what_arrives(annotation: Any, payload: Any) -> None:
    record, _ = recording(annotation)
    decode = record.decode
    assert decode is not None
    assert decode(JobSpec(record, payload).payload_json().encode()) == payload


def test_objects_are_written_within_plain_payloads_too() -> None:
    payload = {
        "mail": Mail("ada"),
        "points": [Point(1)],
        "order": Order(orderNumber=7),
        "big": 2**70,
    }
    assert json_codec.loads(json_codec.dumps(payload)) == {
        "mail": {"to": "ada", "copies": 1},
        "points": [{"alongX": 1, "alongY": 0}],
        "order": {"orderNumber": 7, "at": None},
        "big": 2**70,
    }
    plain = {"id": UUID(int=1), "at": datetime(2026, 1, 2, tzinfo=UTC)}
    assert json_codec.dumps(plain) == (
        b'{"id":"00000000-0000-0000-0000-000000000001","at":"2026-01-02T00:00:00+00:00"}'
    )


@pytest.mark.parametrize("payload", [Handle(), [Mail, 1], Shipment, {"a": Handle()}])
def test_what_can_not_be_written_is_refused(payload: Any) -> None:
    with pytest.raises(ConfigurationError, match="payload of task 'x' is not JSON-serialisable"):
        JobSpec("x", payload).payload_json()


def test_a_field_that_can_not_be_written_is_named() -> None:
    @dataclass
    class Holder:
        handle: Handle

    with pytest.raises(ConfigurationError, match="Handle"):
        JobSpec("x", Holder(Handle())).payload_json()


@task
async def send_mail(payload: Mail, ctx: JobContext) -> None:
    if payload.copies:
        await ctx.add_job(send_mail, Mail(payload.to, payload.copies - 1))


@task("mail/print")
def print_mail(payload: Mail, ctx: SyncJobContext) -> None:
    if payload.copies:
        print_mail.add_job(ctx, Mail(payload.to, payload.copies - 1), priority=payload.copies)


@task
async def nightly() -> None: ...


async def test_a_task_stands_for_its_name_wherever_jobs_are_added(dsn: str, jobs: Jobs) -> None:
    mail = Mail("ada", 0)
    async with WorkerUtils(dsn) as utils:
        added = [
            await utils.add_job(send_mail, mail),
            await send_mail.add_job(utils, mail, job_key="a", priority=3, flags=["eu"]),
            await nightly.add_job(utils, None),
            *await utils.add_jobs([JobSpec(print_mail, mail), print_mail.spec(mail, job_key="b")]),
            await utils.add_job(TaskName[Mail]("elsewhere"), mail),
        ]
        async with utils.pool.connection() as conn, conn.transaction(force_rollback=True):
            await send_mail.add_job(utils, mail, job_key="gone", conn=conn)
    with SyncWorkerUtils(dsn) as sync_utils:
        added.append(sync_utils.add_job(send_mail, mail))
        added.append(print_mail.add_job(sync_utils, mail, run_at=datetime(2100, 1, 1, tzinfo=UTC)))
    rows = [(job["id"], job["task_identifier"], job["key"]) for job in jobs.all()]
    assert rows == [(job.id, job.task_identifier, job.key) for job in added]
    assert [name for _, name, _ in rows] == [
        "send_mail",
        "send_mail",
        "nightly",
        "mail/print",
        "mail/print",
        "elsewhere",
        "send_mail",
        "mail/print",
    ]
    assert (jobs.one(added[1].id)["priority"], jobs.one(added[1].id)["flags"]) == (3, {"eu": True})
    assert jobs.one(added[2].id)["payload"] == {}


async def test_tasks_add_typed_jobs_through_their_context(dsn: str, jobs: Jobs) -> None:
    jobs.add("send_mail", {"to": "ada", "copies": 2})
    jobs.add("mail/print", {"to": "bob", "copies": 2})
    events = Events()
    failed: list[JobError] = []
    events.subscribe(JobError, failed.append)
    await run_once(dsn, tasks=[send_mail, print_mail], events=events)
    assert (jobs.ids(), failed) == ([], [])


async def test_a_runner_adds_jobs_of_a_task(dsn: str) -> None:
    given: list[Any] = []
    record, given = recording(Mail)
    async with Runner(dsn, tasks=[record]) as runner:
        await record.add_job(runner, Mail("ada"))
        await runner.stop()
    await run_once(dsn, tasks=[record])
    assert given == [Mail("ada")]


def test_what_has_no_identifier_is_no_task() -> None:
    with pytest.raises(ConfigurationError, match="identifier must be a string, not 5"):
        JobSpec(5)  # type: ignore[arg-type]


def test_the_example_prints_what_it_promises(empty_dsn: str, processes: Processes) -> None:
    program = ROOT / "examples" / "typed_payloads.py"
    process = processes.start([sys.executable, str(program)], env={"DATABASE_URL": empty_dsn})
    assert process.wait(timeout=15) == 0, process.stderr
    assert process.stdout.splitlines() == [
        "invoice 7: 40.60 until 24.12.2026",
        "reminder of invoice 7",
        "invoice 8: payload does not fit: $.lines[0].price: expected decimal, got array",
    ]


SNIPPET = """
from dataclasses import dataclass
from typing import TypedDict

from graphile_worker_py import JobContext, JobSpec, SyncJobContext, SyncWorkerUtils, TaskName
from graphile_worker_py import WorkerUtils, task

@dataclass
class Mail:
    to: str

class Note(TypedDict):
    text: str

@task
async def send(payload: Mail, ctx: JobContext) -> None: ...
@task("notes/keep", timeout=3)
def keep(payload: Note, ctx: SyncJobContext) -> None: ...
@task
async def batch(payload: list[Mail]) -> None: ...
@task
async def loose(payload) -> None: ...  # type: ignore[no-untyped-def]
@task
async def nothing() -> None: ...

async def right(utils: WorkerUtils, blocking: SyncWorkerUtils, ctx: JobContext) -> None:
    print((await utils.add_job(send, Mail("a"))).id, (await send.add_job(ctx, Mail("a"))).id)
    print(blocking.add_job(send, Mail("a")).id, keep.add_job(blocking, {"text": "a"}).id)
    await utils.add_job(keep, Note(text="a"))
    await utils.add_job(batch, [Mail("a")])
    await utils.add_job(loose, 3)
    await utils.add_job("send", {"anything": 3}, job_key="a")
    await nothing.add_job(utils, None)
    await utils.add_jobs([JobSpec(send, Mail("a")), send.spec(Mail("a"), priority=3), JobSpec("x")])

async def wrong(utils: WorkerUtils, blocking: SyncWorkerUtils, ctx: SyncJobContext) -> None:
    await utils.add_job(send, {"to": "a"})  # wrong
    await send.add_job(utils, "a")  # wrong
    await send.add_job(utils, Mail("a"), priorty=3)  # wrong
    await batch.add_job(utils, Mail("a"))  # wrong
    keep.add_job(blocking, {"text": 3})  # wrong
    blocking.add_job(send, 3)  # wrong
    ctx.add_job(batch, [3])  # wrong
    JobSpec(send, 3)  # wrong
    send.spec(3)  # wrong
    await utils.add_job(TaskName[Mail]("elsewhere"), 3)  # wrong
    nothing.add_job(blocking, 3)  # wrong
    keep.add_job(ctx, Note(text="a")).nothing_of_a_job  # wrong
"""


def test_type_checkers_refuse_wrong_payloads_and_take_right_ones(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    program = tmp_path / "snippet.py"
    program.write_text(textwrap.dedent(SNIPPET))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            *("--cache-dir", str(pytestconfig.rootpath / ".mypy_cache"), "--no-error-summary"),
            str(program),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=pytestconfig.rootpath,
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    expected = {
        number for number, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# wrong")
    }
    assert found == expected, done.stdout + done.stderr
