"""The commands that cancel jobs, and that try failed ones again."""

from dataclasses import asdict

import click

from graphile_worker_py.cli.admin import Change, changing, end, ids_argument, listed, plural
from graphile_worker_py.cli.bulk import CHUNK, Work, showing
from graphile_worker_py.cli.tables import JOB_KEYS, job_as_json, job_rows, print_json, print_table
from graphile_worker_py.sql.cancel_jobs import CancelState
from graphile_worker_py.steering.steering import GRACE
from graphile_worker_py.steering.steps import RETRIED_STATES


@click.command()
@ids_argument
@click.option("--reason", metavar="TEXT", help="Why; history keeps it.")
@click.option(
    "--grace",
    type=float,
    default=GRACE,
    show_default=True,
    metavar="SECONDS",
    help="Time that a running job gets to end before it is cut off.",
)
@changing
def cancel(change: Change, ids: tuple[str, ...], reason: str | None, grace: float) -> None:
    """Cancel jobs: waiting ones are deleted, running ones are asked to end.

    \b
    What has become of each job:
      cancelled          it was waiting, and is deleted
      requested          it runs, and its worker was asked to end it
      running_elsewhere  it runs in a Node worker; it is not tried again
      not_found          there is no such job
    """
    if len(set(ids)) > 1:
        change.confirm(f"{len(set(ids))} jobs will be cancelled. Go on?")
    work, done = Work("Cancelling", len(ids)), []
    with change.opened() as (utils, conn), showing(work, as_json=change.as_json):
        for some in work.chunks(ids):
            done += utils.cancel_jobs(some, reason=reason, grace=grace, conn=conn)
    if change.as_json:
        print_json([asdict(each) for each in done])
    else:
        rows = [{"id": str(each.job_id), "state": str(each.state)} for each in done]
        print_table(rows, if_none="No jobs.")
    missing = [each.job_id for each in done if each.state is CancelState.NOT_FOUND]
    end([f"not there: {listed(missing)}"] if missing else [])


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--state", type=click.Choice(RETRIED_STATES), help="All jobs in this state, instead of ids."
)
@click.option("--task", metavar="IDENTIFIER", help="Only jobs of this task.")
@click.option("--error", metavar="PATTERN", help="Only jobs with this last error, as 'timeout%'.")
@click.option(
    "--limit", type=int, default=1000, show_default=True, metavar="N", help="At most N jobs."
)
@changing
def retry(
    change: Change,
    ids: tuple[str, ...],
    state: str | None,
    task: str | None,
    error: str | None,
    limit: int,
) -> None:
    """Try failed jobs again: they get all their attempts, and are due now.

    Give ids, or --state with a filter. Running jobs are left alone.
    """
    if bool(ids) == (state is not None):
        raise click.UsageError("give the ids of jobs, or --state; not both")
    if ids and (task is not None or error is not None):
        raise click.UsageError("--task and --error need --state")
    what = plural(len(set(ids)), "job") if ids else f"up to {limit} jobs"
    if len(set(ids)) != 1:
        change.confirm(f"{what} will be tried again. Go on?")
    work, jobs = Work("Retrying", len(ids) or None), []
    with change.opened() as (utils, conn), showing(work, as_json=change.as_json):
        for some in work.chunks(ids):
            jobs += utils.retry_jobs(some, conn=conn)
        while not ids:
            most = min(CHUNK, limit - work.done)
            found = utils.retry_jobs(
                state=str(state), task=task, error=error, limit=most, conn=conn
            )
            jobs += found
            work.done = len(jobs)
            if not found or work.done >= limit:
                break
    if change.as_json:
        print_json([job_as_json(job) for job in jobs])
    else:
        print_table(job_rows(jobs), if_none="No jobs.", whole=JOB_KEYS)
        click.echo(change.done("retried", plural(len(jobs), "job")))
    left = sorted({int(each) for each in ids}.difference(job.id for job in jobs))
    end([f"running, or not there: {listed(left)}; left alone"] if left else [])
