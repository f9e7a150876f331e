"""Faults of the Node package that Python workers do not have, each shown on both sides.

More of them are shown where they belong: `test_shared_queue.py`, `test_shared_job_keys.py`,
`test_handover.py`, `test_schema_changes.py`, `test_installers.py`.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from compat_tests.fleet import SIDES, Fleet, Side
from graphile_worker_py import (
    ConfigurationError,
    JobSpec,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
)
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.processes import Processes, is_alive

JOBS = "select attempts, locked_by is not null, last_error from graphile_worker._private_jobs"


@pytest.mark.parametrize("side", SIDES)
async def test_an_error_text_with_a_nul_ends_the_node_worker_and_is_stored_by_python(
    fleet: Fleet, side: Side
) -> None:
    await fleet.add(side, payload={"name": "x", "fail": "before\0after"})
    process = fleet.start(side)
    if side == "node":
        assert process.wait() == 1
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await fleet.settled(JOBS, [(1, False, "before\\u0000after")])
        assert process.returncode is None


LONE_SURROGATE = r"""
select graphile_worker.add_job('step', '{"name": "x", "fail": "before \ud800 after"}');
"""


@pytest.mark.parametrize("side", SIDES)
async def test_an_error_text_with_a_lone_surrogate_ends_the_node_worker_and_is_stored_by_python(
    fleet: Fleet, side: Side
) -> None:
    fleet.query(LONE_SURROGATE)
    process = fleet.start(side)
    if side == "node":
        assert process.wait() == 1
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await fleet.settled(JOBS, [(1, False, "before \\ud800 after")])
        assert process.returncode is None


THROW = """
import { runOnce, Logger } from "graphile-worker";
const [connectionString] = process.argv.slice(2);
const logger = new Logger(() => () => {});
const thrown = { text: "out of paper", number: 3, nothing: undefined, empty: new Error("") };
const taskList = { odd: (payload) => { throw thrown[payload]; } };
await runOnce({ connectionString, taskList, logger });
"""


async def test_what_is_no_error_leaves_no_message_in_node_and_its_own_in_python(
    fleet: Fleet, node: Node
) -> None:
    stored = "select payload #>> '{}', last_error from graphile_worker._private_jobs order by id"
    for kind in ("text", "number", "nothing", "empty"):
        await fleet.add("node", "odd", kind)
    node.run(LATEST, THROW, fleet.dsn)
    anything = "An error occurred"
    assert fleet.query(stored) == [
        ("text", anything),
        ("number", anything),
        ("nothing", anything),
        ("empty", "Error"),
    ]
    # Python has no such things to raise; these are the ones that are no errors, or say nothing.
    raised = {
        "exit": SystemExit("out of paper"),
        "number": SystemExit(3),
        "key": KeyError("paper"),
        "empty": ValueError(),
        "end": StopAsyncIteration("no more pages"),
    }

    async def odd(payload: str) -> None:
        raise raised[payload]

    fleet.query("delete from graphile_worker._private_jobs")
    for kind in raised:
        await fleet.add("python", "odd", kind)
    await run_once(fleet.dsn, tasks={"odd": odd})
    assert fleet.query(stored) == [
        ("exit", "SystemExit: out of paper"),
        ("number", "SystemExit: 3"),
        ("key", "KeyError: 'paper'"),
        ("empty", "ValueError"),
        ("end", "no more pages"),
    ]


REFUSE_TWICE = """
create sequence ledger.tries;
create function refuse_twice() returns trigger language plpgsql as $$
begin
  if nextval('ledger.tries') <= 2 then
    raise exception 'refused' using errcode = '40001';
  end if;
  return old;
end $$;
create trigger refuse_twice before delete on graphile_worker._private_jobs
  for each row execute function refuse_twice();
"""


@pytest.mark.parametrize("side", SIDES)
async def test_a_batch_of_outcomes_that_the_database_refuses_for_a_moment_is_lost_by_node(
    fleet: Fleet, side: Side
) -> None:
    fleet.query(REFUSE_TWICE)
    await fleet.add(side, payload={"name": "x"})
    process = fleet.start(side, batch_delay=0)
    if side == "node":
        await process.seen("stopping")
        await eventually(lambda: process.returncode is not None)
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await fleet.drained()
        assert fleet.query("select last_value from ledger.tries") == [3]
        assert process.returncode is None


@pytest.mark.parametrize("side", SIDES)
async def test_prefetched_jobs_run_in_order_of_priority_with_python_alone(
    fleet: Fleet, side: Side
) -> None:
    for priority in (3, 2, 1):
        await fleet.add(side, payload={"name": f"{priority}"}, priority=priority)
    fleet.start(side, prefetch=10)
    await fleet.drained()
    assert fleet.names() == (["1", "2", "3"] if side == "python" else ["3", "2", "1"])


@pytest.mark.parametrize("side", SIDES)
async def test_attempts_can_be_set_back_to_zero_by_python_alone(fleet: Fleet, side: Side) -> None:
    job_id = await fleet.add(side, payload={"name": "x", "fail": "no"}, priority=5)
    fleet.run_once(side)
    if side == "node":
        fleet.call_node([["rescheduleJobs", [str(job_id)], {"attempts": 0, "priority": 0}]])
    else:
        assert job_id is not None
        with SyncWorkerUtils(fleet.dsn) as utils:
            utils.reschedule_jobs([job_id], attempts=0, priority=0)
    text = "select attempts, priority from graphile_worker._private_jobs"
    assert fleet.query(text) == [(0, 0) if side == "python" else (1, 5)]


@pytest.mark.parametrize("side", SIDES)
async def test_of_one_key_twice_in_one_call_nothing_is_added_by_node_and_the_last_by_python(
    fleet: Fleet, node: Node, side: Side
) -> None:
    specs: list[dict[str, Any]] = [
        {"identifier": "step", "payload": {"n": 1}, "job_key": "k"},
        {"identifier": "step", "payload": {"n": 2}},
        {"identifier": "step", "payload": {"n": 3}, "job_key": "k"},
    ]
    stored = "select key, payload ->> 'n' from graphile_worker._private_jobs order by 2"
    if side == "node":
        named = [
            {"jobKey" if name == "job_key" else name: value for name, value in spec.items()}
            for spec in specs
        ]
        with pytest.raises(AssertionError, match="cannot affect row a second time"):
            fleet.call_node([["addJobs", named]])
        assert fleet.query(stored) == []
    else:
        async with WorkerUtils(fleet.dsn) as utils:
            added = await utils.add_jobs([JobSpec(**spec) for spec in specs])
        assert fleet.query(stored) == [(None, "2"), ("k", "3")]
        assert [job.payload["n"] for job in added] == [3, 2, 3]


async def test_of_lists_under_one_key_in_one_call_the_last_is_appended_to_what_waits(
    fleet: Fleet,
) -> None:
    """Within one call nothing is joined: the last one counts, and is joined to the job there."""
    await fleet.add("node", "batch", [{"n": 0}], job_key="k")
    async with WorkerUtils(fleet.dsn) as utils:
        await utils.add_jobs(
            [JobSpec("batch", [{"n": 1}], job_key="k"), JobSpec("batch", [{"n": 2}], job_key="k")]
        )
    stored = "select payload from graphile_worker._private_jobs"
    assert fleet.query(stored) == [[{"n": 0}, {"n": 2}]]


@pytest.mark.parametrize("side", SIDES)
async def test_digits_of_long_numbers_are_kept_by_python_when_a_batch_is_tried_again(
    fleet: Fleet, side: Side
) -> None:
    """Node reads them rounded, and so it writes what is left of a batch."""
    big = 12345678901234567890123
    items = [{"n": 1}, {"n": big, "fail": "no"}]
    await fleet.add("python", "batch", items)
    fleet.run_once(side)
    (left,) = fleet.query("select payload::text from graphile_worker._private_jobs")
    kept = str(big) if side == "python" else "1.2345678901234568e+22"
    assert left.replace(" ", "") == f'[{{"n":{kept},"fail":"no"}}]'


ADD_NO_NUMBER = """
import { addJobAdhoc, Logger } from "graphile-worker";
const [connectionString] = process.argv.slice(2);
const logger = new Logger(() => () => {});
await addJobAdhoc({ connectionString, logger }, "step", { n: [NaN, -Infinity] });
"""


@pytest.mark.parametrize("side", SIDES)
async def test_what_is_no_number_is_stored_as_null_by_both(
    fleet: Fleet, node: Node, side: Side
) -> None:
    """JSON has neither NaN nor infinities."""
    if side == "node":
        node.run(LATEST, ADD_NO_NUMBER, fleet.dsn)
    else:
        payload = {"n": [float("nan"), -float("inf")]}
        with SyncWorkerUtils(fleet.dsn, nan_as_null=True) as utils:
            utils.add_job("step", payload)
        with (
            SyncWorkerUtils(fleet.dsn) as utils,
            pytest.raises(ConfigurationError, match=r"\$\.n\[0\] is nan, not a finite number"),
        ):
            utils.add_job("step", payload)
    text = "select payload::text from graphile_worker._private_jobs"
    assert fleet.query(text) == ['{"n":[null,null]}']


@pytest.mark.parametrize("side", SIDES)
async def test_no_attempts_at_all_are_the_default_to_node_and_refused_by_python(
    fleet: Fleet, side: Side
) -> None:
    stored = "select max_attempts from graphile_worker._private_jobs"
    if side == "node":
        await fleet.add("node", max_attempts=0, queue_name="")
        assert fleet.query(stored) == [25]
        assert fleet.query("select queue_name from graphile_worker.jobs") == [None]
    else:
        with pytest.raises(ConfigurationError, match="max_attempts"):
            await fleet.add("python", max_attempts=0)
        assert fleet.query(stored) == []
        await fleet.add("python", queue_name="")
        assert fleet.query("select queue_name from graphile_worker.jobs") == [""]


@pytest.mark.parametrize("side", SIDES)
async def test_with_forbidden_flags_jobs_that_node_has_fetched_ahead_are_run_by_nobody(
    fleet: Fleet, side: Side
) -> None:
    """Its workers look past what it has in store, which stays there until its ttl has passed."""
    for _ in range(5):
        await fleet.add("python", payload={"name": "early"})

    async def all_are_taken() -> None:
        free = "select id from graphile_worker.jobs where locked_by is null"
        await eventually(lambda: fleet.query(free) == [], timeout=10)

    fleet.start(side, prefetch=10, forbidden_flags=["eu"])
    await all_are_taken()
    # If its workers were quicker than its store, the store takes the first one of these.
    for _ in range(2):
        await fleet.add("python", payload={"name": "late"})
        await all_are_taken()
    await fleet.ended("late")
    if side == "python":
        await fleet.drained()
        assert fleet.names() == ["early"] * 5 + ["late"] * 2
    else:
        jobs = "select locked_by is not null, attempts from graphile_worker.jobs"
        await eventually(lambda: len(fleet.query(jobs)) + len(fleet.names()) == 7, timeout=10)
        assert set(fleet.query(jobs)) == {(True, 1)}


EXECUTABLES = """
import { runOnce, Logger } from "graphile-worker";
const [connectionString, taskDirectory] = process.argv.slice(2);
const logger = new Logger(() => () => {});
await runOnce({ connectionString, taskDirectory, logger });
"""


@pytest.fixture
def executables(tmp_path: Path) -> Path:
    """Two tasks: one fails, one does not read what it is given."""
    for name, text in {"fail": "cat > /dev/null\necho no paper >&2\nexit 3", "deaf": ""}.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("side", SIDES)
async def test_how_an_executable_ended_is_told_by_python_alone(
    fleet: Fleet, node: Node, executables: Path, side: Side
) -> None:
    await fleet.add(side, "fail")
    if side == "node":
        node.run(LATEST, EXECUTABLES, fleet.dsn, str(executables))
        expected = "An error occurred"
    else:
        await run_once(fleet.dsn, task_directory=executables)
        expected = "task 'fail' exited with code 3:\nno paper"
    assert fleet.query(JOBS) == [(1, False, expected)]


@pytest.mark.parametrize("side", SIDES)
async def test_an_executable_that_does_not_read_its_input_ends_the_node_worker(
    fleet: Fleet, node: Node, executables: Path, side: Side
) -> None:
    """With more input than a pipe holds it is sure to be noticed."""
    await fleet.add("python", "deaf", "x" * 1_000_000)
    if side == "node":
        process = node.start(LATEST, EXECUTABLES, fleet.dsn, str(executables))
        assert process.wait() == 1
        assert "EPIPE" in process.stderr
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await run_once(fleet.dsn, task_directory=executables)
        assert fleet.query(JOBS) == []


@pytest.mark.parametrize("side", SIDES)
async def test_an_executable_outlives_a_node_worker_that_is_killed_and_no_python_one(
    fleet: Fleet, node: Node, processes: Processes, tmp_path: Path, side: Side
) -> None:
    program, told = tmp_path / "tasks" / "lasting", tmp_path / "pid"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\ncat > /dev/null\necho $$ > {told}.new\nmv {told}.new {told}\nexec sleep 600\n"
    )
    program.chmod(0o755)
    await fleet.add(side, "lasting")
    if side == "node":
        worker = node.start(LATEST, EXECUTABLES, fleet.dsn, str(program.parent))
    else:
        command = [sys.executable, "-m", "graphile_worker_py", "--connection", fleet.dsn]
        worker = processes.start([*command, "--task-directory", str(program.parent)])
    await eventually(told.exists)
    pid = int(told.read_text())
    try:
        worker.kill()
        worker.wait()
        if side == "node":
            assert is_alive(pid)
        else:
            await eventually(lambda: not is_alive(pid))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# A plan in which the function's rows come in the order of the tasks' names. Which plan there is
# otherwise depends on the sizes of the tables.
SORTED = """
do $$
begin
  execute format('alter database %I set enable_hashjoin = off', current_database());
  execute format('alter database %I set enable_nestloop = off', current_database());
end $$
"""


@pytest.mark.parametrize("side", SIDES)
async def test_results_of_add_jobs_may_name_the_task_of_another_one_in_node(
    fleet: Fleet, side: Side
) -> None:
    fleet.query(SORTED)
    names = ["third", "second", "first"]
    for name in names:  # so that the tasks are known
        await fleet.add("python", name)
    if side == "node":
        specs = [{"identifier": name, "payload": {"for": name}} for name in names]
        (added,) = fleet.call_node([["addJobs", specs]])
        told = [(job["task_identifier"], job["payload"]["for"]) for job in added]
        assert told == [("third", "first"), ("second", "second"), ("first", "third")]
    else:
        async with WorkerUtils(fleet.dsn) as utils:
            jobs = await utils.add_jobs([JobSpec(name, {"for": name}) for name in names])
        assert [(job.task_identifier, job.payload["for"]) for job in jobs] == [
            ("third", "third"),
            ("second", "second"),
            ("first", "first"),
        ]
