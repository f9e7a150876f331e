"""What workers of other job queues call the flags of `run`, with what is written here."""

from typing import Any, Final

import click

_JOBS: Final = "--jobs N"
_TASKS: Final = "--tasks MODULE"
_LEVEL: Final = "--log-level LEVEL"
_CONNECTION: Final = "--connection DSN"
_PROCESSES: Final = "--processes N"
_QUEUES: Final = (
    "a worker runs the jobs of all queues; --pool NAME:N:TASK,… gives tasks a pool of their own"
)
_CRON: Final = "every worker schedules recurring jobs; --crontab FILE names them"
_RETIRE: Final = "a worker process is not replaced after a number of jobs; --help lists the flags"
_TASK_LIMIT: Final = "the time limit belongs to the task: @task(timeout=SECONDS)"

MEANT: Final = {
    "--concurrency": _JOBS,
    "--concurrent-jobs": _JOBS,
    "--max-jobs": _JOBS,
    "--threads": _JOBS,
    "-n": _JOBS,
    "--workers": _PROCESSES,
    "--num-workers": _PROCESSES,
    "--worker-count": _PROCESSES,
    "-w": _PROCESSES,
    "--app": _TASKS,
    "-A": _TASKS,
    "--module": _TASKS,
    "--include": _TASKS,
    "-I": _TASKS,
    "--loglevel": _LEVEL,
    "--logging-level": _LEVEL,
    "-l": _LEVEL,
    "--verbose": "--log-level debug",
    "-v": "--log-level debug",
    "--debug": "--log-level debug",
    "--quiet": "--log-level warning",
    "-q": f"--log-level warning; for queues: {_QUEUES}",
    "--url": _CONNECTION,
    "-u": _CONNECTION,
    "--broker": _CONNECTION,
    "-b": _CONNECTION,
    "--dsn": _CONNECTION,
    "--database-url": _CONNECTION,
    "--burst": "--once",
    "--no-wait": "--once",
    "--drain": "--once",
    "--queue": _QUEUES,
    "--queues": _QUEUES,
    "-Q": _QUEUES,
    "--beat": _CRON,
    "-B": _CRON,
    "--scheduler": _CRON,
    "--with-scheduler": _CRON,
    "--crontab-file": "--crontab FILE",
    "--cron": "--crontab FILE",
    "--autoreload": "--watch",
    "--reload": "--watch",
    "--poll": "--poll-interval SECONDS",
    "--polling-interval": "--poll-interval SECONDS",
    "--interval": "--poll-interval SECONDS",
    "--fetch-job-polling-interval": "--poll-interval SECONDS",
    "--pool-size": "--max-pool-size N",
    "--plugin": "--hook PLUGIN",
    "--prefetch-multiplier": "--local-queue-size N",
    "--max-tasks-per-child": _RETIRE,
    "--max-jobs-per-child": _RETIRE,
    "--time-limit": _TASK_LIMIT,
    "--soft-time-limit": _TASK_LIMIT,
    "--timeout": _TASK_LIMIT,
}
"""The answer to each flag; those that are ours but for their spelling are suggested by click."""


class SuggestingCommand(click.Command):
    """A command that answers flags of other workers with the meaning, not with the spelling."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and answer a flag that does not exist."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            meant = MEANT.get(name) or MEANT.get(_in_kebab_case(name))
            if meant is None:
                raise
            answer = f"No such option {name!r}: {_answer(meant)}"
            raise click.NoSuchOption(name, answer, ctx=error.ctx) from error


def check_connection(given: dict[str, Any]) -> None:
    """Refuse a number for `-c`, which other workers take for how many jobs run at once."""
    connection = given.get("connection")
    if isinstance(connection, str) and connection.isdecimal():
        raise click.UsageError(
            f"-c is --connection, and {connection!r} is no connection string; for "
            f"{connection} jobs at the same time, give --jobs {connection}"
        )


def _in_kebab_case(name: str) -> str:
    return "".join(f"-{each.lower()}" if each.isupper() else each for each in name)


def _answer(meant: str) -> str:
    return f"use {meant}" if meant.startswith("--") else meant
