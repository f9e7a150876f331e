"""The commands that show what became of jobs that ended."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any, Final

import click

from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.moments import duration_callback, past_callback
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.clock import from_now, shortened, utc_now
from graphile_worker_py.sql.runs import JobRun, RunOutcome
from graphile_worker_py.sql.task_minutes import Percentiles, TaskStats

TABLE_LIMIT: Final = 50
RUN_KEYS: Final = ("ended", "job", "attempt", "outcome")
"""Columns of a table of runs that are not cut."""
_WHEN: Final = "ISO 8601, or how long ago as 1h."

_since_option = click.option(
    "--since", metavar="TIME", callback=past_callback, help=f"Ended since then: {_WHEN}"
)


@click.command()
@database_options
@click.option("--job", "job_id", metavar="ID", help="Attempts of this job.")
@click.option("--task", metavar="IDENTIFIER", help="Attempts of this task's jobs.")
@click.option(
    "--outcome", type=click.Choice([*map(str, RunOutcome)]), help="Attempts that ended this way."
)
@_since_option
@click.option("--until", metavar="TIME", callback=past_callback, help=f"Ended before then: {_WHEN}")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Maximum number of attempts. Default: {TABLE_LIMIT}; with --json, all.",
)
@click.option("--after", metavar="CURSOR", help="Go on after this cursor of the page before.")
@json_option
@told_clearly()
def runs(
    connection: str | None,
    schema: str | None,
    as_json: bool,
    limit: int | None,
    **filters: Any,
) -> None:
    """List attempts of jobs that ended, the newest first."""
    if limit is None and not as_json:
        limit = TABLE_LIMIT
    with opened_utils(connection, schema) as utils:
        found = utils.list_runs(limit=limit, **filters)
    if as_json:
        print_json([run_as_json(run) for run in found])
        return
    print_table(run_rows(found), if_none="No attempts.", whole=RUN_KEYS)
    if len(found) == limit:
        click.echo(f"Older ones: --after {found[-1].cursor}", err=True)


@click.command()
@database_options
@click.option("--task", metavar="IDENTIFIER", help="Only this task.")
@click.option(
    "--since",
    metavar="TIME",
    default="1h",
    show_default=True,
    callback=past_callback,
    help=f"Ended since then: {_WHEN}",
)
@click.option(
    "--step",
    metavar="TIME",
    callback=duration_callback,
    help="Show each step of this length, such as 5m. Default: all in one.",
)
@json_option
@told_clearly()
def stats(
    connection: str | None,
    schema: str | None,
    as_json: bool,
    task: str | None,
    since: datetime | timedelta,
    step: timedelta | None,
) -> None:
    """Count how the jobs of each task ended, how long they waited and ran."""
    seconds = None if step is None else step.total_seconds()
    with opened_utils(connection, schema) as utils:
        found = utils.task_stats(task, since=since, step=seconds)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [_stats_row(each, with_time=step is not None) for each in found]
    print_table(_without_zeros(rows), if_none="No job has ended.", whole=("at", "task"))


def run_as_json(run: JobRun) -> dict[str, Any]:
    """A run for `print_json`, with what can be derived from it."""
    columns = {each.name: getattr(run, each.name) for each in fields(run)}
    return {**columns, "wait": run.wait, "cursor": run.cursor}


def run_rows(found: Sequence[JobRun]) -> list[dict[str, object]]:
    """Runs as rows of a table."""
    now = utc_now()
    return [
        {
            "ended": from_now((run.finished_at - now).total_seconds()),
            "job": run.job_id,
            "task": run.task,
            "attempt": run.attempt,
            "outcome": str(run.outcome),
            "waited": None if run.wait is None else shortened(run.wait),
            "ran": None if run.duration is None else shortened(run.duration),
            "error": run.error
            if run.result_omitted is None
            else f"no result: {run.result_omitted}",
        }
        for run in found
    ]


_COUNTED: Final = ("completed", "failed", "retried", "discarded", "snoozed", "cancelled")


def _stats_row(each: TaskStats, *, with_time: bool) -> dict[str, object]:
    row: dict[str, object] = {"at": each.at} if with_time else {}
    row |= {"task": each.task, **{name: getattr(each, name) for name in _COUNTED}}
    return row | _times("wait", each.wait) | _times("run", each.run)


def _times(name: str, found: Percentiles | None) -> dict[str, object]:
    return {
        f"{name} {share}": None if found is None else shortened(getattr(found, share))
        for share in ("p50", "p95", "p99")
    }


def _without_zeros(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Leave out rare outcomes that no task has."""
    unused = {name for name in _COUNTED[3:] if all(row[name] == 0 for row in rows)}
    return [{name: value for name, value in row.items() if name not in unused} for row in rows]
