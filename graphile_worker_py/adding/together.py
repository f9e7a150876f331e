"""Which calls of `add_job` can share a statement, what is sent for them, and what they are told."""

import copy
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

import psycopg
from psycopg import errors

from graphile_worker_py.adding.pairing import needed_names, paired
from graphile_worker_py.adding.statements import CHUNK_LENGTH
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobKeyMode, JobSpec
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql import add_jobs as sql

MOST: Final = 200
"""Most jobs of several callers that one statement adds."""
PATIENCE: Final = 0.1
"""Seconds for which calls wait for the statement before theirs: it may be waiting for a lock."""


class Single:
    """A job that is to be added by a call of `add_job`.

    Args:
        spec: The job.
        payload: Its payload as JSON text.
    """

    __slots__ = ("payload", "spec")

    def __init__(self, spec: JobSpec, payload: str) -> None:
        self.spec = spec
        self.payload = payload


SingleT = TypeVar("SingleT", bound=Single)


def can_share(spec: JobSpec) -> bool:
    """Whether a job can be added by the statement that adds others."""
    return not spec.awaited and spec.job_key_mode != JobKeyMode.UNSAFE_DEDUPE


def take(waiting: deque[SingleT]) -> list[SingleT]:
    """Remove from the front what one statement adds.

    It ends before a key that it has, so that one addition comes after the other; and before
    another mode, because modes count for the whole statement.
    """
    taken: list[SingleT] = []
    keys: set[str] = set()
    mode: bool | None = None
    length = 0
    while waiting and len(taken) < MOST:
        spec = waiting[0].spec
        length += len(waiting[0].payload)
        if taken and length > CHUNK_LENGTH:
            break
        if spec.job_key is not None:
            preserves = spec.job_key_mode == JobKeyMode.PRESERVE_RUN_AT
            if spec.job_key in keys or mode not in {None, preserves}:
                break
            keys.add(spec.job_key)
            mode = preserves
        taken.append(waiting.popleft())
    return taken


def add_together(singles: Sequence[Single]) -> Steps[list[Job | None]]:
    """Add jobs that share a statement; None for one whose key was being fetched at that moment."""
    # In the order of their keys: statements that share keys lock them in one order.
    order = sorted(range(len(singles)), key=lambda at: singles[at].spec.job_key or "")
    specs = [singles[at].spec for at in order]
    payloads = [singles[at].payload for at in order]
    preserves = any(spec.job_key_mode == JobKeyMode.PRESERVE_RUN_AT for spec in specs)
    rows = yield sql.add_jobs_of_several(specs, payloads, preserve_run_at=preserves)
    names = needed_names(specs, payloads)
    if names is not None:
        try:
            names = yield names
        except psycopg.Error as error:
            # Without a code, because nothing may be added again.
            raise psycopg.OperationalError(
                f"the job was added, but can't be read back: {error}"
            ) from error
    found = dict(zip(order, paired(specs, payloads, rows, names), strict=True))
    return [found[at] for at in range(len(singles))]


def was_refused(error: Exception) -> bool:
    """Whether the server refused a shared statement, so that each job must be added by itself.

    Nothing was added then. After an outage it may have been.
    """
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return False
    return isinstance(error, errors.LockNotAvailable | errors.QueryCanceled) or not is_outage(error)


def share_of(error: Exception) -> Exception:
    """An error of a shared statement for one of its callers: each raises one of its own."""
    share = copy.copy(error)
    share.__cause__ = error
    return share
