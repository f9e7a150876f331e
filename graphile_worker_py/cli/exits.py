"""How a command fails: one clear line on stderr, and an exit code."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NoReturn

import click

from graphile_worker_py.config import Setting
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPATIBLE_WHILE_RUNNING: Final = 57
_CONNECTION: Final = "graphile_worker_py.connection"


@contextmanager
def told_clearly() -> Iterator[None]:
    """Turn the errors of this package and of psycopg into a line on stderr and an exit code.

    1 is a failure, 2 a value that is not allowed.
    """
    try:
        yield
    except ConfigurationError as error:
        exit_with(str(error), EXIT_USAGE)
    except GraphileWorkerError as error:
        exit_with(str(error), EXIT_FAILURE)
    except BrokenPipeError:
        raise  # the reader ended, as with `| head`: click ends quietly
    except _failures() as error:
        from graphile_worker_py.errors import one_line

        exit_with(_with_hint(one_line(error)), EXIT_FAILURE)


def exit_with(message: str, code: int) -> NoReturn:
    """End the process with a message on stderr; passwords are masked."""
    from graphile_worker_py.postgres.masking import masked_text

    click.echo(f"Error: {masked_text(message)}", err=True)
    sys.exit(code)


def note_settings(settings: Mapping[str, Setting]) -> None:
    """Remember for an error of the command whether a connection is configured."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_CONNECTION] = settings["connection"].value


def _with_hint(error: str) -> str:
    """An error, with what to do about it if no connection is configured for the command."""
    context = click.get_current_context(silent=True)
    has_own = any(name in os.environ for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGPORT"))
    if has_own or context is None or context.meta.get(_CONNECTION, "") is not None:
        return error
    return (
        "no connection given: set DATABASE_URL or --connection; for a server: "
        f"`graphile-worker-py postgres` ({error})"
    )


def _failures() -> tuple[type[Exception], ...]:
    # psycopg is large, and the supervisor of several processes does not need it. A process that has
    # not imported it can't receive its errors.
    driver = sys.modules.get("psycopg")
    return (OSError,) if driver is None else (OSError, driver.Error)
