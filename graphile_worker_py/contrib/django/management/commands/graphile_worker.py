"""`manage.py graphile_worker`: the command line, for the database and the tasks of the project."""

import argparse
import logging
import os
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, SystemCheckError

from graphile_worker_py.cli.main import main
from graphile_worker_py.contrib.django.connecting import connection_string
from graphile_worker_py.contrib.django.project import read_project
from graphile_worker_py.errors import ConfigurationError

TASKS: Final = "graphile_worker_py.contrib.django.worker_tasks:TASKS"
ABOUT: Final = ("--help", "-h", "--version")
DJANGOS: Final = ("--settings", "--pythonpath")
"""Options of `manage.py` itself, which has read them already."""


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """Run jobs, or look at them: `manage.py graphile_worker [run|jobs|…]`; `--help` lists all."""

    help = __doc__
    requires_system_checks = "__all__"

    def run_from_argv(self, argv: list[str]) -> None:
        """Take all arguments as the command line's."""
        try:
            self.check()
            self.call(argv[2:], f"{os.path.basename(argv[0])} {argv[1]}")  # noqa: PTH119  # a name
        except SystemCheckError as error:
            self.stderr.write(f"{error}")
            raise SystemExit(1) from error
        except CommandError as error:
            self.stderr.write(f"CommandError: {error}")
            raise SystemExit(1) from error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """For `call_command("graphile_worker", "jobs", …)`."""
        parser.add_argument("args", nargs="*")

    def handle(self, *args: str, **_options: Any) -> None:
        """Run a command."""
        self.call(list(args), "graphile_worker", standalone_mode=False)

    def call(self, args: list[str], name: str, **options: Any) -> None:
        """Call the command line with the connection, the schema and the tasks of the project."""
        try:
            project = read_project()
            # Not as a flag, because other users of the machine can see those.
            os.environ["DATABASE_URL"] = connection_string(project.database)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        os.environ["GRAPHILE_WORKER_SCHEMA"] = project.schema
        # So that the arguments of completed tasks are known to `get_result`.
        os.environ.setdefault("GRAPHILE_WORKER_HISTORY_PAYLOADS", "true")
        _log_once()
        main.main(_with_tasks(_without_djangos(args)), prog_name=name, **options)


def _log_once() -> None:
    """Leave the console to the command line's log, unless the project says what is logged.

    By default and with `DEBUG`, Django writes what its own loggers log, and passes it on.
    """
    logger = logging.getLogger("django")
    for handler in list(logger.handlers):
        if not settings.LOGGING and handler.name == "console":
            logger.removeHandler(handler)


def _without_djangos(args: list[str]) -> list[str]:
    kept: list[str] = []
    left = iter(args)
    for arg in left:
        if arg in DJANGOS:
            next(left, None)
        elif not arg.startswith(tuple(f"{option}=" for option in DJANGOS)):
            kept.append(arg)
    return kept


def _with_tasks(args: list[str]) -> list[str]:
    """The arguments, with the tasks of the project for `run`, which is the default command."""
    if args and args[0] != "run" and (args[0] in ABOUT or not args[0].startswith("-")):
        return args
    return ["run", "--tasks", TASKS, *(args[1:] if args[:1] == ["run"] else args)]
