"""The command that tells whether all is well, of a worker or of the database."""

import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import Any, Final

import click

from graphile_worker_py.checks import check_seconds
from graphile_worker_py.cli.database import opened_database, registered_pools
from graphile_worker_py.cli.exits import EXIT_FAILURE, exit_with, told_clearly
from graphile_worker_py.cli.shared_options import database_options, json_option
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.sql.backlog import Backlog, RegisteredPool, read_backlog

PATIENCE: Final = 5.0
"""Seconds that a worker gets to answer."""


@click.command()
@database_options
@click.option("--url", metavar="URL", help="Ask the worker that answers probes there.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Ask the one on this port of this machine.",
)
@click.option(
    "--max-age", type=float, metavar="S", help="Fail if a job has been due for so many seconds."
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
    """Tell whether all is well; the exit code is 1 if not.

    With --url or --port a running worker is asked, one that was started with --health-port.
    Without, the database: whether the schema is there, what is due, and what has been locked for
    so long that no worker seems to look after it.
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
        with opened_database(connection, schema) as database:
            told, troubles = _ask_database(database, max_age)
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
        raise click.UsageError(f"--url {url!r} is no address: {error}") from error
    except (OSError, http.client.HTTPException) as error:  # whoever it is that answers there
        exit_with(f"{page}: {type(error).__name__}: {str(error).strip()}", EXIT_FAILURE)
    try:
        said = json.loads(told)
    except ValueError:
        said = None
    if not isinstance(said, dict) or "state" not in said:
        exit_with(f"{page} is not a page of a worker", EXIT_FAILURE)
    if said.get("ready"):
        return said, []
    error_told = said.get("last_error")
    return said, [f"not ready ({said['state']})" + (f"; {error_told}" if error_told else "")]


def _read(page: str) -> bytes:
    # Whatever proxy there is for the world outside, it is not meant for this.
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
    database: SyncDatabase, max_age: float | None
) -> tuple[dict[str, Any], list[str]]:
    backlog = database.run(read_backlog())
    pools = registered_pools(database)
    told = {**asdict(backlog), "pools": None if pools is None else list(map(asdict, pools))}
    return told, [*_troubles(backlog, max_age), *_absent(pools or ())]


def _troubles(backlog: Backlog, max_age: float | None) -> list[str]:
    troubles = []
    if backlog.stale_jobs or backlog.stale_queues:
        troubles.append(
            f"{backlog.stale_jobs} job(s) and {backlog.stale_queues} queue(s) have been locked for "
            f"more than four hours, and no worker has freed them"
        )
    if max_age is not None and backlog.oldest_due > max_age:
        troubles.append(f"a job has been due for {backlog.oldest_due:.0f} s")
    return troubles


def _absent(pools: list[RegisteredPool] | tuple[()]) -> list[str]:
    return [
        f"pool {pool.pool_id} (process {pool.pid} on {pool.host}) was last heard of "
        f"{pool.heartbeat_age:.0f} s ago"
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
    return round(value, 1) if isinstance(value, float) else value
