"""How a job ends: one closed set of outcomes, and the one function that decides.

Every fetched job ends in exactly one of them. The worker asks `outcome_of`, the settler records.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from graphile_worker_py.errors import BatchJobError, CutOffError, message_of
from graphile_worker_py.job import Job


@dataclass(frozen=True, slots=True)
class Completed:
    """The job has succeeded; its row is deleted.

    Attributes:
        result: What the task returned.
    """

    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The attempt has failed; the job waits for its next attempt, if it has any left.

    Attributes:
        error: What the task raised.
        message: What `last_error` becomes.
        delay: Seconds until the next attempt; None means Graphile Worker's backoff.
        is_final: Whether this was the last attempt.
        payload: JSON text that replaces the payload, of a batch job that failed in part; None
            keeps it.
    """

    error: BaseException
    message: str
    delay: float | None = None
    is_final: bool
    payload: str | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The job was not run to an end; it is available again with its attempt.

    Attributes:
        reason: Why, for the event; None means that the pool is being stopped by force.
    """

    reason: str | None = None


Outcome: TypeAlias = Completed | Failed | Returned

Settled: TypeAlias = tuple[Job, Outcome, float, float]
"""A job, its outcome, when it ended (`time.perf_counter()`), and the seconds that it ran."""

NOTHING_RETURNED: Final = Completed()
"""The outcome of a task that returned None, which is nearly every one."""


def outcome_of(job: Job, *, returned: Any = None, raised: BaseException | None = None) -> Outcome:
    """Decide the outcome of a job from what its task returned or raised.

    An error that ends the worker's own waiting (a cancellation at a forced stop) does not come
    here: the pool returns such a job.
    """
    if raised is None:
        return NOTHING_RETURNED if returned is None else Completed(returned)
    if isinstance(raised, CutOffError):
        return Returned(str(raised))
    return Failed(
        error=raised,
        message=message_of(raised),
        is_final=job.attempts >= job.max_attempts,
        payload=raised.payload if isinstance(raised, BatchJobError) else None,
    )
