"""Whatever sequence of calls the SQL functions see, ours and Node's end in the same state."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from compat_tests.twins import Step, Twins, add_jobs, age, call, on_jobs, twins_at_20
from compat_tests.twins import given as prepared
from tests.support.server import Server

# Few names, so that calls meet each other's jobs.
KEYS = ["k", "k", "l"]
POOLS = ["pool-1", "pool-2"]
PAYLOADS = ["null", '{"a":  1}', "[]", "[1, 2]", "[3]", '[ {"b": 1, "a": 2, "b": 3} ]', '"text"']

keys = st.sampled_from([*KEYS, None])
small = st.integers(-2, 3)
intervals = st.sampled_from(["-5 hours", "-1 minute", "0", "90 seconds", "2 days"])


def request(*, keyed: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    """What may be said about a job to add, some or all of it."""
    return st.fixed_dictionaries(
        {"identifier": st.sampled_from(["a", "b", ""]), "job_key": keyed},
        optional={
            "payload": st.none() | st.sampled_from(PAYLOADS),
            "queue_name": st.none() | st.sampled_from(["q", "r", ""]),
            "run_at": st.none() | intervals,
            "max_attempts": st.none() | st.integers(0, 3),
            "priority": st.none() | small,
            "flags": st.none() | st.lists(st.sampled_from(["f", "g"]), max_size=3),
        },
    )


# Jobs are chosen by what they are: their numbers may differ after a batch.
conditions = st.sampled_from(
    ["true", "key = 'k'", "key is null", "priority <= 0", "attempts > 0", "locked_at is not null"]
)

LOCK_JOBS = """
    update graphile_worker._private_jobs
    set locked_at = now(), locked_by = '{pool}', attempts = attempts + 1
    where is_available and run_at <= now() and {condition}
"""
LOCK_QUEUES = """
    update graphile_worker._private_job_queues as job_queues
    set locked_at = now(), locked_by = jobs.locked_by
    from graphile_worker._private_jobs as jobs
    where jobs.job_queue_id = job_queues.id and jobs.locked_at is not null
"""
FAIL_JOBS = """
    update graphile_worker._private_jobs
    set locked_at = null, locked_by = null, last_error = 'oops', run_at = now() + interval '3 s'
    where locked_by = '{pool}'
"""


def fetched(pool: str, condition: str) -> list[Step]:
    """A pool takes the jobs."""
    return [prepared(LOCK_JOBS.format(pool=pool, condition=condition)), prepared(LOCK_QUEUES)]


def failed(pool: str) -> list[Step]:
    """What a pool is running fails."""
    return [prepared(FAIL_JOBS.format(pool=pool))]


def unlocked(pools: list[str]) -> list[Step]:
    """An operator frees what pools hold."""
    text = "select graphile_worker.force_unlock_workers(%s::text[])"
    return [Step(text=text, parameters=(pools,))]


def one(step: Step) -> list[Step]:
    return [step]


modes = st.sampled_from(["unsafe_dedupe", "preserve_run_at", "replace", None, "unknown"])
adding: SearchStrategy[list[Step]] = st.builds(
    lambda mode, arguments: [call("add_job", **arguments, job_key_mode=mode)],
    modes,
    request(keyed=keys),
)
ageing = st.builds(age, st.sampled_from(["1 second", "3 hours", "4 hours"])).map(one)
others: SearchStrategy[list[Step]] = st.one_of(
    st.builds(
        lambda specs, preserve: [add_jobs(specs, job_key_preserve_run_at=preserve)],
        st.lists(request(keyed=st.sampled_from(["k", None, None, "l"])), max_size=4),
        st.booleans() | st.none(),
    ),
    st.builds(fetched, st.sampled_from(POOLS), conditions),
    st.builds(failed, st.sampled_from(POOLS)),
    st.builds(lambda key: [call("remove_job", job_key=key)], keys),
    st.builds(lambda condition: [on_jobs("complete_jobs", condition)], conditions),
    st.builds(
        lambda condition, message: [
            on_jobs("permanently_fail_jobs", condition, error_message=message)
        ],
        conditions,
        st.sampled_from([None, "", "no good"]),
    ),
    st.builds(
        lambda condition, changes: [on_jobs("reschedule_jobs", condition, **changes)],
        conditions,
        st.fixed_dictionaries(
            {},
            optional={
                "run_at": st.none() | intervals,
                "priority": st.none() | small,
                "attempts": st.none() | small,
                "max_attempts": st.none() | st.integers(0, 3),
            },
        ),
    ),
    st.builds(unlocked, st.lists(st.sampled_from([*POOLS, "unknown"]), max_size=2)),
)
# Without jobs and without time nothing else has an effect, so each round has all three.
rounds = st.tuples(adding, ageing, others).map(lambda moves: [*moves[0], *moves[1], *moves[2]])


@pytest.fixture(scope="module")
def twins(server: Server, template: Callable[[str], str]) -> Iterator[Twins]:
    with twins_at_20(server, template) as twins:
        yield twins


ADD = [call("add_job", identifier="a", job_key="k", payload="[1]")]
APPEND = [call("add_job", identifier="a", job_key="k", payload="[2]")]
ADD_ONCE = [call("add_job", identifier="b", job_key="k", job_key_mode="unsafe_dedupe")]
ADD_WRONGLY = [call("add_job", identifier="b", job_key="k", job_key_mode="unknown")]
ADD_MORE = [add_jobs([{"identifier": "a", "job_key": "k"}], job_key_preserve_run_at=True)]
ADD_IN_QUEUE = [call("add_job", identifier="a", job_key="k", queue_name="q", flags=["f"])]
COMPLETE = [on_jobs("complete_jobs", "true")]
RESCHEDULE = [on_jobs("reschedule_jobs", "true", run_at="-1 minute", attempts=0)]
REMOVE = [call("remove_job", job_key="k")]
LATER = [age("1 second")]


# The same examples in every run; the database is emptied before each.
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(rounds, min_size=2, max_size=7))
@example([ADD, fetched("pool-1", "true"), LATER, ADD, failed("pool-1"), ADD])
@example([ADD, APPEND, ADD_MORE, APPEND, LATER, ADD_ONCE, ADD_WRONGLY])
@example([ADD, LATER, ADD_MORE, fetched("pool-1", "true"), failed("pool-1"), LATER, ADD_MORE])
@example([ADD, fetched("pool-1", "true"), LATER, REMOVE, ADD, REMOVE])
@example([ADD, fetched("pool-1", "true"), [age("4 hours")], REMOVE, LATER, REMOVE, ADD])
@example([ADD, ADD_IN_QUEUE, fetched("pool-1", "true"), LATER, unlocked(["pool-1"])])
@example([ADD_IN_QUEUE, RESCHEDULE, fetched("pool-1", "true"), [age("5 hours")], COMPLETE])
@example([ADD, [on_jobs("permanently_fail_jobs", "true")], LATER, ADD, REMOVE])
def test_any_sequence_of_calls_leads_to_the_same_state(
    twins: Twins, sequence: list[list[Step]]
) -> None:
    twins.assert_same(*[step for steps in sequence for step in steps])
