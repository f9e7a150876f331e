"""The command that adds the jobs of a file: a JSON object a line, as in the API."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import click

from graphile_worker_py import json_codec
from graphile_worker_py.cli.admin import dry_run_option
from graphile_worker_py.cli.bulk import Work, showing
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.moments import parse_moment
from graphile_worker_py.cli.shared_options import adding_options, json_option
from graphile_worker_py.cli.tables import print_json
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils


@click.command()
@click.argument("file", type=click.File("rb"))
@adding_options
@dry_run_option
@json_option
@told_clearly()
def add_jobs(
    file: BinaryIO,
    connection: str | None,
    schema: str | None,
    use_node_time: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add the jobs of a FILE, all or none; - is standard input.

    Each line is a JSON object: {"task": "send_email", "payload": {...}}. It may also have
    queue_name, run_at, run_in (seconds), priority, max_attempts, job_key, job_key_mode and flags.
    """
    work = _work_on(file)
    with (
        SyncWorkerUtils(
            connection, schema=schema, max_pool_size=1, use_node_time=use_node_time
        ) as utils,
        utils.pool.connection() as conn,
        conn.transaction(force_rollback=dry_run),
        showing(work, as_json=as_json),
    ):
        added = utils.add_jobs_from(_specs(file, work), conn=conn)
    if as_json:
        print_json({"added": added})
    else:
        noun = "job" if added == 1 else "jobs"
        click.echo(f"{'Would have added' if dry_run else 'Added'} {added} {noun}.")


def _work_on(file: BinaryIO) -> Work:
    """The bytes of a file, of which only a regular one has a known number."""
    size = None
    with suppress(OSError):  # it is no file of the system
        about = os.fstat(file.fileno())
        size = about.st_size if stat.S_ISREG(about.st_mode) else None
    return Work("Bytes added", size)


def _specs(file: BinaryIO, work: Work) -> Iterator[JobSpec]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield _spec(json_codec.loads(line))
            except (ValueError, TypeError) as error:  # ConfigurationError is a ValueError
                raise ConfigurationError(f"line {number}: {error}") from error
        work.done += len(line)


def _spec(given: Any) -> JobSpec:
    if not isinstance(given, dict) or "task" not in given:
        raise ConfigurationError('must be an object such as {"task": "send_email"}')
    options = dict(given)
    task, run_at = options.pop("task"), options.get("run_at")
    if not isinstance(task, str):
        raise ConfigurationError(f"task must be text, not {task!r}")
    if isinstance(run_at, str):
        options["run_at"] = parse_moment(run_at)
    return JobSpec(task, options.pop("payload", None), **options)
