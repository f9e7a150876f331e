"""The `run` command: a worker in a process of its own, or several."""

import logging
import os
import sys
from typing import Any, Final

import click

from graphile_worker_py import config
from graphile_worker_py.checks import AUTO, HIGHEST_PORT
from graphile_worker_py.cli.exits import EXIT_INCOMPATIBLE_WHILE_RUNNING, told_clearly
from graphile_worker_py.cli.logs import configure_logging
from graphile_worker_py.cli.reading import reading_modules
from graphile_worker_py.cli.shared_options import configuration_options
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options import LOG_FORMATS, LOG_LEVELS
from graphile_worker_py.processes.cores import cores
from graphile_worker_py.processes.supervised import Supervised

logger = logging.getLogger("graphile_worker_py")

STDERR: Final = 2
"""The highest number of a standard stream."""


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
    "-P",
    "--processes",
    metavar="N",
    help="Processes that each run so many jobs; auto is one per core (1).",
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
    help="Prepare statements on the server (unless there is a pooler before it).",
)
@click.option(
    "--listen-connection-string",
    metavar="DSN",
    help="Direct connection to hear of new jobs on, where the others go through a pooler.",
)
@click.option(
    "--health-port", type=int, metavar="N", help="Answer probes over HTTP on this port (none)."
)
@click.option("--health-host", metavar="ADDRESS", help="And at this address (127.0.0.1).")
@click.option(
    "--no-side-schema",
    is_flag=True,
    default=None,
    help="Do not register worker pools in the schema graphile_worker_py.",
)
@click.option(
    "--use-node-time/--no-use-node-time",
    default=None,
    help="Take what is due by the clock of this process (the database's).",
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
    processes: str | None,
    forbidden_flags: tuple[str, ...],
    local_queue_size: int | None,
    **flags: Any,
) -> None:
    """Run jobs until SIGINT or SIGTERM.

    The first signal lets running jobs finish, a second one cuts them off and gives them back.
    `config show` tells the value of each option; those without a flag here are set in a file or
    the environment.
    """
    _open_standard_streams()
    if once + schema_only + watch > 1:
        raise click.UsageError("--once, --schema-only and --watch exclude each other")
    # What is no number is left for the check to refuse, or to accept.
    is_number = processes is not None and processes.isdecimal() and len(processes) < 20
    flags["processes"] = int(processes) if processes and is_number else processes
    flags["forbidden_flags"] = list(forbidden_flags) or None
    flags["local_queue.size"] = local_queue_size
    with told_clearly():
        process = Supervised.from_environment()
        settings = config.read_settings(flags, file=config_file)
        configure_logging(
            json=settings["log_format"].value == "json",
            level=settings["log_level"].value,
            process=None if process is None else process.number,
        )
        if process is None:
            _warn_of_passed_over()
        count = settings["processes"].value
        count = cores() if count == AUTO else count
        if count > 1 and process is None and not schema_only:
            config.runner_values(settings)  # which refuses what does not fit together
            if settings["worker_id"].value is not None:
                raise ConfigurationError(
                    f"worker_id {settings['worker_id'].value!r} is for one worker, but processes "
                    f"is {count}; leave one of them out"
                )
            _check_ports(settings["health_port"].value, count)
            final = (EXIT_INCOMPATIBLE_WHILE_RUNNING,)
            # A worker that has no others beside it does not need it.
            from graphile_worker_py.processes.supervisor import Supervisor

            sys.exit(Supervisor(count, once=once, final=final).run())
        # Now, for the parent of several processes needs nothing of all that.
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


def _open_standard_streams() -> None:
    """Open those that were closed when the process began, for nobody to read or write.

    Sockets would get their numbers else, and processes of tasks expect other things there.
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


def _warn_of_passed_over() -> None:
    meant = config.passed_over_variables()
    if meant:
        logger.warning(
            "Not read: %s",
            ", ".join(f"{name} (did you mean {option}?)" for name, option in meant.items()),
        )
