"""The `run` command: a worker in a process of its own."""

import asyncio
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import click

from graphile_worker_py import aio, config
from graphile_worker_py.commands.errors import (
    EXIT_FAILURE,
    EXIT_INCOMPATIBLE_WHILE_RUNNING,
    exit_with,
    told_clearly,
)
from graphile_worker_py.commands.logs import configure_logging
from graphile_worker_py.commands.options import configuration_options
from graphile_worker_py.db import one_line
from graphile_worker_py.errors import ConfigurationError, IncompatibleSchemaError
from graphile_worker_py.events import ForcefulShutdown
from graphile_worker_py.options import LOG_FORMATS, LOG_LEVELS
from graphile_worker_py.runner import Runner, RunnerOptions, run_migrations
from graphile_worker_py.runner import run_once as library_run_once
from graphile_worker_py.task_loader import watch_tasks
from graphile_worker_py.tasks import Task, Tasks

logger = logging.getLogger("graphile_worker_py")


@click.command()
@configuration_options
@click.option(
    "-j",
    "--jobs",
    "concurrent_jobs",
    type=int,
    metavar="N",
    help="Jobs to run at the same time (1).",
)
@click.option(
    "-m", "--max-pool-size", type=int, metavar="N", help="Most database connections (10)."
)
@click.option(
    "--poll-interval", type=float, metavar="S", help="Seconds between looks for due jobs (2)."
)
@click.option("--tasks", metavar="MODULE[:ATTR]", help="Tasks in a Python module.")
@click.option(
    "--task-directory", metavar="DIR", help="Tasks in a folder (./tasks if there is one)."
)
@click.option(
    "--crontab", "crontab_file", metavar="FILE", help="Recurring jobs (./crontab if there is one)."
)
@click.option("--watch", is_flag=True, help="Reload the task directory when it changes.")
@click.option("--once", is_flag=True, help="End when no job is due.")
@click.option("--schema-only", is_flag=True, help="Install or upgrade the schema, and end.")
@click.option(
    "--forbidden-flag",
    "forbidden_flags",
    multiple=True,
    metavar="F",
    help="Leave jobs with this flag to others.",
)
@click.option(
    "--prepared-statements/--no-prepared-statements",
    default=None,
    help="Off for poolers that can't do them (on).",
)
@click.option(
    "--local-queue-size", type=int, metavar="N", help="Fetch jobs N at a time, ahead of need."
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    help="Lines for people, or for machines (text).",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="What is worth a line (info).")
def run(
    config_file: str | None,
    watch: bool,
    once: bool,
    schema_only: bool,
    forbidden_flags: tuple[str, ...],
    local_queue_size: int | None,
    **flags: Any,
) -> None:
    """Run jobs until SIGINT or SIGTERM.

    The first signal lets running jobs finish, a second one cuts them off and gives them back.
    `config show` tells the value of each option; those without a flag here are set in a file or
    the environment.
    """
    if once + schema_only + watch > 1:
        raise click.UsageError("--once, --schema-only and --watch exclude each other")
    flags["forbidden_flags"] = list(forbidden_flags) or None
    flags["local_queue.size"] = local_queue_size
    with told_clearly():
        settings = config.read_settings(flags, file=config_file)
        configure_logging(
            json=settings["log_format"].value == "json", level=settings["log_level"].value
        )
        connection: str | None = settings["connection"].value
        if schema_only:
            run_in_loop(run_migrations(connection, schema=settings["schema"].value))
            click.echo("Schema updated")
            return
        options = _runner_options(settings)
        if once:
            run_in_loop(library_run_once(connection, **options))
        elif watch:
            run_in_loop(_run_watching(connection, options))
        else:
            run_in_loop(_run_until_stopped(connection, options))


def _runner_options(settings: Mapping[str, config.Setting]) -> RunnerOptions:
    # Names and types were checked where the values were read.
    options = cast(RunnerOptions, config.runner_values(settings))
    options["logger"] = logger
    options["schema"] = settings["schema"].value
    options["hooks"] = settings["hooks"].value
    options["crontab_file"] = settings["crontab_file"].value
    if settings["tasks"].value is not None:
        options["tasks"] = import_tasks(settings["tasks"].value)
    elif settings["task_directory"].value is not None:
        options["task_directory"] = settings["task_directory"].value
    else:
        raise ConfigurationError(
            "no tasks: give --tasks MODULE[:ATTR] or --task-directory DIR, or make a folder ./tasks"
        )
    return options


async def _run_watching(connection: str | None, options: RunnerOptions) -> None:
    """Run, and begin anew with the new tasks whenever a file of the task directory changes."""
    directory = options.pop("task_directory", None)
    if directory is None:
        raise ConfigurationError("--watch needs a task directory: give --task-directory DIR")
    async with aclosing(watch_tasks(directory, logger=logger)) as versions:
        options["tasks"] = await anext(versions)
        changed = asyncio.Event()

        async def watch() -> None:
            options["tasks"] = await anext(versions)
            changed.set()

        while True:
            crew = aio.Crew()
            crew.start(watch(), name="watch")
            try:
                await _run_until_stopped(connection, options, changed)
            finally:
                await crew.cancel(patience=1)
            if not changed.is_set():
                return
            changed.clear()


async def _run_until_stopped(
    connection: str | None, options: RunnerOptions, changed: asyncio.Event | None = None
) -> None:
    """Run until a signal comes, or until it is set that something has changed."""
    forced = False

    def by_force(_event: ForcefulShutdown) -> None:
        nonlocal forced
        forced = True

    started = False
    try:
        async with Runner(connection, **options) as runner:
            started = True
            runner.events.subscribe(ForcefulShutdown, by_force)
            logger.info(
                "Working as %s on %s",
                runner.pool_id,
                runner.about,
                extra={"pool_id": runner.pool_id},
            )
            async with aio.until(changed or asyncio.Event()):
                await runner.wait()
    except IncompatibleSchemaError as error:
        if not started:
            raise
        exit_with(str(error), EXIT_INCOMPATIBLE_WHILE_RUNNING)
    finally:
        if forced:
            # All is recorded that can be. A task that ignores its cancellation would keep an
            # orderly exit waiting for ever.
            logging.shutdown()
            os._exit(EXIT_FAILURE)


def import_tasks(where: str) -> Tasks:
    """Tasks of a module: those of an attribute (a list, a mapping or one task), or all it has.

    Raises:
        ConfigurationError: There is no such module or attribute, or it holds no tasks.
    """
    module_name, _, attribute = where.partition(":")
    # As `python -m` does it: what lies in the working directory can be imported.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"--tasks {where}: {one_line(error)}") from error
        raise ConfigurationError(f"--tasks {where}: there is no module {error.name!r}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigurationError(
            f"--tasks {where}: {one_line(error)} ({place.filename}, line {place.lineno})"
        ) from error
    if not attribute:
        found = {id(value): value for value in vars(module).values() if isinstance(value, Task)}
        if not found:
            raise ConfigurationError(f"--tasks {where}: the module has no @task functions")
        return list(found.values())
    try:
        tasks: Any = getattr(module, attribute)
    except AttributeError as error:
        raise ConfigurationError(
            f"--tasks {where}: module {module_name!r} has no attribute {attribute!r}"
        ) from error
    return [tasks] if isinstance(tasks, Task) else tasks


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, on uvloop where that is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as loop:
        loop.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
