"""Output: a table for people, or JSON for programs."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import orjson

from graphile_worker_py import json_codec
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.job import JOB_COLUMNS, Job
from graphile_worker_py.sql.inspect import ListedJob

WIDEST_CELL: Final = 60


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(json_codec.dumps(value))


def print_table(rows: Sequence[Mapping[str, object]], *, if_none: str) -> None:
    """Print rows that have the same columns; without rows, print `if_none`."""
    if not rows:
        click.echo(if_none)
        return
    cells = [{name: name for name in rows[0]}]
    cells += [{name: _cell(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(row[name]) for row in cells) for name in rows[0]}
    for row in cells:
        click.echo("  ".join(f"{row[name]:{width}}" for name, width in widths.items()).rstrip())


def print_job(job: ListedJob) -> None:
    """Print a job, a line for each field; nothing is shortened."""
    fields: dict[str, object] = {
        "id": job.id,
        "state": job.state,
        "task": job.task_identifier,
        "queue": job.queue_name,
        "key": job.key,
        "priority": job.priority,
        "run at": job.run_at,
        "attempts": f"{job.attempts}/{job.max_attempts}",
        "flags": ", ".join(sorted(job.flags)) if job.flags else None,
        "revision": job.revision,
        "created at": job.created_at,
        "updated at": job.updated_at,
        "locked at": job.locked_at,
        "locked by": job.locked_by,
        # The stored text, which keeps the digits of numbers.
        "payload": job.payload_json.decode(),
        "last error": job.last_error,
    }
    width = max(map(len, fields))
    for name, value in fields.items():
        first, *more = _text(value).split("\n")
        click.echo(f"{name:{width}}  {harmless(first)}".rstrip())
        for line in more:
            click.echo(f"{'':{width}}  {harmless(line)}".rstrip())


def about_unserved(tasks: Mapping[str, str | None]) -> list[str]:
    """A sentence for each task of due jobs that no pool has."""
    return [
        f"jobs of task {task!r} are due, and no live Python pool has it"
        + ("" if close is None else f": did you mean {close!r}?")
        for task, close in tasks.items()
    ]


def job_rows(jobs: Iterable[Job]) -> list[dict[str, object]]:
    """Jobs as rows of a table, without payloads."""
    return [_job_row(job) for job in jobs]


def _job_row(job: Job) -> dict[str, object]:
    row: dict[str, object] = {"id": job.id}
    if isinstance(job, ListedJob):
        row["state"] = job.state
    row["task"] = job.task_identifier
    if isinstance(job, ListedJob):
        row["queue"] = job.queue_name
    row |= {
        "key": job.key,
        "priority": job.priority,
        "run at": job.run_at,
        "attempts": f"{job.attempts}/{job.max_attempts}",
        "locked by": job.locked_by,
        "last error": job.last_error,
    }
    return row


def job_as_json(job: Job) -> dict[str, Any]:
    """A job's columns by name, for `print_json`.

    The payload is the stored text, which keeps the digits of numbers and may be JSON that Python
    can't decode.
    """
    names = [*JOB_COLUMNS, "task_identifier"]
    if isinstance(job, ListedJob):
        names += ["queue_name", "state"]
    columns = {name: getattr(job, name) for name in names if name != "payload"}
    return {**columns, "payload": orjson.Fragment(job.payload_json)}


def _cell(value: object) -> str:
    text = _text(value)
    if len(text) > WIDEST_CELL:
        text = text[: WIDEST_CELL - 1] + "…"
    return harmless(text)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)
