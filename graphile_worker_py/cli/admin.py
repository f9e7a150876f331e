"""The commands that change jobs, or release locks of workers."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial, wraps
from typing import Any

import click
from psycopg import Connection

from graphile_worker_py.checks import check_job_ids, check_one_of
from graphile_worker_py.cli.bulk import Work, showing
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.moments import duration_callback, moment_callback
from graphile_worker_py.cli.shared_options import database_options_and, json_option
from graphile_worker_py.cli.tables import JOB_KEYS, job_as_json, job_rows, print_json, print_table
from graphile_worker_py.cli.work import import_from_here, named_modules
from graphile_worker_py.clock import from_now
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.job import Job
from graphile_worker_py.loading.directory import load_tasks
from graphile_worker_py.loading.modules import collect_tasks
from graphile_worker_py.sql.cleanup import CleanupPreview, CleanupTask
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils
from graphile_worker_py.tasks.program import set_up

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would change.")
ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How to make a change: the values of the options that all such commands have."""

    connection: str | None
    schema: str | None
    yes: bool
    dry_run: bool
    as_json: bool

    @property
    def asks(self) -> bool:
        """Whether to ask for confirmation: only on a terminal."""
        return not self.yes and not self.dry_run and sys.stdin.isatty()

    def confirm(self, question: str) -> None:
        """Ask for confirmation, if there is a terminal."""
        if self.asks:
            click.confirm(question, abort=True, err=True)

    @contextmanager
    def opened(self) -> Iterator[tuple[SyncWorkerUtils, Connection[Any]]]:
        """The utils, and a connection in a transaction; a dry run rolls it back.

        So a dry run shows what the database did, and not a guess.
        """
        with (
            opened_utils(self.connection, self.schema) as utils,
            utils.pool.connection() as conn,
            conn.transaction(force_rollback=self.dry_run),
        ):
            yield utils, conn

    def done(self, verb: str, what: str) -> str:
        """The sentence that says what was done."""
        return f"Would have {verb} {what}." if self.dry_run else f"{verb.capitalize()} {what}."


def changing(command: Callable[..., None], *, more: Sequence[str] = ()) -> Callable[..., None]:
    """Give a command the options of a change, and the settings that have these names."""

    @wraps(command)
    def call(
        connection: str | None,
        schema: str | None,
        yes: bool,
        dry_run: bool,
        as_json: bool,
        **own: Any,
    ) -> None:
        change = Change(
            connection=connection, schema=schema, yes=yes, dry_run=dry_run, as_json=as_json
        )
        with told_clearly():
            command(change, **own)

    return database_options_and(*more)(yes_option(dry_run_option(json_option(call))))


@click.command()
@ids_argument
@changing
def complete(change: Change, ids: tuple[str, ...]) -> None:
    """Delete jobs as if they had succeeded. Running jobs are left alone."""
    _, left = _change_jobs(change, "completed", ids, SyncWorkerUtils.complete_jobs)
    end(left)


@click.command()
@ids_argument
@click.option("--reason", metavar="TEXT", help="Text to record as last error.")
@changing
def fail(change: Change, ids: tuple[str, ...], reason: str | None) -> None:
    """Fail jobs permanently: they stay, without a retry. Running jobs are left alone."""
    call = SyncWorkerUtils.permanently_fail_jobs
    _, left = _change_jobs(change, "failed", ids, call, reason=reason)
    end(left)


@click.command()
@ids_argument
@click.option(
    "--run-at", metavar="TIME", callback=moment_callback, help="ISO 8601, or from now as +10m."
)
@click.option("--priority", type=int, metavar="N", help="Lower values run first.")
@click.option("--attempts", type=int, metavar="N", help="Number of attempts used; 0 starts again.")
@click.option("--max-attempts", type=int, metavar="N", help="Number of attempts allowed.")
@changing
def reschedule(change: Change, ids: tuple[str, ...], **values: Any) -> None:
    """Change when and how often jobs run. Running jobs are left alone."""
    if all(value is None for value in values.values()):
        raise click.UsageError(
            "give at least one of --run-at, --priority, --attempts, --max-attempts"
        )
    jobs, left = _change_jobs(change, "rescheduled", ids, SyncWorkerUtils.reschedule_jobs, **values)
    stuck = [job.id for job in jobs if job.attempts >= job.max_attempts]
    if stuck:
        left.append(
            f"no attempts left, so these jobs will not run: {listed(stuck)}; give --attempts 0 to "
            f"start again, or a higher --max-attempts"
        )
    end(left)


def _change_jobs(
    change: Change, verb: str, ids: tuple[str, ...], call: Callable[..., list[Job]], **values: Any
) -> tuple[list[Job], list[str]]:
    """Change jobs and print them; returns them, and a message if some were left alone."""
    wanted = set(check_job_ids("ids", ids))
    if len(wanted) > 1:
        change.confirm(f"{len(wanted)} jobs will be {verb}. Go on?")
    with change.opened() as (utils, conn):
        shown: dict[int, ListedJob] = {}

        def look(ids: Iterable[int]) -> None:
            # JSON contains queue and state, too, which the SQL functions do not return.
            for job_id in ids if change.as_json else ():
                job = utils.get_job(job_id, conn=conn)
                if job is not None:
                    shown[job_id] = job

        look(wanted)
        jobs: list[Job] = []
        work = Work("Changing jobs", len(ids))
        with showing(work, as_json=change.as_json):
            for some in work.chunks(ids):
                jobs += call(utils, some, **values, conn=conn)
        # Deleted jobs are shown as they were.
        look(job.id for job in jobs)
    if change.as_json:
        print_json([job_as_json(shown.get(job.id, job)) for job in jobs])
    else:
        print_table(job_rows(jobs), if_none="No jobs.", whole=JOB_KEYS)
        click.echo(change.done(verb, f"{len(jobs)} of {plural(len(wanted), 'job')}"))
    left = sorted(wanted.difference(job.id for job in jobs))
    return jobs, [f"running, or not there: {listed(left)}; left alone"] if left else []


def end(problems: list[str]) -> None:
    """End the command; with an error if there were problems."""
    if problems:
        exit_with("; ".join(problems), EXIT_FAILURE)


@click.command()
@click.argument("key")
@changing
def remove(change: Change, key: str) -> None:
    """Delete the job with a job key. A running job only loses its key and its retries."""
    with change.opened() as (utils, conn):
        job = utils.remove_job(key, conn=conn)
    if job is None:
        exit_with(f"no job has the key {key!r}", EXIT_FAILURE)
    if change.as_json:
        print_json(job_as_json(job))
        return
    print_table(job_rows([job]), if_none="", whole=JOB_KEYS)
    # A deleted job is shown as it was, with its key.
    taken = f"the key and the retries of job {job.id}, which runs on"
    click.echo(change.done("removed", "1 job" if job.key is not None else taken))


@click.command()
@click.argument("pool_ids", metavar="POOL...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Even if a pool is alive. Its jobs run twice.")
@changing
def unlock(change: Change, pool_ids: tuple[str, ...], force: bool) -> None:
    """Release the jobs and queues of dead worker pools; `workers` lists the pools.

    The pools must have ended: otherwise their jobs run twice. A pool whose heartbeat shows that it
    is alive is refused. Pools of Node have no heartbeat and are never refused.
    """
    change.confirm(
        f"The locks of {plural(len(set(pool_ids)), 'worker pool')} will be released. Go on?"
    )
    with change.opened() as (utils, conn):
        known = {each.pool_id for each in utils.workers(conn=conn)}
        known |= {each.pool_id for each in utils.pools(conn=conn) or ()}
        try:
            unlocked = utils.force_unlock_workers(pool_ids, force=force, conn=conn)
        except GraphileWorkerError as error:
            raise GraphileWorkerError(f"{error}, or give --force") from error
    if change.as_json:
        print_json(asdict(unlocked))
    else:
        freed = f"{plural(unlocked.jobs, 'job')} and {plural(unlocked.queues, 'queue')}"
        click.echo(change.done("unlocked", freed))
    unknown = [pool_id for pool_id in dict.fromkeys(pool_ids) if pool_id not in known]
    if unknown:
        exit_with(
            f"unknown worker pools: {', '.join(unknown)}; known are: "
            f"{', '.join(sorted(known)) or 'none'}",
            EXIT_FAILURE,
        )


@click.command()
@click.argument("tasks", metavar="TASK...", nargs=-1, required=True)
@click.option("--keep", metavar="IDENTIFIER", multiple=True, help="A task identifier to keep.")
@click.option(
    "--tasks",
    "modules",
    multiple=True,
    metavar="MODULE[:ATTR]",
    help="Keep the identifiers of a module's tasks. Can be repeated.",
)
@click.option("--task-directory", metavar="DIR", help="Keep the identifiers of a folder's tasks.")
@click.option(
    "--older-than",
    metavar="TIME",
    callback=duration_callback,
    help="Keep jobs that failed for the last time within this time, such as 30d.",
)
@partial(changing, more=("setup",))
def cleanup(
    change: Change,
    setup: str | None,
    tasks: tuple[str, ...],
    keep: tuple[str, ...],
    modules: tuple[str, ...],
    task_directory: str | None,
    older_than: timedelta | None,
) -> None:
    """Delete rows that are no longer needed.

    \b
    TASK is one or more of
      DELETE_PERMAFAILED_JOBS  jobs without attempts left
      GC_TASK_IDENTIFIERS      task identifiers without jobs; stop Node's workers first
      GC_JOB_QUEUES            queues without jobs
    in upper or lower case, with spaces or commas between.
    """
    names = " ".join(tasks).replace(",", " ").upper().split()
    if not names:
        raise click.UsageError(f"give at least one of {', '.join(CleanupTask)}")
    wanted = set(keep) | _identifiers(setup, modules, task_directory)
    for name in names:
        check_one_of("TASK", name, allowed=CleanupTask)
    conditions: dict[str, Any] = {
        "task_identifiers_to_keep": sorted(wanted),
        "older_than": older_than,
    }
    if change.asks:
        counting = showing(Work("Counting"), as_json=change.as_json)
        with change.opened() as (utils, conn), counting:
            found = utils.preview_cleanup(names, **conditions, conn=conn)
        for task, preview in found.items():
            click.echo(f"{task}: {_described(preview)}", err=True)
        change.confirm("Delete them?")
    deleting = showing(Work("Deleting"), as_json=change.as_json)
    with change.opened() as (utils, conn), deleting:
        deleted = utils.cleanup(names, **conditions, conn=conn)
    if change.as_json:
        print_json(deleted)
        return
    for task, count in deleted.items():
        click.echo(f"{task}: {change.done('deleted', plural(count, 'row')).lower()}")


def _identifiers(
    setup: str | None, modules: tuple[str, ...], task_directory: str | None
) -> set[str]:
    """The identifiers of the tasks in modules and in a directory."""
    import_from_here()
    if setup is not None and (modules or task_directory is not None):
        set_up(setup)
    found: set[str] = set()
    if modules:
        found |= collect_tasks(named_modules(modules), name="--tasks").keys()
    if task_directory is not None:
        found |= load_tasks(task_directory, strict=True).keys()
    return found


def _described(preview: CleanupPreview) -> str:
    rows = plural(preview.rows, "row")
    if preview.oldest is None:
        return rows
    return f"{rows}, the oldest failed {from_now(-preview.oldest)}"


def listed(ids: Iterable[int]) -> str:
    """Ids for a message."""
    return ", ".join(map(str, ids))


def plural(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
