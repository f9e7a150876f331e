"""Errors as answers: problem documents (RFC 9457) for programs, pages for people."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg import errors
from starlette.exceptions import HTTPException

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError, MigrationError
from graphile_worker_py.postgres.masking import masked_text

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
MISSING: Final = (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedFunction)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one value of a request.

    Args:
        pointer: JSON pointer to it, or the name of the parameter or header.
        detail: What is wrong.
    """

    pointer: str
    detail: str


class ProblemError(HTTPException):
    """An answer that is an error.

    Args:
        status: The status.
        detail: What happened, and what to do.
        faults: The values that are wrong.
        headers: Further headers.
        more: Further members of the document.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(int(status), masked_text(detail), dict(headers or {}))
        self.status = status
        self.faults = list(faults)
        self.more = dict(more or {})

    @property
    def title(self) -> str:
        """The kind of the problem."""
        return self.status.phrase

    def document(self) -> bytes:
        """The problem as JSON."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
            **self.more,
        }
        if self.faults:
            document["errors"] = [
                {"pointer": fault.pointer, "detail": fault.detail} for fault in self.faults
            ]
        return json_codec.dumps(document)


def unavailable(detail: str, *, retry_after: int = 5) -> ProblemError:
    """The database can't do it now."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(retry_after)}
    )


def problem_of(error: BaseException) -> ProblemError:
    """The problem that an exception is."""
    match error:
        case ProblemError():
            return error
        case ConfigurationError():
            return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case MigrationError():
            return unavailable(str(error), retry_after=30)
        case GraphileWorkerError():
            return ProblemError(HTTPStatus.CONFLICT, str(error))
        case psycopg_pool.PoolTimeout() | psycopg_pool.TooManyRequests() | TimeoutError():
            return unavailable("the database did not answer in time, or is away; try again later")
        case psycopg.Error():
            return _of_database(error)
        case OSError():
            return unavailable("the database can't be reached; try again later")
    logger.error("A request failed", exc_info=error)
    return ProblemError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "an unexpected error, which is in the log of the web application",
    )


def _of_database(error: psycopg.Error) -> ProblemError:
    match error:
        case errors.ReadOnlySqlTransaction():
            return unavailable(
                "the database is read-only (a replica, or in maintenance), so nothing can change",
                retry_after=30,
            )
        case errors.QueryCanceled():
            return unavailable("the statement took too long and was cancelled; narrow the filter")
        case errors.InsufficientPrivilege():
            return ProblemError(
                HTTPStatus.FORBIDDEN,
                f"the role of the web application may not do this ({_said(error)}); the page about "
                f"security lists the grants",
            )
        case errors.LockNotAvailable():
            return ProblemError(HTTPStatus.CONFLICT, "another session has locked it; try again")
        case psycopg.DataError() | psycopg.IntegrityError():
            return ProblemError(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"the database refuses a value: {_said(error)}"
            )
    if isinstance(error, MISSING):
        return unavailable(
            f"the schema is missing or incomplete ({_said(error)}): run "
            f"`graphile-worker-py migrate`, or name the right schema",
            retry_after=30,
        )
    if isinstance(error, psycopg.OperationalError):
        return unavailable(f"the database is away or did not answer in time: {_said(error)}")
    logger.error("A statement failed", exc_info=error)
    return ProblemError(
        HTTPStatus.INTERNAL_SERVER_ERROR, f"the database refused a statement: {_said(error)}"
    )


def _said(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
