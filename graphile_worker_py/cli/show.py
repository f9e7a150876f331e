"""The commands that look at jobs, queues and locks, and change nothing."""

from dataclasses import asdict
from typing import Any

import click

from graphile_worker_py.cli.database import opened_database, registered_pools
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import job_as_json, job_rows, print_job, print_json, print_table
from graphile_worker_py.sql import inspect
from graphile_worker_py.sql.backlog import RegisteredPool
from graphile_worker_py.sql.inspect import JobState, StateCounts


@click.command()
@database_options
@click.option("--state", type=click.Choice(list(map(str, JobState))), help="Where they stand.")
@click.option("--task", metavar="IDENTIFIER", help="Of this task.")
@click.option("--queue", metavar="NAME", help="Of this queue.")
@click.option("--key", metavar="KEY", help="With this job key.")
@click.option("--text", metavar="TEXT", help="With this in payload, key or last error.")
@click.option("--locked-by", metavar="POOL", help="Running in this worker pool.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@click.option("--after", metavar="ID", help="Go on after this job, the last one of a page.")
@json_option
@told_clearly()
def jobs(connection: str | None, schema: str | None, as_json: bool, **filters: Any) -> None:
    """List jobs, the newest first."""
    with opened_database(connection, schema) as database:
        found = database.run(inspect.list_jobs(**filters))
    if as_json:
        print_json([job_as_json(job) for job in found])
        return
    print_table(job_rows(found), if_none="No jobs.")
    if len(found) == filters["limit"]:
        click.echo(f"Older ones: --after {found[-1].id}", err=True)


@click.command()
@click.argument("job_id", metavar="ID")
@database_options
@json_option
@told_clearly()
def job(job_id: str, connection: str | None, schema: str | None, as_json: bool) -> None:
    """Show all of one job: its payload and its whole last error, too."""
    query = inspect.get_job(job_id)
    with opened_database(connection, schema) as database:
        found = database.run(query)
    if found is None:
        exit_with(f"there is no job {job_id}", EXIT_FAILURE)
    if as_json:
        print_json(job_as_json(found))
    else:
        print_job(found)


@click.command()
@database_options
@json_option
@told_clearly()
def counts(connection: str | None, schema: str | None, as_json: bool) -> None:
    """Count the jobs of each task by state."""
    with opened_database(connection, schema) as database:
        counted = database.run(inspect.count_jobs())
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
    """List the serial queues, with their jobs and who has them locked."""
    with opened_database(connection, schema) as database:
        found = [asdict(queue) for queue in database.run(inspect.list_queues())]
    if as_json:
        print_json(found)
        return
    print_table([_spaced(row) for row in found], if_none="No queues.")


@click.command()
@database_options
@json_option
@told_clearly()
def workers(connection: str | None, schema: str | None, as_json: bool) -> None:
    """List the worker pools that have something locked, the oldest lock first, and all others.

    Pools of Node do not register, so nobody knows more of them than what they have locked.
    """
    with opened_database(connection, schema) as database:
        holders = database.run(inspect.list_lock_holders())
        registered = {pool.pool_id: pool for pool in registered_pools(database) or ()}
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
    print_table([_spaced(row) for row in found], if_none="No pool has anything locked.")


def _about_pool(pool: RegisteredPool | None) -> dict[str, Any]:
    if pool is None:
        return {"state": None, "host": None, "pid": None, "heartbeat_age": None}
    state = "late" if pool.overdue else "stopping" if pool.stopping else "alive"
    age = round(pool.heartbeat_age, 1)
    return {"state": state, "host": pool.host, "pid": pool.pid, "heartbeat_age": age}


def _spaced(row: dict[str, Any]) -> dict[str, object]:
    return {name.replace("_", " "): value for name, value in row.items()}
