"""The `run` command: a worker in a process of its own, or several of them."""

import logging
import os
import sys
from typing import Any, Final, NoReturn

import click

from graphile_worker_py import config
from graphile_worker_py.checks import AUTO, HIGHEST_PORT
from graphile_worker_py.cli.exits import EXIT_INCOMPATIBLE_WHILE_RUNNING, told_clearly
from graphile_worker_py.cli.logs import configure_logging
from graphile_worker_py.cli.other_flags import SuggestingCommand, check_connection
from graphile_worker_py.cli.reading import reading_modules
from graphile_worker_py.cli.shared_options import (
    config_option,
    option_flags,
    read_settings,
    values_of_flags,
)
from graphile_worker_py.config import Setting
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options import OPTIONS
from graphile_worker_py.processes.cores import cores
from graphile_worker_py.processes.supervised import Supervised

logger = logging.getLogger("graphile_worker_py")

STDERR: Final = 2
"""The highest number of a standard stream."""


@click.command(cls=SuggestingCommand)
@option_flags(name for name, option in OPTIONS.items() if option.flags)
@config_option
@click.option("--watch", is_flag=True, help="Reload the task directory when it changes.")
@click.option("--once", is_flag=True, help="End when no job is due.")
@click.option("--schema-only", is_flag=True, help="Install or upgrade the schema, and end.")
@told_clearly()
def run(config_file: str | None, watch: bool, once: bool, schema_only: bool, **flags: Any) -> None:
    """Run jobs until SIGINT or SIGTERM.

    The first signal lets running jobs finish. A second one interrupts them and returns them to the
    database. Options without a flag are set in a file or in the environment; `config show` lists
    all options with their values.
    """
    _open_standard_streams()
    if once + schema_only + watch > 1:
        raise click.UsageError("--once, --schema-only and --watch exclude each other")
    check_connection(flags)
    process = Supervised.from_environment()
    settings = read_settings(values_of_flags(flags), config_file)
    configure_logging(
        json=settings["log_format"].value == "json",
        level=settings["log_level"].value,
        process=None if process is None else process.number,
    )
    if process is None:
        _warn_of_misspelt_variables()
        count = settings["processes"].value
        count = cores() if count == AUTO else count
        if count > 1 and not schema_only:
            _supervise(settings, count, once=once)
    # Only now: the supervisor of several processes needs none of these modules.
    with reading_modules():
        from graphile_worker_py.cli import work

    if schema_only:
        work.install(settings)
        click.echo("Schema updated")
    elif once:
        work.once(settings, process)
    elif watch:
        work.watching(settings, process)
    else:
        work.until_stopped(settings, process)


def _supervise(settings: dict[str, Setting], count: int, *, once: bool) -> NoReturn:
    """Start worker processes and end with their exit code, after checks that all would repeat."""
    config.runner_values(settings)  # which refuses values that do not fit together
    worker_id = settings["worker_id"].value
    if worker_id is not None:
        raise ConfigurationError(
            f"worker_id {worker_id!r} is for one worker, but processes is {count}; leave one of "
            f"them out"
        )
    _check_ports(settings["health_port"].value, count)
    # A single worker does not need this module.
    from graphile_worker_py.processes.siblings import Siblings
    from graphile_worker_py.processes.supervisor import Supervisor

    port, host = settings["health_port"].value, settings["health_host"].value
    if port:  # with 0, no process knows the ports of the others
        Siblings(host=host, first_port=port, count=count).name_to_processes()

    sys.exit(Supervisor(count, once=once, final=(EXIT_INCOMPATIBLE_WHILE_RUNNING,)).run())


def _open_standard_streams() -> None:
    """Open the standard streams that are closed, to the null device.

    Otherwise sockets would get their numbers, and the processes of tasks would write to them.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def _check_ports(first: int | None, count: int) -> None:
    if first and first + count - 1 > HIGHEST_PORT:
        raise ConfigurationError(
            f"health_port {first} leaves no port for each of {count} processes; it may be at most "
            f"{HIGHEST_PORT - count + 1}"
        )


def _warn_of_misspelt_variables() -> None:
    meant = config.misspelt_variables()
    if meant:
        logger.warning(
            "Not read: %s",
            ", ".join(f"{name} (did you mean {option}?)" for name, option in meant.items()),
        )
