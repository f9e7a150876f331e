"""The commands that show jobs, queues and locks, and change nothing."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import click

from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.past import RUN_KEYS, run_as_json, run_rows
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import (
    JOB_KEYS,
    RETRYING,
    about_unserved,
    job_as_json,
    job_rows,
    print_job,
    print_json,
    print_table,
    relative,
)
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.clock import from_now, utc_now
from graphile_worker_py.sql.backlog import RegisteredPool
from graphile_worker_py.sql.inspect import JobState, ListedJob, StateCounts
from graphile_worker_py.sql.pauses import PAUSE_PREFIX
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils

TABLE_LIMIT: Final = 50
PAGE: Final = 1000


@click.command()
@database_options
@click.option(
    "--state", type=click.Choice([*map(str, JobState), RETRYING]), help="Jobs in this state."
)
@click.option("--task", metavar="IDENTIFIER", help="Jobs of this task.")
@click.option("--queue", metavar="NAME", help="Jobs of this queue.")
@click.option("--key", metavar="KEY", help="The job with this key.")
@click.option("--text", metavar="TEXT", help="Jobs with this text in payload, key or last error.")
@click.option("--locked-by", metavar="POOL", help="Jobs that this worker pool runs.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Maximum number of jobs. Default: {TABLE_LIMIT}; with --json, all.",
)
@click.option(
    "--after",
    metavar="ID",
    help="List the jobs after this one, the last of the previous page.",
)
@json_option
@told_clearly()
def jobs(
    connection: str | None,
    schema: str | None,
    as_json: bool,
    state: str | None,
    limit: int | None,
    **filters: Any,
) -> None:
    """List jobs, the newest first."""
    if limit is None and not as_json:
        limit = TABLE_LIMIT
    with opened_utils(connection, schema) as utils:
        if state == RETRYING:
            found = list(islice(_retried(utils, filters), limit))
        else:
            found = utils.list_jobs(state=state, limit=limit, **filters)
    if as_json:
        print_json([job_as_json(job) for job in found])
        return
    print_table(job_rows(found), if_none="No jobs.", whole=JOB_KEYS)
    if len(found) == limit:
        click.echo(f"Older ones: --after {found[-1].id}", err=True)


def _retried(utils: SyncWorkerUtils, filters: dict[str, Any]) -> Iterator[ListedJob]:
    after = filters.pop("after")
    while page := utils.list_jobs(state=JobState.SCHEDULED, after=after, limit=PAGE, **filters):
        yield from (job for job in page if job.attempts > 0)
        after = page[-1].id


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--runs", "with_runs", is_flag=True, help="Also show its attempts that ended.")
@database_options
@json_option
@told_clearly()
def job(
    job_id: str, connection: str | None, schema: str | None, as_json: bool, with_runs: bool
) -> None:
    """Show one job with its payload and its full last error."""
    with opened_utils(connection, schema) as utils:
        found = utils.get_job(job_id)
        runs = utils.list_runs(job_id=job_id) if with_runs else []
    if found is None and not runs:
        hint = "" if with_runs else "; --runs shows attempts that were kept"
        exit_with(f"there is no job {job_id}; completed jobs are deleted{hint}", EXIT_FAILURE)
    if as_json:
        shown = {"id": int(job_id)} if found is None else job_as_json(found)
        print_json({**shown, "runs": [run_as_json(run) for run in runs]} if with_runs else shown)
        return
    if found is not None:
        print_job(found)
    if with_runs:
        print_table(run_rows(runs), if_none="No attempts.", whole=RUN_KEYS)


@click.command()
@click.argument("job_id", metavar="ID")
@database_options
@json_option
@told_clearly()
def explain(job_id: str, connection: str | None, schema: str | None, as_json: bool) -> None:
    """Say why a job is not running, and what to do about it."""
    with opened_utils(connection, schema) as utils:
        found = utils.explain(job_id)
    if as_json:
        print_json(found.as_json())
    else:
        click.echo(f"Job {found.job_id}: {found.state or 'not found'}")
        for reason in found.reasons:
            click.echo(f"  {'!' if reason.blocks else '-'} {harmless(reason.fact)}")
            if reason.remedy is not None:
                click.echo(f"      {harmless(reason.remedy)}")
        if found.missing is not None:
            click.echo(f"Not looked at: {found.missing}", err=True)
    if found.state is None:
        sys.exit(EXIT_FAILURE)


@click.command()
@database_options
@json_option
@told_clearly()
def counts(connection: str | None, schema: str | None, as_json: bool) -> None:
    """Count the jobs of each task by state."""
    with opened_utils(connection, schema) as utils:
        counted = utils.counts()
    if as_json:
        tasks = {identifier: _counts(each) for identifier, each in counted.tasks.items()}
        print_json({**_counts(counted), "tasks": tasks})
        return
    rows: list[dict[str, object]] = [
        {"task": identifier, **_counts(each)} for identifier, each in counted.tasks.items()
    ]
    print_table([*rows, {"task": "(all)", **_counts(counted)}], if_none="No jobs.")


def _counts(counted: StateCounts) -> dict[str, int]:
    return {**{str(state): getattr(counted, state) for state in JobState}, "total": counted.total}


@click.command()
@database_options
@json_option
@told_clearly()
def queues(connection: str | None, schema: str | None, as_json: bool) -> None:
    """List the serial queues, with their jobs and the pools that have them locked."""
    with opened_utils(connection, schema) as utils:
        found = [asdict(queue) for queue in utils.queues()]
    if as_json:
        print_json(found)
        return
    now = utc_now()
    rows = [
        _spaced({**row, "locked_at": relative(row["locked_at"], now)} | _pause_of(row))
        for row in found
    ]
    print_table(rows, if_none="No queues.", whole=("locked at",))


@click.command()
@database_options
@json_option
@told_clearly()
def workers(connection: str | None, schema: str | None, as_json: bool) -> None:
    """List the worker pools: first those with locks, the oldest lock first, then the others.

    Pools of Node do not register, so they are listed only while they have locks.
    """
    with opened_utils(connection, schema) as utils:
        holders = utils.workers()
        registered = {pool.pool_id: pool for pool in utils.pools() or ()}
        unserved = utils.unserved_tasks()
    found = [
        {**asdict(holder), **_about_pool(registered.pop(holder.pool_id, None))}
        for holder in holders
    ]
    for pool in registered.values():
        nothing = {"pool_id": pool.pool_id, "jobs": 0, "queues": 0, "locked_at": None}
        found.append({**nothing, **_about_pool(pool)})
    if as_json:
        print_json(found)
        return
    print_table(
        [_worker_row(row) for row in found], if_none="There are no workers.", whole=("pool id",)
    )
    for sentence in about_unserved(unserved):
        click.echo(f"Trouble: {harmless(sentence)}", err=True)


def _about_pool(pool: RegisteredPool | None) -> dict[str, Any]:
    if pool is None:
        return dict.fromkeys(("state", "host", "pid", "heartbeat_age", "running", "concurrency"))
    is_quiet = "quiet" if pool.quiet else "alive"
    state = "late" if pool.overdue else "stopping" if pool.stopping else is_quiet
    age = round(pool.heartbeat_age, 1)
    about = {"state": state, "host": pool.host, "pid": pool.pid, "heartbeat_age": age}
    return {**about, "running": pool.running, "concurrency": pool.concurrency}


def _worker_row(row: dict[str, Any]) -> dict[str, object]:
    """A pool for people: `running` counts jobs of its capacity, times are relative."""
    age, capacity = row["heartbeat_age"], row["concurrency"]
    return {
        "pool id": row["pool_id"],
        "state": row["state"],
        "jobs": row["jobs"] if capacity is None else f"{row['jobs']}/{capacity}",
        "queues": row["queues"],
        "oldest lock": relative(row["locked_at"], utc_now()),
        "heartbeat": None if age is None else from_now(-age),
        "pid": row["pid"],
        "host": row["host"],
    }


def _pause_of(row: dict[str, Any]) -> dict[str, Any]:
    """What to show in place of the lock of a paused queue, which lies far ahead."""
    holder = row["locked_by"] or ""
    if not holder.startswith(PAUSE_PREFIX):
        return {}
    return {"locked_by": f"paused {holder.removeprefix(PAUSE_PREFIX)}", "locked_at": None}


def _spaced(row: dict[str, Any]) -> dict[str, object]:
    return {name.replace("_", " "): value for name, value in row.items()}
