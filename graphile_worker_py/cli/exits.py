"""How a command fails: one clear line on stderr, and an exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import click

from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPATIBLE_WHILE_RUNNING: Final = 57


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

        exit_with(one_line(error), EXIT_FAILURE)


def exit_with(message: str, code: int) -> NoReturn:
    """End the process with a message on stderr; passwords are masked."""
    from graphile_worker_py.postgres.masking import masked_text

    click.echo(f"Error: {masked_text(message)}", err=True)
    sys.exit(code)


def _failures() -> tuple[type[Exception], ...]:
    # psycopg is large, and the supervisor of several processes does not need it. A process that has
    # not imported it can't receive its errors.
    driver = sys.modules.get("psycopg")
    return (OSError,) if driver is None else (OSError, driver.Error)
