"""Output: a table for people, or JSON for programs."""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import orjson

from graphile_worker_py import json_codec
from graphile_worker_py.cli.text import harmless
from graphile_worker_py.clock import from_now, utc_now
from graphile_worker_py.job import JOB_COLUMNS, Job
from graphile_worker_py.sql.inspect import JobState, ListedJob

RETRYING: Final = "retrying"
"""Shown for a scheduled job whose last attempt failed."""
NARROWEST: Final = 8
"""Characters that a column keeps when a table is fitted into the terminal."""


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(json_codec.dumps(value))


def print_table(
    rows: Sequence[Mapping[str, object]], *, if_none: str, whole: Collection[str] = ()
) -> None:
    """Print rows that have the same columns; without rows, print `if_none`.

    A table that is wider than the terminal, or than 80 characters without one, is cut to fit.
    Columns in `whole` are not cut, because their values are typed or compared.
    """
    if not rows:
        click.echo(if_none)
        return
    cells = [{name: name for name in rows[0]}]
    cells += [{name: harmless(_text(value)) for name, value in row.items()} for row in rows]
    widths = {name: max(len(row[name]) for row in cells) for name in rows[0]}
    _fit(widths, [name for name in widths if name not in whole])
    for row in cells:
        shown = (f"{_cut(row[name], width):{width}}" for name, width in widths.items())
        click.echo("  ".join(shown).rstrip())


def _fit(widths: dict[str, int], names: Sequence[str]) -> None:
    """Narrow the widest of these columns until all columns fit."""
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
    for _ in range(excess):
        widest = max(names, key=lambda name: widths[name] - len(name) / 1000, default=None)
        if widest is None or widths[widest] <= max(NARROWEST, len(widest)):
            return
        widths[widest] -= 1


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def print_job(job: ListedJob) -> None:
    """Print a job, a line for each field; nothing is shortened."""
    now = utc_now()
    fields: dict[str, object] = {
        "id": job.id,
        "state": state_of(job),
        "task": job.task_identifier,
        "queue": job.queue_name,
        "key": job.key,
        "priority": job.priority,
        "run at": f"{_text(job.run_at)} ({relative(job.run_at, now)})",
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


JOB_KEYS: Final = ("id", "state", "run at", "attempts")
"""Columns of a table of jobs that are not cut."""


def job_rows(jobs: Iterable[Job]) -> list[dict[str, object]]:
    """Jobs as rows of a table, without payloads and without columns that would be empty."""
    now = utc_now()
    rows = [_job_row(job, now) for job in jobs]
    empty = {name for name in (rows[0] if rows else ()) if all(not row[name] for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _job_row(job: Job, now: datetime) -> dict[str, object]:
    row: dict[str, object] = {"id": job.id}
    if isinstance(job, ListedJob):
        row["state"] = state_of(job)
    row["task"] = job.task_identifier
    if isinstance(job, ListedJob):
        row["queue"] = job.queue_name
    return row | {
        "key": job.key,
        "priority": job.priority,
        "run at": relative(job.run_at, now),
        "attempts": f"{job.attempts}/{job.max_attempts}",
        "last error": job.last_error,
    }


def state_of(job: ListedJob) -> str:
    """The state of a job; `retrying` if it is scheduled because an attempt has failed."""
    is_retry = job.state is JobState.SCHEDULED and job.attempts > 0
    return RETRYING if is_retry else str(job.state)


def relative(moment: datetime | None, now: datetime) -> str | None:
    """A time as people say it: `in 3 s`, `18 min ago`."""
    return None if moment is None else from_now((moment - now).total_seconds())


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


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)
