"""The commands that change jobs, or free what workers have locked."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

import click
from psycopg import Connection

from graphile_worker_py.cli.database import opened_database
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.moments import moment_callback
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import job_as_json, job_rows, print_json, print_table
from graphile_worker_py.cli.work import import_tasks
from graphile_worker_py.job import Job
from graphile_worker_py.loading.directory import load_tasks
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import admin, inspect
from graphile_worker_py.sql import cleanup as cleaning
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.tasks.task import task_list

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would change, only.")
ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """How a change is to be made: what all commands here are told beside their own values."""

    connection: str | None
    schema: str | None
    yes: bool
    dry_run: bool
    as_json: bool

    def confirm(self, question: str) -> None:
        """Ask whether to go on; a program that has no terminal is not asked."""
        if not self.yes and not self.dry_run and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)

    @contextmanager
    def opened(self) -> Iterator[tuple[SyncDatabase, Connection[Any]]]:
        """The database, and a connection in a transaction; a dry run rolls it back.

        So what a dry run shows is what the database did, not what we think it would do.
        """
        with (
            opened_database(self.connection, self.schema) as database,
            database.pool.connection() as conn,
            conn.transaction(force_rollback=self.dry_run),
        ):
            yield database, conn

    def done(self, verb: str, what: str) -> str:
        """The sentence that says what was done."""
        return f"Would have {verb} {what}." if self.dry_run else f"{verb.capitalize()} {what}."


def _changing(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def call(
        connection: str | None,
        schema: str | None,
        yes: bool,
        dry_run: bool,
        as_json: bool,
        **own: Any,
    ) -> None:
        change = _Change(
            connection=connection, schema=schema, yes=yes, dry_run=dry_run, as_json=as_json
        )
        with told_clearly():
            command(change, **own)

    return database_options(yes_option(dry_run_option(json_option(call))))


@click.command()
@ids_argument
@_changing
def complete(change: _Change, ids: tuple[str, ...]) -> None:
    """Delete jobs as if they had succeeded. Running ones are left alone."""
    _change_jobs(change, "completed", ids, admin.complete_jobs(ids))


@click.command()
@ids_argument
@click.option("--reason", metavar="TEXT", help="What to record as last error.")
@_changing
def fail(change: _Change, ids: tuple[str, ...], reason: str | None) -> None:
    """Give jobs up: they stay, and are not tried again. Running ones are left alone."""
    _change_jobs(change, "failed", ids, admin.permanently_fail_jobs(ids, reason))


@click.command()
@ids_argument
@click.option(
    "--run-at", metavar="TIME", callback=moment_callback, help="ISO 8601, or from now as +10m."
)
@click.option("--priority", type=int, metavar="N", help="Smaller runs first.")
@click.option("--attempts", type=int, metavar="N", help="Count as tried so often; 0 starts anew.")
@click.option("--max-attempts", type=int, metavar="N", help="Give up after so many failures.")
@_changing
def reschedule(change: _Change, ids: tuple[str, ...], **values: Any) -> None:
    """Change when and how often jobs run. Running ones are left alone."""
    if all(value is None for value in values.values()):
        raise click.UsageError(
            "give at least one of --run-at, --priority, --attempts, --max-attempts"
        )
    _change_jobs(change, "rescheduled", ids, admin.reschedule_jobs(ids, **values))


def _change_jobs(change: _Change, verb: str, ids: tuple[str, ...], query: Query[list[Job]]) -> None:
    wanted = set(admin.checked_ids(ids))
    if len(wanted) > 1:
        change.confirm(f"{len(wanted)} jobs will be {verb}. Go on?")
    with change.opened() as (database, conn):
        shown: dict[int, ListedJob] = {}

        def look(ids: Iterable[int]) -> None:
            # Programs get queue and state of a job, too, which the functions do not return.
            for job_id in ids if change.as_json else ():
                job = database.run(inspect.get_job(job_id), conn=conn)
                if job is not None:
                    shown[job_id] = job

        look(wanted)
        jobs = database.run(query, conn=conn)
        # Those that were deleted are shown as they were.
        look(job.id for job in jobs)
    if change.as_json:
        print_json([job_as_json(shown.get(job.id, job)) for job in jobs])
    else:
        print_table(job_rows(jobs), if_none="No jobs.")
        click.echo(change.done(verb, f"{len(jobs)} of {_plural(len(wanted), 'job')}"))
    left = sorted(wanted.difference(job.id for job in jobs))
    if left:
        exit_with(f"running, or not there: {', '.join(map(str, left))}; left alone", EXIT_FAILURE)


@click.command()
@click.argument("key")
@_changing
def remove(change: _Change, key: str) -> None:
    """Delete the job with a job key. If it is running, it only loses its key and retries."""
    query = admin.remove_job(key)
    with change.opened() as (database, conn):
        job = database.run(query, conn=conn)
    if job is None:
        exit_with(f"no job has the key {key!r}", EXIT_FAILURE)
    if change.as_json:
        print_json(job_as_json(job))
        return
    print_table(job_rows([job]), if_none="")
    # One that was deleted is shown as it was, with its key.
    taken = "the key and the retries of 1 running job"
    click.echo(change.done("removed", "1 job" if job.key is not None else taken))


@click.command()
@click.argument("pool_ids", metavar="POOL...", nargs=-1, required=True)
@_changing
def unlock(change: _Change, pool_ids: tuple[str, ...]) -> None:
    """Free the jobs and queues of worker pools that died; `workers` lists who has locks.

    The pools must not be running any more: their jobs would run twice.
    """
    query = admin.force_unlock_workers(pool_ids)
    change.confirm(
        f"What {_plural(len(set(pool_ids)), 'worker pool')} locked will be freed. Go on?"
    )
    with change.opened() as (database, conn):
        unlocked = database.run(query, conn=conn)
    if change.as_json:
        print_json(asdict(unlocked))
        return
    freed = f"{_plural(unlocked.jobs, 'job')} and {_plural(unlocked.queues, 'queue')}"
    click.echo(change.done("unlocked", freed))


@click.command()
@click.argument("tasks", metavar="TASK...", nargs=-1, required=True)
@click.option("--keep", metavar="IDENTIFIER", multiple=True, help="A task identifier to keep.")
@click.option(
    "--tasks", "module", metavar="MODULE[:ATTR]", help="Keep the tasks of a Python module."
)
@click.option("--task-directory", metavar="DIR", help="Keep the tasks of a folder.")
@_changing
def cleanup(
    change: _Change,
    tasks: tuple[str, ...],
    keep: tuple[str, ...],
    module: str | None,
    task_directory: str | None,
) -> None:
    """Delete what nobody needs any more.

    \b
    TASK is one or more of
      DELETE_PERMAFAILED_JOBS  jobs without attempts left
      GC_TASK_IDENTIFIERS      task identifiers without jobs; stop the workers before
      GC_JOB_QUEUES            queues without jobs
    in upper or lower case, with spaces or commas between.
    """
    names = " ".join(tasks).replace(",", " ").upper().split()
    if not names:
        raise click.UsageError(f"give at least one of {', '.join(CleanupTask)}")
    wanted = set(keep)
    if module is not None:
        wanted |= task_list(import_tasks(module)).keys()
    if task_directory is not None:
        wanted |= load_tasks(task_directory, strict=True).keys()
    queries = cleaning.cleanup(names, sorted(wanted))
    change.confirm(f"{', '.join(queries)} will delete rows. Go on?")
    with change.opened() as (database, conn):
        deleted = {task: database.run(query, conn=conn) for task, query in queries.items()}
    if change.as_json:
        print_json(deleted)
        return
    for task, count in deleted.items():
        click.echo(f"{task}: {change.done('deleted', _plural(count, 'row')).lower()}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
