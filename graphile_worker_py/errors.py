"""Every exception that this package raises; psycopg's errors pass through unwrapped."""

from collections.abc import Sequence


class GraphileWorkerError(Exception):
    """Base of every error that this package raises itself."""


class ConfigurationError(GraphileWorkerError, ValueError):
    """A setting or argument has a value that is not allowed.

    The message names the setting, its value and what is allowed.
    """


class CrontabError(ConfigurationError):
    """A crontab line or cron item could not be understood.

    All faults of a crontab are reported at once: `errors` holds one error for each, and the
    error that is raised shows them all and has line and column of the first.

    Attributes:
        line: 1-based line number in the crontab; None for items made in code.
        column: 1-based column of the offending text; None where it has no single place.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        column: int | None = None,
        errors: Sequence["CrontabError"] = (),
    ) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self._errors = tuple(errors)

    @property
    def errors(self) -> tuple["CrontabError", ...]:
        """The single faults; this error itself if there is but one."""
        return self._errors or (self,)


class UnknownTaskError(GraphileWorkerError):
    """A job's task identifier has no task here."""


class MigrationError(GraphileWorkerError):
    """The schema could not be installed or upgraded."""


class IncompatibleSchemaError(MigrationError):
    """The schema in the database is of a revision that this release can't work on."""


class UnsupportedPostgresError(MigrationError):
    """The PostgreSQL server is older than the schema needs (12)."""


class WorkerPoolError(GraphileWorkerError):
    """The worker pool could not run on, or could not stop cleanly."""
