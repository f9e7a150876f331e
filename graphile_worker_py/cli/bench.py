"""The `bench` command: measure jobs on your own database."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import click

from graphile_worker_py import config
from graphile_worker_py.checks import check_schema, check_seconds
from graphile_worker_py.cli.exits import told_clearly
from graphile_worker_py.cli.shared_options import (
    config_option,
    json_option,
    option_flags,
    read_settings,
)
from graphile_worker_py.cli.tables import print_json, print_table
from graphile_worker_py.cli.work import run_in_loop
from graphile_worker_py.dev.bench import SCHEMA, Figure, Plan, measure
from graphile_worker_py.errors import ConfigurationError


@click.command()
@option_flags(["connection"])
@config_option
@click.option(
    "-s",
    "--schema",
    default=SCHEMA,
    show_default=True,
    metavar="NAME",
    help="Schema that is created for the run, and dropped; it must not exist.",
)
@click.option("--force", is_flag=True, help="Drop the schema that a killed `bench` left.")
@click.option(
    "--count",
    type=click.IntRange(100),
    default=Plan().jobs,
    show_default=True,
    metavar="N",
    help="Number of jobs to add and to run.",
)
@click.option(
    "-j",
    "--jobs",
    "concurrent_jobs",
    type=click.IntRange(1),
    default=Plan().concurrent_jobs,
    show_default=True,
    metavar="N",
    help="Number of jobs to run at the same time.",
)
@click.option(
    "--local-queue-size",
    type=click.IntRange(2),
    default=Plan().batch_size,
    show_default=True,
    metavar="N",
    help="Number of jobs to fetch at a time.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=Plan().seconds,
    show_default=True,
    metavar="S",
    help="Time limit of each run, in seconds.",
)
@json_option
@told_clearly()
def bench(
    connection: str | None,
    config_file: str | None,
    schema: str,
    force: bool,
    count: int,
    concurrent_jobs: int,
    local_queue_size: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure how fast jobs are added and run on your database.

    It creates a separate schema and drops it at the end. Your jobs are not touched, but the server
    is loaded, and the figures are only valid for a server that is otherwise idle.
    """
    settings = read_settings({"connection": connection}, config_file)
    if check_schema(schema) == settings["schema"].value:
        raise ConfigurationError(f"--schema {schema}: this is the schema of your jobs")
    check_seconds("--seconds", seconds)
    plan = Plan(
        jobs=count,
        concurrent_jobs=concurrent_jobs,
        batch_size=local_queue_size,
        singles=min(count, Plan().singles),
        seconds=seconds,
    )
    work = measure(
        config.conninfo(settings["connection"].value),
        plan,
        schema=schema,
        replace=force,
        tell=lambda title: click.echo(f"{title} …", err=True),
    )
    figures = _measured(work)
    if as_json:
        print_json({figure.name: _as_json(figure) for figure in figures})
    else:
        rows: list[dict[str, object]] = [
            {"measured": figure.title, "figure": _rounded(figure.value), "unit": figure.unit}
            for figure in figures
        ]
        print_table(rows, if_none="")


def _measured(work: Coroutine[Any, Any, list[Figure]]) -> list[Figure]:
    figures: list[Figure] = []

    async def run() -> None:
        _cancel_on_sigterm()
        figures.extend(await work)

    try:
        run_in_loop(run())
    except asyncio.CancelledError:
        raise click.Abort from None
    return figures


def _cancel_on_sigterm() -> None:
    """End as at Ctrl-C, so that the schema is dropped."""
    current = asyncio.current_task()
    if current is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)


def _as_json(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "unit": figure.unit}


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
