"""The `health` command: check a worker or the database."""

import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import Any, Final

import click
from psycopg.errors import InsufficientPrivilege

from graphile_worker_py.checks import check_seconds
from graphile_worker_py.cli.database import opened_utils
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import about_unserved, print_json, print_table
from graphile_worker_py.clock import shortened
from graphile_worker_py.sql.backlog import Backlog, RegisteredPool
from graphile_worker_py.sync_worker_utils import SyncWorkerUtils

PATIENCE: Final = 5.0
"""Seconds to wait for a worker's answer."""


@click.command()
@database_options
@click.option("--url", metavar="URL", help="Check the worker that answers probes at this address.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Check the worker that answers probes on this port of this machine.",
)
@click.option(
    "--max-age",
    type=float,
    metavar="S",
    help="Fail if a job has been due for more than this number of seconds.",
)
@json_option
@told_clearly()
def health(
    connection: str | None,
    schema: str | None,
    url: str | None,
    port: int | None,
    max_age: float | None,
    as_json: bool,
) -> None:
    """Check a worker or the database; the exit code is 1 if there is a problem.

    --url or --port check a running worker that was started with --health-port. Otherwise the
    database is checked: whether the schema is installed, which jobs are due, and which locks are so
    old that no worker seems to release them.
    """
    if url is not None and port is not None:
        raise click.UsageError("--url and --port exclude each other")
    if max_age is not None:
        check_seconds("--max-age", max_age)
    if port is not None:
        url = f"http://127.0.0.1:{port}"
    if url is not None:
        told, troubles = _ask_worker(url)
    else:
        with opened_utils(connection, schema) as utils:
            told, troubles = _ask_database(utils, max_age)
    if as_json:
        print_json({**told, "troubles": troubles})
    else:
        _print(told)
        for trouble in troubles:
            click.echo(f"Trouble: {trouble}", err=True)
    if troubles:
        sys.exit(EXIT_FAILURE)


def _ask_worker(url: str) -> tuple[dict[str, Any], list[str]]:
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--url must start with http:// or https://, not {url!r}")
    page = f"{url.rstrip('/').removesuffix('/healthz')}/healthz"
    try:
        told = _read(page)
    except urllib.error.URLError as error:
        exit_with(f"{page}: {error.reason}", EXIT_FAILURE)
    except (http.client.InvalidURL, ValueError) as error:
        raise click.UsageError(f"--url {url!r} is not an address: {error}") from error
    except (OSError, http.client.HTTPException) as error:  # from any program that answers there
        exit_with(f"{page}: {type(error).__name__}: {str(error).strip()}", EXIT_FAILURE)
    try:
        said = json.loads(told)
    except ValueError:
        said = None
    if not isinstance(said, dict) or "state" not in said:
        exit_with(f"{page} is not the page of a worker", EXIT_FAILURE)
    if said.get("ready"):
        return said, []
    error_told = said.get("last_error")
    return said, [f"not ready ({said['state']})" + (f"; {error_told}" if error_told else "")]


def _read(page: str) -> bytes:
    # Proxies of the environment are not meant for this.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = opener.open(page, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        answer = error
        if error.code != 503:
            error.close()
            exit_with(f"{page}: {error.code} {error.reason}", EXIT_FAILURE)
    with answer:
        told: bytes = answer.read()
    return told


def _ask_database(
    utils: SyncWorkerUtils, max_age: float | None
) -> tuple[dict[str, Any], list[str]]:
    backlog = utils.backlog()
    pools = utils.pools()
    told = {**asdict(backlog), "pools": None if pools is None else list(map(asdict, pools))}
    unserved = utils.unserved_tasks()
    told["unserved_tasks"] = list(unserved)
    troubles = [*_stale(utils, backlog, pools), *_overdue(utils, backlog, pools, max_age)]
    troubles += _future_runs(utils)
    return told, [*troubles, *_absent(pools or ()), *about_unserved(unserved)]


def _stale(
    utils: SyncWorkerUtils, backlog: Backlog, pools: list[RegisteredPool] | None
) -> list[str]:
    if not (backlog.stale_jobs or backlog.stale_queues):
        return []
    trouble = (
        f"{backlog.stale_jobs} job(s) and {backlog.stale_queues} queue(s) have been locked for "
        f"more than four hours, and no worker has freed them"
    )
    job = None if backlog.oldest_stale_job is None else utils.get_job(backlog.oldest_stale_job)
    if job is not None:
        trouble += f": job {job.id} ({job.task_identifier}), locked by {job.locked_by}"
        if job.locked_by not in {pool.pool_id for pool in _living(pools)}:
            trouble += "; no live worker has it"
    return [trouble]


def _overdue(
    utils: SyncWorkerUtils,
    backlog: Backlog,
    pools: list[RegisteredPool] | None,
    max_age: float | None,
) -> list[str]:
    if max_age is None or backlog.oldest_due <= max_age:
        return []
    trouble = f"a job has been due for {shortened(backlog.oldest_due)}"
    job = None if backlog.oldest_due_job is None else utils.get_job(backlog.oldest_due_job)
    if job is not None:
        trouble += f": job {job.id} ({job.task_identifier})"
        if not any(job.task_identifier in (pool.tasks or ()) for pool in _living(pools)):
            trouble += "; no live worker has its task"
    return [trouble]


def _future_runs(utils: SyncWorkerUtils) -> list[str]:
    try:
        known = utils.known_crontabs()
    except InsufficientPrivilege:  # a role that only looks at jobs
        return []
    return [
        f"cron item {item.identifier!r} last ran at {item.last_execution:%Y-%m-%d %H:%M}Z, which "
        f"is in the future: a worker had a wrong clock. It does not run before then"
        for item in known
        if item.is_ahead
    ]


def _living(pools: list[RegisteredPool] | None) -> list[RegisteredPool]:
    return [pool for pool in pools or () if not pool.overdue]


def _absent(pools: list[RegisteredPool] | tuple[()]) -> list[str]:
    return [
        f"pool {pool.pool_id} (process {pool.pid} on {pool.host}) was last heard of "
        f"{shortened(pool.heartbeat_age)} ago"
        for pool in pools
        if pool.overdue
    ]


def _print(told: dict[str, Any]) -> None:
    pools = told.pop("pools", None)
    rows: list[dict[str, object]] = [
        {"what": name.replace("_", " "), "value": _shown(value)} for name, value in told.items()
    ]
    if pools is not None:
        rows.append({"what": "pools", "value": len(pools)})
    print_table(rows, if_none="Nothing.")


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return shortened(value) if isinstance(value, float) else value
