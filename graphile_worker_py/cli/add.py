"""The commands that add a job, and install the schema."""

import sys
from datetime import datetime
from typing import Any

import click

from graphile_worker_py import config, json_codec
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.moments import moment_callback
from graphile_worker_py.cli.shared_options import adding_options, database_options, json_option
from graphile_worker_py.cli.tables import job_as_json, print_json
from graphile_worker_py.cli.work import run_in_loop
from graphile_worker_py.job.spec import JobKeyMode
from graphile_worker_py.runner import run_migrations
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils


@click.command()
@click.argument("identifier")
@click.argument("payload", required=False)
@adding_options
@click.option("--queue", metavar="NAME", help="Serial queue: its jobs run one at a time.")
@click.option("--key", metavar="KEY", help="Job key: replaces the waiting job that has it.")
@click.option(
    "--key-mode",
    type=click.Choice(list(map(str, JobKeyMode))),
    help="What happens if a job has the key already. Default: replace.",
)
@click.option(
    "--run-at",
    metavar="TIME",
    callback=moment_callback,
    help="Earliest time: ISO 8601, or from now as +10m. Default: now.",
)
@click.option("--priority", type=int, metavar="N", help="Lower values run first. Default: 0.")
@click.option("--max-attempts", type=int, metavar="N", help="Number of attempts. Default: 25.")
@click.option(
    "--flag",
    multiple=True,
    metavar="F",
    help="Flag of the job. Can be repeated.",
)
@json_option
@told_clearly()
def add_job(
    identifier: str,
    payload: str | None,
    connection: str | None,
    schema: str | None,
    use_node_time: bool,
    queue: str | None,
    key: str | None,
    key_mode: str | None,
    run_at: datetime | None,
    priority: int | None,
    max_attempts: int | None,
    flag: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add a job for the task IDENTIFIER.

    PAYLOAD is JSON; - reads it from standard input. Default: {}.
    """
    value = None if payload is None else _payload(payload)
    with SyncWorkerUtils(
        connection, schema=schema, max_pool_size=1, use_node_time=use_node_time
    ) as utils:
        job = utils.add_job(
            identifier,
            value,
            queue_name=queue,
            run_at=run_at,
            priority=priority,
            max_attempts=max_attempts,
            job_key=key,
            job_key_mode=key_mode,
            flags=flag or None,
        )
    if as_json:
        print_json(job_as_json(job))
    elif job.revision == 0:
        click.echo(f"Added job {job.id}.")
    else:
        click.echo(f"Job {job.id} had the key; it is now at revision {job.revision}.")


def _payload(text: str) -> Any:
    try:
        return json_codec.loads(sys.stdin.buffer.read() if text == "-" else text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="PAYLOAD") from error


@click.command()
@database_options
@click.option(
    "--side-schema",
    is_flag=True,
    help="Also install the schema graphile_worker_py, for workers whose role may not.",
)
@told_clearly()
def migrate(connection: str | None, schema: str | None, side_schema: bool) -> None:
    """Install or upgrade the schema."""
    run_in_loop(run_migrations(connection, schema=schema, side_schema=side_schema))
    with opened_utils(connection, schema) as utils:
        revision = utils.revision()
    click.echo(f"Schema {config.schema_name(schema)!r} is at revision {revision}.")
