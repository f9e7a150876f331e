"""Our SQL functions do what Node's do, argument by argument, down to notifications and ids."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from compat_tests.twins import (
    JOB_COLUMNS,
    Side,
    Step,
    Twins,
    add_jobs,
    age,
    ask,
    call,
    given,
    on_jobs,
    twins_at_18,
    twins_at_20,
)
from tests.support.node import Node
from tests.support.server import Server

POOL = "pool-0123456789abcdef01"

# A job with the key "k", in every state the functions tell apart.
INSERT_TASK = "insert into graphile_worker._private_tasks (identifier) values ('old')"
INSERT_QUEUE = """
    insert into graphile_worker._private_job_queues (queue_name, locked_at, locked_by)
    values ('lane', now() - %s::interval, %s)
"""
INSERT_JOB = """
    insert into graphile_worker._private_jobs (
      job_queue_id, task_id, payload, priority, run_at, attempts, max_attempts, last_error,
      created_at, updated_at, key, locked_at, locked_by, revision, flags
    )
    select
      job_queues.id, tasks.id, %s::json, 5, now() + interval '1 hour', %s, 10, %s,
      now() - interval '1 day', now() - interval '1 day', %s, now() - %s::interval, %s, 3,
      '{"old": true}'
    from graphile_worker._private_tasks as tasks, graphile_worker._private_job_queues as job_queues
    where tasks.identifier = 'old' and job_queues.queue_name = 'lane'
"""


def existing(
    *,
    payload: str = '{"old":  1}',
    attempts: int = 0,
    last_error: str | None = None,
    locked: str | None = None,
    key: str | None = "k",
) -> list[Step]:
    """Steps that leave one job, locked that long ago if at all."""
    pool = None if locked is None else POOL
    return [
        given(INSERT_TASK),
        given(INSERT_QUEUE, locked, pool),
        given(INSERT_JOB, payload, attempts, last_error, key, locked, pool),
    ]


STATES: dict[str, list[Step]] = {
    "absent": [],
    "pending": existing(),
    "pending array": existing(payload='[1,  {"a": 1, "a": 2}, 1.0, 1e2]'),
    "pending json null": existing(payload="null"),
    "failed, to be tried again": existing(attempts=2, last_error="oops"),
    "running": existing(attempts=1, locked="1 minute"),
    "running for just under four hours": existing(attempts=1, locked="3:59:59.999999"),
    "running for exactly four hours": existing(attempts=1, locked="4:00"),
    "running for just over four hours": existing(attempts=1, locked="4:00:00.000001"),
    "running with an array": existing(attempts=1, locked="1 minute", payload="[1]"),
    "running for the last time": existing(attempts=10, locked="1 minute"),
    "exhausted": existing(attempts=10, last_error="gave up"),
    "exhausted with an array": existing(attempts=10, last_error="gave up", payload="[1]"),
    "beyond exhausted": existing(attempts=12, last_error="gave up"),
    "without the key": existing(key=None),
    "with another key": existing(key="K"),
}
MODES = [None, "replace", "preserve_run_at", "unsafe_dedupe", "REPLACE", ""]

FULL: dict[str, Any] = {
    "identifier": "new",
    "payload": '{"new":  2}',
    "queue_name": "other",
    "run_at": "-90 minutes",
    "max_attempts": 7,
    "job_key": "k",
    "priority": -3,
    "flags": ["b", "a"],
}
REQUESTS: dict[str, dict[str, Any]] = {
    "little": {"identifier": "old", "job_key": "k"},
    "everything": FULL,
    "an array": {"identifier": "new", "job_key": "k", "payload": '[ 3,{"b":1, "aa":1.50} ]'},
}

# Arguments at the edges, each with a key, without, and deduplicated.
EDGES: dict[str, dict[str, Any]] = {
    "null identifier": {"identifier": None},
    "empty identifier": {"identifier": ""},
    "identifier of 128": {"identifier": "é" * 128},
    "identifier of 129": {"identifier": "é" * 129},
    "empty queue name": {"queue_name": ""},
    "queue name of 128": {"queue_name": "é" * 128},
    "queue name of 129": {"queue_name": "é" * 129},
    "empty key": {"job_key": ""},
    "key of 512": {"job_key": "é" * 512},
    "key of 513": {"job_key": "é" * 513},
    "null payload": {"payload": None},
    "json null": {"payload": "null"},
    "json string": {"payload": '"text"'},
    "json number": {"payload": "123456789012345678901234567890.10"},
    "payload with spaces": {"payload": ' { "b" : 1 ,"a":2,\n"b":3 } '},
    "payload with U+0000": {"payload": r'["\u0000"]'},
    "payload beyond ASCII": {"payload": '{"k": "\U0001f600 é \\u00e9"}'},
    "no attempts": {"max_attempts": 0},
    "negative attempts": {"max_attempts": -1},
    "one attempt": {"max_attempts": 1},
    "most attempts": {"max_attempts": 32767},
    "too many attempts": {"max_attempts": 32768},
    "lowest priority": {"priority": -32768},
    "highest priority": {"priority": 32767},
    "priority too low": {"priority": -32769},
    "priority too high": {"priority": 32768},
    "no flags": {"flags": []},
    "a null flag": {"flags": ["a", None]},
    "an empty flag": {"flags": [""]},
    "flags twice": {"flags": ["b", "a", "b"]},
    "nested flags": {"flags": [["a", "b"], ["c", "d"]]},
    "due long ago": {"run_at": "-100 years"},
    "due in a microsecond": {"run_at": "0.000001 seconds"},
}
EDGE_BASES: dict[str, dict[str, Any]] = {
    "without a key": {"identifier": "t"},
    "with a key": {"identifier": "t", "job_key": "k", "job_key_mode": "replace"},
    "deduplicated": {"identifier": "t", "job_key": "k", "job_key_mode": "unsafe_dedupe"},
}
EDGE_STATES = ["absent", "pending", "pending array", "running"]


@pytest.fixture(scope="module")
def twins(server: Server, template: Callable[[str], str]) -> Iterator[Twins]:
    with twins_at_20(server, template) as twins:
        yield twins


@pytest.fixture(scope="module")
def old_twins(server: Server, node: Node) -> Iterator[Twins]:
    with twins_at_18(server, node) as twins:
        yield twins


@pytest.fixture(params=["revision 18", "revision 20"])
def each_twins(request: pytest.FixtureRequest) -> Twins:
    """Both revisions: some databases stay at 18 for a while."""
    name = "old_twins" if request.param == "revision 18" else "twins"
    twins: Twins = request.getfixturevalue(name)
    return twins


def outcomes(history: list[Any]) -> list[Any]:
    """What each step of a history returned."""
    return [step[2] for step in history[:-1]]


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("state", STATES)
def test_add_job_does_the_same_with_every_mode_and_state(
    twins: Twins, state: str, request_: str, mode: str | None
) -> None:
    twins.assert_same(*STATES[state], call("add_job", **REQUESTS[request_], job_key_mode=mode))


@pytest.mark.parametrize("mode", MODES, ids=repr)
@pytest.mark.parametrize("state", STATES)
def test_add_job_of_revision_18_does_the_same(
    old_twins: Twins, state: str, mode: str | None
) -> None:
    step = call("add_job", **REQUESTS["an array"], job_key_mode=mode)
    # Twice, for the numbers that known names use up.
    old_twins.assert_same(*STATES[state], step, step)


def edge_cases() -> Iterator[tuple[str, str, str]]:
    """Each two of an edge, a base and a state together."""
    for number, edge in enumerate(EDGES):
        bases = itertools.islice(itertools.cycle(EDGE_BASES), number, None)
        for state, base in zip(EDGE_STATES, bases, strict=False):
            yield edge, base, state


@pytest.mark.parametrize(("edge", "base", "state"), [*edge_cases()])
def test_add_job_does_the_same_at_the_edges(twins: Twins, edge: str, base: str, state: str) -> None:
    twins.assert_same(*STATES[state], call("add_job", **{**EDGE_BASES[base], **EDGES[edge]}))


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_add_job_without_a_key_takes_any_mode(twins: Twins, mode: str | None) -> None:
    history = twins.assert_same(call("add_job", identifier="t", job_key_mode=mode))
    assert outcomes(history)[0][0]["task_id"] == "t"


def test_add_job_takes_its_arguments_by_position(twins: Twins) -> None:
    # As the scheduler of cron items in Node calls it.
    step = Step(
        text=f"select {JOB_COLUMNS} from graphile_worker.add_job("
        "'t', '{\"a\":1}', 'q', now(), 4, 'k', 2, '{f}', 'preserve_run_at') as job",
        returns_jobs=True,
    )
    history = twins.assert_same(step)
    assert outcomes(history)[0][0]["max_attempts"] == 4


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_add_job_accepts_infinite_times(twins: Twins, moment: str) -> None:
    step = Step(
        text=f"select {JOB_COLUMNS} "
        "from graphile_worker.add_job('t', run_at => %s::timestamptz) as job",
        parameters=(moment,),
        returns_jobs=True,
    )
    assert outcomes(twins.assert_same(step))[0][0]["run_at"] == moment


@pytest.mark.parametrize(
    "expression",
    [
        "graphile_worker.add_job('t') is null",
        "graphile_worker.add_job('t') is not null",
        "(graphile_worker.add_job('t', job_key => 'k')).key",
        "(graphile_worker.add_job('t', job_key => 'k', job_key_mode => 'unsafe_dedupe')).revision",
        "graphile_worker.remove_job('k') is null",
        "graphile_worker.remove_job('unknown')::text",
        "graphile_worker.remove_job('unknown') is not distinct from null",
        "graphile_worker.remove_job(null)::text",
        "(graphile_worker.remove_job('k')).id",
        "graphile_worker.force_unlock_workers('{}')::text",
        "graphile_worker.force_unlock_workers(null)::text",
        "(graphile_worker.complete_jobs(array[1, 1, null])).id",
        "(graphile_worker.add_jobs('{}')).id",
    ],
)
def test_a_function_in_the_select_list_yields_the_same(twins: Twins, expression: str) -> None:
    twins.assert_same(*STATES["pending"], ask(f"select {expression} as value"))


BATCHES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one": [{"identifier": "t"}],
    "one of everything": [FULL],
    "several": [
        {"identifier": "t", "payload": '{"n": 1}'},
        {"identifier": "t", "payload": '{"n": 2}', "queue_name": "q"},
        {"identifier": "u", "payload": '{"n": 3}', "queue_name": "q", "priority": 1},
        {"identifier": "old", "payload": '{"n": 4}', "queue_name": "lane", "flags": ["x"]},
    ],
    "several equal": [{"identifier": "t"}] * 5,
    "new keys": [{"identifier": "t", "job_key": f"new {n}"} for n in range(3)],
    "an existing key among others": [
        {"identifier": "t", "payload": '{"n": 1}'},
        {"identifier": "t", "payload": "[7]", "job_key": "k", "run_at": "1 minute"},
        {"identifier": "t", "payload": '{"n": 3}', "job_key": "l"},
    ],
    "a new key twice": [{"identifier": "t", "job_key": "l"}] * 2,
    "an existing key twice": [{"identifier": "t", "job_key": "k"}] * 2,
    "an empty key": [{"identifier": "t", "job_key": ""}],
    "a null identifier among others": [{"identifier": "t"}, {"identifier": None}],
    "nulls only": [{}],
    "a long identifier": [{"identifier": "t"}, {"identifier": "x" * 129}],
    "a long queue name": [{"identifier": "t", "queue_name": "x" * 129}],
    "a null flag": [{"identifier": "t", "flags": [None]}],
    "too many attempts": [{"identifier": "t", "max_attempts": 32768}],
    "no attempts": [{"identifier": "t", "max_attempts": 0}],
    "an empty queue name": [{"identifier": "t", "queue_name": ""}],
    "many": [
        {
            "identifier": f"task {n % 7}",
            "queue_name": None if n % 3 else f"queue {n % 5}",
            "payload": f'{{"n": {n}}}',
            "job_key": None if n % 2 else f"key {n}",
        }
        for n in range(200)
    ],
}


# These batches meet the job that is there.
KEYED = ["one of everything", "an existing key among others", "an existing key twice"]


@pytest.mark.parametrize("preserve", [True, False, None])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("batch", KEYED)
def test_add_jobs_does_the_same_with_jobs_in_every_state(
    twins: Twins, batch: str, state: str, preserve: bool | None
) -> None:
    twins.assert_same(*STATES[state], add_jobs(BATCHES[batch], job_key_preserve_run_at=preserve))


@pytest.mark.parametrize("state", ["absent", "pending"])
@pytest.mark.parametrize("batch", BATCHES)
def test_add_jobs_does_the_same_with_every_batch(twins: Twins, batch: str, state: str) -> None:
    twins.assert_same(*STATES[state], add_jobs(BATCHES[batch]))


@pytest.mark.parametrize("batch", BATCHES)
def test_add_jobs_of_revision_18_does_the_same(old_twins: Twins, batch: str) -> None:
    step = add_jobs(BATCHES[batch], job_key_preserve_run_at=True)
    # Twice, for the numbers that known names use up.
    old_twins.assert_same(*STATES["failed, to be tried again"], step, step)


NULLS = ", null" * 7


@pytest.mark.parametrize(
    "specs",
    [
        "null",
        "'{}'",
        "array[null]::graphile_worker.job_spec[]",
        f"array[null, row('t'{NULLS})]::graphile_worker.job_spec[]",
        f"array[[row('t'{NULLS})], [row('u'{NULLS})]]::graphile_worker.job_spec[]",
    ],
)
def test_add_jobs_takes_odd_arrays_alike(twins: Twins, specs: str) -> None:
    step = Step(
        text=f"select {JOB_COLUMNS} from graphile_worker.add_jobs({specs}) as job",
        returns_jobs=True,
        shuffles=True,
    )
    twins.assert_same(step)


@pytest.mark.parametrize(
    ("batch", "state", "notified"),
    [
        ("nothing", "absent", ""),
        ("several", "absent", '{"r":RANDOM,"count":4}'),
        ("an existing key among others", "pending", '{"r":RANDOM,"count":3}'),
    ],
)
def test_add_jobs_notifies_how_many_were_asked_for(
    each_twins: Twins, batch: str, state: str, notified: str
) -> None:
    history = each_twins.assert_same(*STATES[state], add_jobs(BATCHES[batch]))
    assert history[-1] == [("jobs:insert", notified)]


def test_equal_notifications_of_one_transaction_are_all_sent(twins: Twins) -> None:
    history = twins.assert_same(*[call("add_job", identifier="t") for _ in range(3)])
    assert history[-1] == [("jobs:insert", '{"r":RANDOM,"count":1}')] * 3


@pytest.mark.parametrize("key", ["k", "unknown", "", None])
@pytest.mark.parametrize("state", STATES)
def test_remove_job_does_the_same_in_every_state(twins: Twins, state: str, key: str | None) -> None:
    twins.assert_same(*STATES[state], call("remove_job", job_key=key))


# Jobs for the administrative functions: one in each state, told apart by their priority.
CROWD = [
    given(INSERT_TASK),
    given(INSERT_QUEUE, "1 minute", POOL),
    given(
        """
        with states as (
          select
            row_number() over (order by attempt, lock, error) - 1 as number,
            attempts, locked, last_error
          from unnest(array[0, 3, 10, 11]) with ordinality as a (attempts, attempt),
            unnest(
              array[null, '1 minute', '3:59:59.999999', '4:00', '4:00:00.000001', '2 days']
              ::interval[]
            ) with ordinality as l (locked, lock),
            unnest(array[null, 'oops']) with ordinality as e (last_error, error)
        )
        insert into graphile_worker._private_jobs (
          task_id, job_queue_id, priority, attempts, max_attempts, locked_at, locked_by,
          last_error, key, created_at, updated_at, run_at
        )
        select
          tasks.id, job_queues.id, number, states.attempts, 10, now() - locked,
          case when locked is not null then 'pool-' || number end, states.last_error,
          case when number %% 2 = 1 then 'key ' || number end,
          now() - interval '1 day', now() - interval '1 day', now() - interval '1 day'
        from states, graphile_worker._private_tasks as tasks,
          graphile_worker._private_job_queues as job_queues
        order by number
        """
    ),
]
CONDITIONS = {"every job": "true", "no job": "false", "some jobs": "priority % 3 = 0"}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_complete_jobs_deletes_the_same(twins: Twins, condition: str) -> None:
    twins.assert_same(*CROWD, on_jobs("complete_jobs", condition))


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize(
    "arguments",
    [{}, *({"error_message": message} for message in (None, "", "no good", "é\n" * 1000))],
    ids=repr,
)
def test_permanently_fail_jobs_fails_the_same(
    twins: Twins, arguments: dict[str, Any], condition: str
) -> None:
    twins.assert_same(*CROWD, on_jobs("permanently_fail_jobs", condition, **arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"run_at": None},
        {"run_at": "1 hour"},
        {"run_at": "-1 hour"},
        *({"priority": value} for value in (None, 0, 9, -32768, 32768)),
        *({"attempts": value} for value in (None, 0, 1, 10, 25, -1, 32767, 32768, -32769)),
        *({"max_attempts": value} for value in (None, 1, 3, 0, -1, 32767, 32768)),
        {"run_at": "5 minutes", "priority": 1, "attempts": 2, "max_attempts": 3},
        {"run_at": None, "priority": None, "attempts": None, "max_attempts": None},
        {"attempts": 0, "max_attempts": 1},
    ],
    ids=repr,
)
@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_reschedule_jobs_changes_the_same(
    twins: Twins, condition: str, arguments: dict[str, Any]
) -> None:
    twins.assert_same(*CROWD, on_jobs("reschedule_jobs", condition, **arguments))


@pytest.mark.parametrize("function", ["complete_jobs", "permanently_fail_jobs", "reschedule_jobs"])
@pytest.mark.parametrize("ids", [None, [], [1, 1, 2], [None, 1], [-1, 0, 2**62]], ids=repr)
def test_odd_lists_of_ids_match_the_same_jobs(
    twins: Twins, function: str, ids: list[int | None] | None
) -> None:
    twins.assert_same(*CROWD, call(function, job_ids=ids))


@pytest.mark.parametrize(
    "pools",
    [None, [], ["pool-2"], ["pool-2", "pool-2", POOL], [None, "pool-4"], ["unknown", ""]],
    ids=repr,
)
def test_force_unlock_workers_unlocks_the_same(
    twins: Twins, pools: list[str | None] | None
) -> None:
    unlock = Step(
        text="select graphile_worker.force_unlock_workers(%s::text[])", parameters=(pools,)
    )
    twins.assert_same(*CROWD, unlock)


@pytest.mark.parametrize("job_key_mode", ["replace", "unsafe_dedupe"])
@pytest.mark.parametrize("revision", [18, 20])
def test_known_names_use_up_numbers_only_until_revision_20(
    twins: Twins, old_twins: Twins, revision: int, job_key_mode: str
) -> None:
    chosen = twins if revision == 20 else old_twins
    add = call("add_job", identifier="t", queue_name="q", job_key="k", job_key_mode=job_key_mode)
    history = chosen.assert_same(add, add, add)
    sequences = history[-2][3]["sequences"]
    used = 3 if revision == 18 else 1
    assert sequences == {"jobs": [3, 1], "queues": [used, 1], "tasks": [used, 1]}


def test_known_names_in_a_batch_use_up_no_numbers(twins: Twins) -> None:
    batch = add_jobs(BATCHES["many"])
    history = twins.assert_same(batch, batch)
    sequences = history[-2][3]["sequences"]
    assert sequences == {"jobs": [400, 1], "queues": [5, 1], "tasks": [7, 1]}


def test_an_evicted_job_that_fails_later_stays_failed(twins: Twins) -> None:
    history = twins.assert_same(
        *STATES["running"],
        call("add_job", identifier="new", job_key="k"),
        age("1 hour"),
        # What a worker does with a job that failed.
        given(
            """
            update graphile_worker._private_jobs
            set locked_at = null, locked_by = null, last_error = 'late'
            where locked_by = %s
            """,
            POOL,
        ),
        call("add_job", identifier="new", job_key="k", payload='{"again": true}'),
    )
    jobs = {job["key"]: job for job in history[-2][3]["jobs"]}
    assert jobs.keys() == {None, "k"}
    assert (jobs[None]["last_error"], jobs[None]["is_available"]) == ("late", False)
    assert (jobs["k"]["revision"], jobs["k"]["is_available"]) == (1, True)


@pytest.mark.parametrize(
    "text",
    [
        "select * from graphile_worker.add_job('t')",
        "select * from graphile_worker.remove_job('k')",
        "select * from graphile_worker.complete_jobs(array[1])",
        "select * from graphile_worker.permanently_fail_jobs(array[1])",
        "select * from graphile_worker.reschedule_jobs(array[1], priority => 3)",
        f"select graphile_worker.force_unlock_workers(array['{POOL}'])",
        "select key from graphile_worker.jobs",
        "select key from graphile_worker._private_jobs",
        "select count(*) from graphile_worker.migrations",
    ],
)
@pytest.mark.parametrize("granted", [True, False])
def test_a_lesser_role_meets_the_same_limits(twins: Twins, text: str, granted: bool) -> None:
    # Rights on the tables do not help where row level security is enabled without policies.
    grants = [
        given("grant usage on schema graphile_worker to lesser"),
        given("grant all on all tables in schema graphile_worker to lesser"),
    ]
    twins.assert_same(
        given("create role lesser"),
        *STATES["running"],
        *(grants if granted else []),
        Step(text=text, role="lesser"),
        given("drop owned by lesser"),
        given("drop role lesser"),
    )


# Two connections at once. Each test forces the order: the second statement is known to wait for the
# first transaction before that one ends.


class Later:
    """A call in another connection, which has to wait for a transaction of the first."""

    def __init__(self, connection: Connection[DictRow], text: str) -> None:
        self._connection = connection
        self._text = text
        self.rows: list[DictRow] = []
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.rows = self._connection.execute(self._text.encode()).fetchall()
        except psycopg.Error as error:
            self.error = error.sqlstate

    def start_and_wait_until_blocked(self, observer: Connection[DictRow]) -> None:
        self._thread.start()
        pid = self._connection.info.backend_pid
        pause = threading.Event()
        for _ in range(1000):
            row = observer.execute("select pg_blocking_pids(%s) as pids", (pid,)).fetchone()
            if row is not None and row["pids"]:
                return
            assert self._thread.is_alive(), "the second call did not wait"
            pause.wait(0.01)
        raise AssertionError("the second call neither ended nor waited")

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def two_at_once(side: Side, first: str, second: str, isolation: str) -> Iterator[Later]:
    """Run `first` in a transaction that commits when `second` waits for it."""
    with side.connect() as one, side.connect() as other:
        if isolation:
            other.execute(f"set default_transaction_isolation to '{isolation}'".encode())
        later = Later(other, second)
        with one.transaction():
            one.execute(first.encode())
            later.start_and_wait_until_blocked(side.connection)
        later.join()
        yield later


LOCK = """
    update graphile_worker._private_jobs
    set locked_at = now(), locked_by = 'pool-1', attempts = attempts + 1
    where key = 'k'
"""
SHOWN = ("id", "payload", "key", "attempts", "revision", "locked_by")


def both(
    twins: Twins, first: str, second: str, *, before: str = "select", isolation: str = ""
) -> dict[str, Any]:
    """What two calls at once lead to, which must be the same on both sides."""
    twins.clear()
    seen = []
    for side in (twins.python, twins.node):
        side.connection.execute(before.encode())
        side.notifications()
        with two_at_once(side, first, second, isolation) as later:
            jobs = side.connection.execute(
                "select * from graphile_worker._private_jobs order by id"
            ).fetchall()
        seen.append(
            {
                "error": later.error,
                "returned": [{name: row.get(name) for name in SHOWN} for row in later.rows],
                "jobs": [{name: job[name] for name in SHOWN} for job in jobs],
                "notified": side.notifications(),
            }
        )
    assert seen[0] == seen[1]
    return seen[0]


def add_text(payload: str, mode: str = "replace") -> str:
    return (
        f"select * from graphile_worker.add_job('t', '{payload}', "
        f"job_key => 'k', job_key_mode => '{mode}')"
    )


def notified(*counts: int) -> list[tuple[str, str]]:
    return [("jobs:insert", f'{{"r":RANDOM,"count":{count}}}') for count in counts]


def test_of_two_adders_of_one_key_the_second_waits_and_merges(each_twins: Twins) -> None:
    seen = both(each_twins, add_text("[1]"), add_text("[2]"))
    job = {"id": 1, "payload": [1, 2], "key": "k", "attempts": 0, "revision": 1, "locked_by": None}
    assert seen == {
        "error": None,
        "returned": [job],
        "jobs": [job],
        "notified": notified(1, 1),
    }


def test_a_job_locked_at_the_same_moment_is_neither_replaced_nor_added(each_twins: Twins) -> None:
    seen = both(each_twins, LOCK, add_text("[2]"), before=add_text("[1]"))
    assert seen["returned"] == [dict.fromkeys(SHOWN)]
    assert [job["payload"] for job in seen["jobs"]] == [[1]]
    assert [job["locked_by"] for job in seen["jobs"]] == ["pool-1"]


def test_adding_again_after_that_moment_evicts_the_running_job(twins: Twins) -> None:
    both(twins, LOCK, add_text("[2]"), before=add_text("[1]"))
    for side in (twins.python, twins.node):
        side.connection.execute(add_text("[2]").encode())
        jobs = {job["key"]: job["payload"] for job in side.state()["jobs"]}
        assert jobs == {"k": "[2]", None: "[1]"}


def test_of_two_deduplicated_adders_only_the_first_notifies(each_twins: Twins) -> None:
    seen = both(each_twins, add_text("1", "unsafe_dedupe"), add_text("2", "unsafe_dedupe"))
    assert [(job["payload"], job["revision"]) for job in seen["returned"]] == [(1, 1)]
    assert seen["notified"] == notified(1)


def test_a_task_named_by_two_adders_at_once_is_added_once(each_twins: Twins) -> None:
    add = "select * from graphile_worker.add_job('t', '{}', 'q')"
    seen = both(each_twins, add, add)
    assert seen["error"] is None
    assert len(seen["jobs"]) == 2
    for side in (each_twins.python, each_twins.node):
        state = side.state()
        assert (state["tasks"], [queue["queue_name"] for queue in state["queues"]]) == (
            ["t"],
            ["q"],
        )


def test_removing_waits_for_a_worker_that_takes_the_job_and_then_takes_its_key(
    twins: Twins,
) -> None:
    remove = "select * from graphile_worker.remove_job('k')"
    seen = both(twins, LOCK, remove, before=add_text("[1]"))
    assert [(job["key"], job["attempts"], job["locked_by"]) for job in seen["jobs"]] == [
        (None, 25, "pool-1")
    ]
    assert seen["returned"] == seen["jobs"]
    assert seen["notified"] == []


def test_removing_waits_for_an_adder_that_replaces_the_job(twins: Twins) -> None:
    remove = "select * from graphile_worker.remove_job('k')"
    seen = both(twins, add_text("[2]"), remove, before=add_text("[1]"))
    assert seen["jobs"] == []
    assert seen["notified"] == notified(1, -1)


@pytest.mark.parametrize("function", ["complete_jobs", "permanently_fail_jobs", "reschedule_jobs"])
def test_a_job_taken_by_a_worker_meanwhile_is_left_alone(twins: Twins, function: str) -> None:
    call_it = f"select * from graphile_worker.{function}(array[1])"
    seen = both(twins, LOCK, call_it, before=add_text("[1]"))
    assert seen["returned"] == []
    assert [(job["attempts"], job["locked_by"]) for job in seen["jobs"]] == [(1, "pool-1")]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("mode", ["replace", "unsafe_dedupe"])
def test_stricter_isolation_fails_alike(twins: Twins, isolation: str, mode: str) -> None:
    seen = both(twins, add_text("1", mode), add_text("2", mode), isolation=isolation)
    assert seen["error"] == "40001"
