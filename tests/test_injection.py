"""Tasks that ask for more than payload and context: objects of the state, and made values."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import pytest

from graphile_worker_py import (
    ConfigurationError,
    Inject,
    JobContext,
    Resource,
    Runner,
    Snooze,
    State,
    SyncJobContext,
    Task,
    run_once,
    task,
)
from graphile_worker_py.testing import Kit, SyncKit
from tests import injected_tasks
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

MAIN = threading.main_thread()


@dataclass
class Order:
    number: int


class Base:
    """What a test asks for; its subclasses are found, too."""


class Client(Base):
    def __init__(self) -> None:
        self.said: list[str] = []


class Settings:
    url = "http://localhost"


def providing(*resources: Any, **given: Any) -> Callable[[Any], AsyncIterator[State]]:
    async def lifespan(_runner: Any) -> AsyncIterator[State]:
        yield State(*resources, **given)

    return lifespan


async def run(dsn: str, stored: Jobs, asking: Task[Any], *resources: Any, **payload: Any) -> None:
    stored.add(asking.identifier, payload)
    lifespan = providing(*resources)
    await run_once(dsn, tasks=[asking], lifespan=lifespan, raise_errors=True)


def refused(asking: Task[Any], *resources: Any) -> Awaitable[Any]:
    return run_once("", tasks=[asking], lifespan=providing(*resources))


# Factories of every kind, which note what happens to them in the client.


def load(payload: Order, client: Resource[Client]) -> str:
    client.said.append(f"load {payload.number}")
    return f"order {payload.number}"


async def aload(ctx: JobContext, loaded: Annotated[str, Inject(load)]) -> str:
    return f"{loaded} of {ctx.job.task_identifier}"


def opened(
    loaded: Annotated[str, Inject(load)], client: Resource[Client], where: str = "here"
) -> Iterator[str]:
    client.said.append("open")
    try:
        yield f"{loaded} {where}"
    except Exception as error:
        client.said.append(f"failed: {error}")
        raise
    finally:
        client.said.append("close")


@asynccontextmanager
async def aopened(client: Resource[Client], state: State) -> AsyncIterator[str]:
    client.said.append("aopen")
    try:
        yield str(len(state.resources))
    finally:
        await asyncio.sleep(0)
        client.said.append("aclose")


@task
async def on_loop(
    payload: Order,
    ctx: JobContext,
    client: Resource[Client],
    opened: Annotated[str, Inject(opened)],
    aopened: Annotated[str, Inject(aopened)],
    loaded: Annotated[str, Inject(aload)],
) -> None:
    assert threading.current_thread() is MAIN
    client.said.append(f"{opened}, {aopened}, {loaded}")


@task
def in_thread(
    payload: Order,
    ctx: SyncJobContext,
    client: Resource[Client],
    opened: Annotated[str, Inject(opened)],
    *,
    aopened: Annotated[str, Inject(aopened)],
    loaded: Annotated[str, Inject(aload)],
) -> None:
    assert threading.current_thread() is not MAIN
    client.said.append(f"{opened}, {aopened}, {loaded}")


@task(executor="inline")
def inline(
    payload: Order,
    client: Resource[Client],
    opened: Annotated[str, Inject(opened)],
    aopened: Annotated[str, Inject(aopened)],
    loaded: Annotated[str, Inject(aload)],
) -> None:
    client.said.append(f"{opened}, {aopened}, {loaded}")


@pytest.mark.parametrize("asking", [on_loop, in_thread, inline], ids=lambda each: each.identifier)
async def test_a_task_gets_what_it_asks_for_and_each_factory_is_called_once(
    asking: Task[Any], dsn: str, stored: Jobs
) -> None:
    client = Client()
    await run(dsn, stored, asking, client, Settings(), number=7)
    assert client.said == [
        "load 7",
        "open",
        "aopen",
        f"order 7 here, 2, order 7 of {asking.identifier}",
        "aclose",
        "close",
    ]
    assert stored.all() == []


async def test_each_job_gets_values_of_its_own(dsn: str, stored: Jobs) -> None:
    @task
    async def number(
        payload: Order, loaded: Annotated[str, Inject(load)], client: Resource[Client]
    ) -> None:
        await asyncio.sleep(0)
        client.said.append(f"{loaded} is {payload.number}")

    client = Client()
    for each in range(5):
        stored.add("number", {"number": each})
    lifespan = providing(client)
    await run_once(dsn, tasks=[number], lifespan=lifespan, concurrent_jobs=5, raise_errors=True)
    said = [line for line in client.said if not line.startswith("load")]
    assert sorted(said) == [f"order {each} is {each}" for each in range(5)]


def swallowing(client: Resource[Client]) -> Iterator[None]:
    try:
        yield
    except ValueError:
        client.said.append("swallowed")


@task
async def failing(
    payload: Any,
    swallowed: Annotated[None, Inject(swallowing)],
    opened: Annotated[str, Inject(opened)],
) -> None:
    raise ValueError("the task")


@task("failing")
def failing_in_thread(
    payload: Any,
    swallowed: Annotated[None, Inject(swallowing)],
    opened: Annotated[str, Inject(opened)],
) -> None:
    raise ValueError("the task")


@pytest.mark.parametrize("asking", [failing, failing_in_thread], ids=["loop", "thread"])
async def test_factories_see_the_failure_of_the_job_and_can_not_hide_it(
    asking: Task[Any], dsn: str, stored: Jobs
) -> None:
    client = Client()
    overrides = {load: lambda: "an order"}
    stored.add("failing")
    with pytest.raises(ValueError, match="the task"):
        await run_once(
            dsn,
            tasks=[asking],
            lifespan=providing(client, overrides=overrides),
            raise_errors=True,
        )
    assert client.said == ["open", "failed: the task", "close", "swallowed"]
    (job,) = stored.all()
    assert "the task" in job["last_error"]


async def test_a_factory_that_fails_fails_the_job(dsn: str, stored: Jobs) -> None:
    def committing() -> Iterator[None]:
        yield
        raise OSError("no commit")

    async def snoozing(payload: Any) -> None:
        if payload:
            raise Snooze(60)

    @task
    async def work(
        payload: Any,
        snoozed: Annotated[None, Inject(snoozing)],
        committed: Annotated[None, Inject(committing)],
    ) -> None: ...

    snoozed = stored.add("work", {"later": 1})
    failed = stored.add("work", {})
    await run_once(dsn, tasks=[work])
    assert stored.one(snoozed)["attempts"] == 0
    assert "no commit" in stored.one(failed)["last_error"]


async def test_the_items_of_a_batch_job_end_before_their_dependencies(
    dsn: str, stored: Jobs
) -> None:
    is_open = False

    async def session() -> AsyncIterator[None]:
        nonlocal is_open
        is_open = True
        yield
        is_open = False

    async def send(item: int) -> None:
        await asyncio.sleep(0)
        assert is_open
        if item == 2:
            raise ValueError("two")

    @task
    async def batch(payload: list[int], *, session: Annotated[None, Inject(session)]) -> list[Any]:
        return [send(item) for item in payload]

    @task
    def batch_in_thread(
        payload: list[int], *, session: Annotated[None, Inject(session)]
    ) -> list[Any]:
        return [send(item) for item in payload]

    stored.add("batch", [1, 2, 3])
    stored.add("batch_in_thread", [1, 2, 3])
    await run_once(dsn, tasks=[batch, batch_in_thread], concurrent_jobs=1)
    assert [job["json"] for job in stored.all()] == ["[2]", "[2]"]


async def test_tasks_in_processes_get_what_their_own_setup_makes(
    dsn: str, stored: Jobs, tmp_path: Path
) -> None:
    path = tmp_path / "noted"
    tasks = [injected_tasks.compute, injected_tasks.compute_on_loop]
    for each in tasks:
        stored.add(each.identifier, {"path": str(path)})
    await run_once(dsn, tasks=tasks, setup=injected_tasks.init, raise_errors=True)
    assert path.read_text().splitlines() == [
        *("begin", "of compute", "end"),
        *("begin", "on a loop", "end"),
    ]
    with pytest.raises(ConfigurationError, match=r"asks for Files as 'files'.*what setup returns"):
        await run_once(
            dsn, tasks=[injected_tasks.compute], lifespan=providing(injected_tasks.Files())
        )


class Unknown: ...


@runtime_checkable
class Speaking(Protocol):
    said: list[str]


@task
async def unknown(payload: Any, client: Resource[Unknown]) -> None: ...


@task
async def by_base(payload: Any, base: Resource[Base], speaking: Resource[Speaking]) -> None:
    assert isinstance(base, Client)
    assert isinstance(speaking, Client)


def first(second: "Annotated[int, Inject(second)]") -> int:
    return second


def second(third: "Annotated[int, Inject(third)]") -> int:
    return third


def third(first: "Annotated[int, Inject(first)]") -> int:
    return first


@task
async def circle(payload: Any, one: Annotated[int, Inject(first)]) -> None: ...


def two_payloads(payload: Any, other: Any) -> None: ...


def positional(value: Any, /) -> None: ...


def for_threads(ctx: SyncJobContext) -> None: ...


@task
async def badly_made(payload: Any, it: Annotated[None, Inject(two_payloads)]) -> None: ...


@task
async def by_position(payload: Any, it: Annotated[None, Inject(positional)]) -> None: ...


@task
async def of_a_thread(payload: Any, it: Annotated[None, Inject(for_threads)]) -> None: ...


@task
async def unresolved(payload: Any, it: "Resource[Missing]") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("asking", "resources", "message"),
    [
        (
            unknown,
            (),
            r"task 'unknown' can't run here: .* asks for Unknown as 'client': there is no state\. ",
        ),
        (unknown, (Client(), Settings()), "the state has none; it has Client, Settings"),
        (by_base, (Client(), Client()), "the state has 2 of them: Client, Client"),
        (circle, (), "ask for each other in a circle: first → second → third → first"),
        (badly_made, (), "function 'two_payloads' takes 'payload' and 'other'; one of them"),
        (by_position, (), "function 'positional' takes 'value' by position only"),
        (of_a_thread, (), "'for_threads' asks for a SyncJobContext, but gets a JobContext"),
        (unresolved, (), r"annotation 'Resource\[Missing\]' of 'it' can't be resolved"),
    ],
)
async def test_what_can_not_be_provided_is_an_error_at_the_start(
    asking: Task[Any], resources: tuple[Any, ...], message: str, dsn: str, stored: Jobs
) -> None:
    stored.add(asking.identifier)
    with pytest.raises(ConfigurationError, match=message):
        async with Runner(dsn, tasks=[asking], lifespan=providing(*resources)):
            pass
    (job,) = stored.all()
    assert job["attempts"] == 0


async def test_the_error_without_a_lifespan_shows_one(dsn: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"lifespan\(runner\): yield State\(Unknown\(\.\.\.\)\)"
    ):
        await run_once(dsn, tasks=[unknown])


async def test_a_resource_is_found_by_its_class_and_by_what_it_can_do(
    dsn: str, stored: Jobs
) -> None:
    await run(dsn, stored, by_base, Client(), Settings())
    assert stored.all() == []


def without_payload(client: Resource[Client]) -> None: ...


def before_context(payload: Any, client: Resource[Client], ctx: Any) -> None: ...


def by_position_only(payload: Any, client: Resource[Client], /) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without_payload, "takes 'client', which is injected, without a payload before it"),
        (before_context, "takes 'ctx' after 'client', which is injected"),
        (by_position_only, "takes 'client' by position only, but it is injected by keyword"),
    ],
)
def test_a_signature_that_can_not_be_called_is_refused_at_the_definition(
    function: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        task(function)


@pytest.mark.parametrize("given", [7, "load"])
def test_inject_takes_a_function(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes a function that makes a value"):
        Inject(given)
    with pytest.raises(ConfigurationError, match="overrides must map factories to factories"):
        State(overrides={load: given})


@task
async def report(
    payload: Order, ctx: JobContext, client: Resource[Client], loaded: Annotated[str, Inject(load)]
) -> str:
    return f"{loaded} by {type(client).__name__}"


class Fake(Client): ...


async def test_the_kit_provides_other_objects_and_factories(gw: Kit) -> None:
    with gw.provide(Fake(), overrides={load: lambda: "nothing"}):
        assert await gw.perform(report, Order(1)) == "nothing by Fake"
        await gw.utils.add_job(report, Order(2))
        drained = await gw.drain([report])
        assert list(drained.results.values()) == ["nothing by Fake"]
        with gw.provide(overrides={load: lambda payload: payload.number}):
            assert await gw.perform(report, Order(3)) == "3 by Fake"
    with pytest.raises(ConfigurationError, match="asks for Client"):
        await gw.perform(report, Order(4))


def test_the_kit_without_an_event_loop_provides_them_too(gw_sync: SyncKit) -> None:
    with gw_sync.provide(Fake()):
        assert gw_sync.perform(report, Order(1)) == "order 1 by Fake"


@contextmanager
def decorated() -> Iterator[int]:
    yield 5


async def test_a_task_is_still_a_function(gw: Kit) -> None:
    @task
    async def plain(payload: Any, number: Annotated[int, Inject(decorated)]) -> int:
        return number

    assert await plain(None, number=6) == 6
    assert await gw.perform(plain) == 5
