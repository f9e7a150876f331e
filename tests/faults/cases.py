"""The faults that a crew of workers in processes has to get over."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from tests.faults.crew import FETCHING, Crew, Figures, Life
from tests.faults.trial import Scale
from tests.support.eventually import eventually
from tests.support.missing import missing
from tests.support.node import Node
from tests.support.own_server import OwnServer, Slots, at_both
from tests.support.pgbouncer import PgBouncer, find_pgbouncer, running_pgbouncer
from tests.support.processes import Processes
from tests.support.proxy import Proxy

T = TypeVar("T")

RECOVERS_FAST: Final = {"heartbeat_interval": 0.1, "dead_after": 1}
"""Options with which a death is found soon; a worker that starts may take so long for a beat."""
NO_LONGER_SPARED: Final = {"heartbeat_interval": 0.05, "dead_after": 0.1}
"""And with these, one that stands still while its session lasts is dead after four seconds."""
BLOCKED: Final = 2.0
"""Seconds: twice as long as a heartbeat may be late with the options above."""
BETWEEN_CUTS: Final = 0.1
DELAY: Final = 0.03
IMPATIENT: Final = {
    "graphile_worker_py.postgres.deadlines.STATEMENT_DEADLINE": 0.4,
}
"""What makes a worker give up soon what is not answered, where it would wait for a minute."""
AGAIN: Final = 0.4
"""Seconds until a signal is not taken for the one before."""
MEGABYTES: Final = 10 * 2**20
COMPLETE: Final = "select id from graphile_worker.complete_jobs(%s)"
DEEP: Final = 10_000
TOO_DEEP: Final = "JSON nested too deeply to be decoded"
DIED: Final = "The worker process died 3 times while this job was running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a crew works.

    Attributes:
        dsn: The database, by a way that the fault does not touch.
        server: Its server.
        processes: Starts processes.
    """

    dsn: str
    server: OwnServer
    processes: Processes


@dataclass(frozen=True, slots=True)
class Stage(Generic[T]):
    """A place that is set up for a fault.

    Attributes:
        tool: What the fault is made with.
        dsn: As that of a place.
        at: How the Python workers reach it; None: as everybody does.
        load_at: How jobs get there.
        node_at: How a Node worker reaches it at first.
        options: More options of the Python workers.
    """

    tool: T
    dsn: str
    at: str | None = None
    load_at: str | None = None
    node_at: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Generic[T]):
    """A fault.

    Attributes:
        fault: Its name in the table of the documentation.
        bring: Brings it about; returns the time since when work may go on.
        stage: Sets the place up.
        options: Of both Python workers.
        constants: What else is different in them.
        waits: Waits that are shorter in them; see `Waits`.
        each: Settings of one Python worker and the other.
        once: Whether it can come only once.
    """

    fault: str
    bring: Callable[[Crew, T], Awaitable[float]]
    stage: Callable[[Place], AbstractAsyncContextManager[Stage[T]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    waits: Mapping[str, Any] = field(default_factory=dict)
    each: Sequence[Mapping[str, Any]] = FETCHING
    once: bool = False

    def __str__(self) -> str:
        return self.fault


@asynccontextmanager
async def at_the_server(place: Place) -> AsyncIterator[Stage[OwnServer]]:
    """All go straight to the server."""
    yield Stage(place.server, place.dsn)


@asynccontextmanager
async def behind_a_proxy(place: Place) -> AsyncIterator[Stage[Proxy]]:
    """Python workers go through a proxy, all others straight to the server."""
    async with Proxy(place.dsn).running() as proxy:
        yield Stage(proxy, place.dsn, at=proxy.dsn)


@asynccontextmanager
async def behind_a_pooler(place: Place) -> AsyncIterator[Stage[PgBouncer]]:
    """Python workers go through a PgBouncer in transaction mode, but for their listeners."""
    program = find_pgbouncer()
    if program is None:
        missing("PgBouncer is not installed; say: apt-get install pgbouncer")
    with running_pgbouncer(program, place.dsn, place.processes, mode="transaction") as bouncer:
        listening = {"listen_connection_string": place.dsn}
        yield Stage(bouncer, place.dsn, at=bouncer.dsn, options=listening)


@asynccontextmanager
async def with_a_standby(place: Place) -> AsyncIterator[Stage["Pair"]]:
    """The server has a synchronous standby; a Node worker can be told of one of both."""
    with place.server.standby(synchronous=True) as standby:
        name = place.dsn.rpartition("/")[2]
        dsn = f"{standby.postgres.dsn.rpartition('/')[0]}/{name}"
        both = at_both(place.dsn, dsn)
        pair = Pair(place.server, standby)
        yield Stage(pair, dsn, at=both, load_at=both, node_at=place.dsn)


@dataclass(frozen=True, slots=True)
class Pair:
    """A server and its standby."""

    server: OwnServer
    standby: OwnServer


async def kill_one(crew: Crew, _: object) -> float:
    """Kill a worker in the middle of its work."""
    victim = crew.pythons[crew.round % 2].life
    await victim.stand_still_while_busy()
    victim.kill()
    return time.monotonic()


async def kill_all(crew: Crew, _: object) -> float:
    """Kill all Python workers."""
    victims = [worker.life for worker in crew.pythons]
    for victim in victims:
        await victim.stand_still_while_busy()
    for victim in victims:
        victim.kill()
    return time.monotonic()


async def stand_still(crew: Crew, _: object) -> float:
    """Stop a worker for longer than it is spared."""
    stopped, other = (crew.pythons[(crew.round + n) % 2].life for n in range(2))
    recovered = len(other.process.lines("pool:recovered"))
    late = len(stopped.process.lines("pool:takenForDead"))
    await stopped.stand_still_while_busy()
    stopped.fall()
    await other.process.seen("pool:recovered", 20, count=recovered + 1)
    stopped.signal(signal.SIGCONT)
    since = time.monotonic()
    await stopped.process.seen("pool:takenForDead", count=late + 1)
    return since


async def segfault(crew: Crew, _: object) -> float:
    """Let a job end its process with SIGSEGV, until it is given up."""
    ended = sum(len(worker.lives) - 1 for worker in crew.pythons)
    for worker in crew.pythons:
        worker.life.may_end = True
    job_id = await crew.add(segfaults=True)
    crew.given_up.add(min(crew.extra))

    def is_given_up() -> bool:
        for worker in crew.pythons:
            worker.life.may_end = True
        job = crew.jobs.one(job_id)
        return (job["last_error"] or "").startswith(DIED)

    await eventually(is_given_up, timeout=crew.scale.patience)
    lives = [life for worker in crew.pythons for life in worker.lives]
    dead = [life for life in lives if life.died_at is not None][ended:]
    job = crew.jobs.one(job_id)
    assert job["attempts"] == job["max_attempts"]
    assert [life.process.returncode for life in dead] == [-signal.SIGSEGV] * 3
    crew.jobs.query(COMPLETE, [job_id])
    for worker in crew.pythons:
        worker.life.may_end = False
    return max(life.died_at or 0 for life in dead)


async def block(crew: Crew, _: object) -> float:
    """Let a task block the event loop of its worker for longer than a heartbeat may be late."""
    await crew.add(blocks=BLOCKED)
    n = min(crew.extra)
    blocked = await crew.runner_of(n)
    (other,) = [worker for worker in crew.pythons if worker.life is not blocked]
    since = time.monotonic()
    await eventually(lambda: other.resumed_at(since), timeout=crew.scale.patience)

    def ended() -> float:
        (run,) = [run for run in blocked.runs() if run.n == n]
        return run.ended or 0

    since = await eventually(ended, timeout=10)
    assert blocked.process.lines("pool:takenForDead") == []
    return since


async def swallow(crew: Crew, _: object) -> float:
    """Force a worker to stop that has a task which swallows its cancellation."""
    job_id = await crew.add(swallows=True, lasts=3600)
    life = await crew.runner_of(min(crew.extra))
    # Elsewhere it ends.
    make_short(crew, [job_id])
    life.may_end = True
    life.process.terminate()
    await asyncio.sleep(AGAIN)
    life.process.terminate()
    await end_of([life])
    assert "did not end within" in life.process.stderr
    return time.monotonic()


async def storm(crew: Crew, _: object) -> float:
    """Send all Python workers signals without a pause until they have ended."""
    lives = await busy_for_long(crew)
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    sent = 0
    while any(life.process.returncode is None for life in lives):
        for life in lives:
            # The default action is back when all is done, and may end the process as well.
            life.signal(numbers[sent % len(numbers)])
        sent += 1
        await asyncio.sleep(0.002)
    assert sent > 1
    await end_of(lives)
    return time.monotonic()


async def force_twice(crew: Crew, _: object) -> float:
    """Force all Python workers to stop, and again while they do."""
    lives = await busy_for_long(crew)
    for life in lives:
        life.signal(signal.SIGUSR1)
    await end_of(lives)
    assert [life.process.returncode for life in lives] == [0, 0]
    return time.monotonic()


async def busy_for_long(crew: Crew) -> list[Life]:
    """Let each Python worker have a job that would take an hour, and may be cut off."""
    lives = [worker.life for worker in crew.pythons]
    added = []
    while not all(any(run.ended is None and run.n < 0 for run in life.runs()) for life in lives):
        before = {run.n for life in lives for run in life.runs()}
        added.append(await crew.add(lasts=3600))
        n = min(crew.extra)
        assert n not in before
        await crew.runner_of(n)
    make_short(crew, added)
    for life in lives:
        life.may_end = True
    return lives


def make_short(crew: Crew, job_ids: Sequence[int]) -> None:
    """Let jobs that run be nothing special when they run again."""
    for job_id in job_ids:
        crew.jobs.change(job_id, "payload = json_build_object('n', payload -> 'n')")


async def end_of(lives: Sequence[Life]) -> None:
    """Wait until processes have ended."""
    for life in lives:
        await asyncio.to_thread(life.process.wait)
        life.bury()


async def load_with_large_and_deep_ones(crew: Crew, _: object) -> float:
    """Add payloads of ten megabytes, and some that are nested too deeply for Python."""
    since = time.monotonic()
    for _ in range(3):
        await crew.add_to_its_queue(text="x" * MEGABYTES)
    nested = '{"a":' * DEEP + "1" + "}" * DEEP
    job_id = await asyncio.to_thread(
        crew.jobs.add, "python only", payload_json=nested, max_attempts=1
    )

    def is_refused() -> bool:
        (row,) = crew.jobs.query(
            "select last_error from graphile_worker.jobs where id = %s", job_id
        )
        return bool(row["last_error"] == TOO_DEEP)

    await eventually(is_refused, timeout=10)
    crew.jobs.query(COMPLETE, [job_id])
    return since


async def restart_the_pooler(crew: Crew, bouncer: PgBouncer) -> float:
    """Kill PgBouncer, and start it again."""
    bouncer.kill()
    await asyncio.sleep(crew.scale.outage)
    await asyncio.to_thread(bouncer.start)
    return time.monotonic()


async def kill_the_server(crew: Crew, server: OwnServer) -> float:
    """Kill the server, while a Node worker is busy if there is one, and start it again."""
    node = None if crew.node is None else crew.node.life
    if node is not None:
        await node.stand_still_while_busy()
    await asyncio.to_thread(server.kill)
    if node is not None:
        node.signal(signal.SIGCONT)
        # That the outcome of its job can't be recorded ends it.
        assert await asyncio.to_thread(node.process.wait) == 1
    await asyncio.sleep(crew.scale.outage)
    await asyncio.to_thread(server.start)
    return time.monotonic()


async def restart_the_server(crew: Crew, server: OwnServer) -> float:
    """Restart the server."""
    await asyncio.to_thread(server.restart_fast)
    return time.monotonic()


async def promote_the_standby(crew: Crew, pair: Pair) -> float:
    """Kill the server, and let its standby take over."""
    await asyncio.to_thread(pair.server.kill)
    await asyncio.sleep(crew.scale.outage)
    await asyncio.to_thread(pair.standby.promote)
    crew.node_at = crew.jobs.dsn
    if crew.node is not None:
        # It knows nothing of the other server, and tries the old one for ever.
        crew.node.life.kill()
    return time.monotonic()


async def take_all_slots(crew: Crew, proxy: Proxy) -> float:
    """Let workers lose their connections, and others take all there are."""
    slots = Slots(crew.jobs.dsn)
    proxy.refuse()
    await asyncio.to_thread(slots.take_all)
    asked = proxy.connections
    proxy.accept()
    await asyncio.sleep(crew.scale.outage)
    await eventually(lambda: proxy.connections > asked)
    slots.let_go()
    if crew.node is not None:
        # Where it was refused a connection it may fetch nothing for long; so it is started again.
        crew.node.life.kill()
    return time.monotonic()


async def cut(crew: Crew, proxy: Proxy) -> float:
    """Cut all connections of the Python workers, again and again."""
    until = time.monotonic() + crew.scale.outage
    while time.monotonic() < until:
        proxy.cut()
        await asyncio.sleep(BETWEEN_CUTS)
    return time.monotonic()


async def half_close(crew: Crew, proxy: Proxy) -> float:
    """Close them from one side, again and again."""
    until = time.monotonic() + crew.scale.outage
    while time.monotonic() < until:
        proxy.half_close()
        await asyncio.sleep(BETWEEN_CUTS)
    return time.monotonic()


async def delay(crew: Crew, proxy: Proxy) -> float:
    """Let all that they say and hear arrive late."""
    proxy.delay = DELAY
    await asyncio.sleep(crew.scale.outage)
    proxy.delay = 0
    return time.monotonic()


async def swallow_all(crew: Crew, proxy: Proxy) -> float:
    """Let nothing arrive, for longer than is waited for."""
    with proxy.black_hole():
        await asyncio.sleep(crew.scale.outage)
    return time.monotonic()


OF_WORKERS: Final[Sequence[Case[Any]]] = [
    Case(
        fault="a worker killed (`kill -9`)",
        bring=kill_one,
        stage=at_the_server,
        options=RECOVERS_FAST,
    ),
    Case(
        fault="all Python workers killed (`kill -9`)",
        bring=kill_all,
        stage=at_the_server,
        options=RECOVERS_FAST,
    ),
    Case(
        fault="a worker stopped (SIGSTOP) for too long, then SIGCONT",
        bring=stand_still,
        stage=at_the_server,
        options=NO_LONGER_SPARED,
    ),
    Case(
        fault="a job that ends its process with SIGSEGV, three times",
        bring=segfault,
        stage=at_the_server,
        options=RECOVERS_FAST,
    ),
    Case(
        fault="a task that blocks the event loop",
        bring=block,
        stage=at_the_server,
        options=RECOVERS_FAST,
    ),
    Case(
        fault="a task that swallows its cancellation, at a forced stop",
        bring=swallow,
        stage=at_the_server,
        options=RECOVERS_FAST,
        waits={"kill": 1},
    ),
    Case(
        fault="a storm of SIGTERM and other signals at all Python workers",
        bring=storm,
        stage=at_the_server,
        each=({}, {}),  # as below
    ),
    Case(
        fault="all Python workers forced to stop, twice at once",
        bring=force_twice,
        stage=at_the_server,
        # One that is busy for an hour is not to fetch ahead what the other one is to run.
        each=({}, {}),
    ),
    Case(
        fault="clocks an hour ahead and an hour behind, a worker killed",
        bring=kill_one,
        stage=at_the_server,
        options=RECOVERS_FAST,
        each=({"hours_ahead": 1, **FETCHING[0]}, {"hours_ahead": -1}),
    ),
    Case(
        fault="payloads of 10 MB, and some nested too deeply",
        bring=load_with_large_and_deep_ones,
        stage=at_the_server,
    ),
    Case(fault="PgBouncer killed, started again", bring=restart_the_pooler, stage=behind_a_pooler),
]
OF_THE_DATABASE: Final[Sequence[Case[Any]]] = [
    Case(
        fault="server killed (`kill -9`), started again",
        bring=kill_the_server,
        stage=at_the_server,
    ),
    Case(fault="server restarted", bring=restart_the_server, stage=at_the_server),
    Case(
        fault="server killed, its standby promoted",
        bring=promote_the_standby,
        stage=with_a_standby,
        once=True,
    ),
    Case(fault="no connection slot free", bring=take_all_slots, stage=behind_a_proxy),
    Case(fault="connections cut, ten times a second", bring=cut, stage=behind_a_proxy),
    Case(fault="connections half closed", bring=half_close, stage=behind_a_proxy),
    Case(fault="answers late", bring=delay, stage=behind_a_proxy),
    Case(
        fault="nothing arrives, for longer than a statement may take",
        bring=swallow_all,
        stage=behind_a_proxy,
        options={"listen_echo_interval": 0.2},
        constants=IMPATIENT,
        waits={"begin_listening": 0.4, "echo": 0.3, "late_echo": 0.1},
    ),
]


async def go_through(
    case: Case[Any], place: Place, *, scale: Scale, folder: Path, node: Node | None = None
) -> Figures:
    """Let a crew get over a fault, as often as the scale says; check all that must hold."""
    async with case.stage(place) as stage:
        options = {**case.options, **stage.options}
        crew = Crew(
            stage.dsn,
            fault=case.fault,
            scale=scale,
            folder=folder,
            processes=place.processes,
            at=stage.at,
            load_at=stage.load_at,
            node_at=stage.node_at,
            settings={"options": options, "constants": case.constants, "waits": case.waits},
            each=case.each,
            node=node,
        )
        async with crew.under_load():
            for crew.round in range(1 if case.once else scale.rounds):
                since = await case.bring(crew, stage.tool)
                await crew.resumed(since=since)
        crew.check()
        return crew.figures()
