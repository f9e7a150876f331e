"""How a job ends: one closed set of outcomes, and the one function that decides.

Every fetched job ends in exactly one outcome. What a task returns or raises decides, together with
its retry policy. The worker asks `outcome_of`, the settler records.
"""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast

from graphile_worker_py.checks import LONGEST, check_aware, check_seconds, check_whole
from graphile_worker_py.errors import (
    BatchJobError,
    ConfigurationError,
    CutOffError,
    GraphileWorkerError,
    message_of,
    one_line,
    traceback_of,
)
from graphile_worker_py.job import Job
from graphile_worker_py.processes.interrupts import is_ctrl_c
from graphile_worker_py.records import Record

logger = logging.getLogger(__name__)

Delay: TypeAlias = float | timedelta | datetime
"""Seconds, a length of time, or an aware point in time."""
DelayFunction: TypeAlias = Callable[[int, BaseException], float]
"""Given the attempt (1 or more) and its error, returns the seconds until the next attempt."""

SHORTEST_SNOOZE: Final = 0.1
"""Seconds; a task that snoozes for less would keep its worker busy with nothing else."""


class RetryIn(GraphileWorkerError):  # noqa: N818  # users raise it as a decision
    """Fail this attempt, and try again after a time that the task chooses.

    Raise or return it. The attempt counts; after the last one the job has failed for good.

    Args:
        delay: Seconds, a `timedelta`, or an aware `datetime`.
        reason: Becomes `last_error`; None means a text with the delay.

    Raises:
        ConfigurationError: The delay is negative, not finite, naive, or too long.
    """

    def __init__(self, delay: Delay, reason: str | None = None) -> None:
        self.delay = checked_delay("RetryIn", delay)
        self.reason = None if reason is None else _checked_reason("RetryIn", reason)
        super().__init__(reason if reason is not None else f"retry in {delay}")


class Snooze(GraphileWorkerError):  # noqa: N818  # users raise it as a decision
    """Not now: return the job with its attempt, due again after a time that the task chooses.

    Raise or return it. It is not a failure: `last_error` stays as it is.

    Args:
        delay: Seconds, a `timedelta`, or an aware `datetime`; at least a tenth of a second.

    Raises:
        ConfigurationError: The delay is negative, not finite, naive, or too long.
    """

    def __init__(self, delay: Delay) -> None:
        self.delay = checked_delay("Snooze", delay)
        super().__init__(f"snoozed: {delay}")


class Discard(GraphileWorkerError):  # noqa: N818  # users raise it as a decision
    """Give up: the job is not tried again, and stays in the table as permanently failed.

    Raise or return it. It is not logged as an error.

    Args:
        reason: Becomes `last_error`.
    """

    def __init__(self, reason: str = "discarded") -> None:
        self.reason = _checked_reason("Discard", reason)
        super().__init__(reason)


def decision_of(returned: object) -> RetryIn | Snooze | Discard | None:
    """What a task has decided by returning it; None if that is no decision.

    A class stands for an object that is made without values, as it does for `raise`.

    Raises:
        TypeError: An object of the class can't be made without values.
    """
    if isinstance(returned, type) and issubclass(returned, RetryIn | Snooze | Discard):
        returned = cast("Callable[[], object]", returned)()
    return returned if isinstance(returned, RetryIn | Snooze | Discard) else None


def _checked_reason(name: str, reason: object) -> str:
    # Characters that can't be stored are escaped later: a decision must not fail on what a remote
    # service has answered.
    if not isinstance(reason, str):
        raise ConfigurationError(f"reason of {name} must be a string, not {reason!r}")
    return reason


def checked_delay(name: str, delay: object) -> float | datetime:
    """Check a delay; a `timedelta` becomes seconds, and a time in the past none.

    Raises:
        ConfigurationError: It is negative, not finite, naive, or too long.
    """
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, datetime):
        check_aware(f"delay of {name}", delay)
        ahead = (delay - datetime.now(UTC)).total_seconds()
        if ahead > LONGEST:
            raise ConfigurationError(
                f"delay of {name} must be at most {LONGEST:g} s from now, not {delay}"
            )
        return delay if ahead > 0 else 0.0
    return check_seconds(f"delay of {name}", delay)


def exponential(
    base: float = 1.0,
    factor: float = 2.0,
    max: float = 3600.0,  # noqa: A002  # the fixed name
    jitter: float = 0.1,
) -> DelayFunction:
    """Delays that grow with each attempt: `base`, `base * factor`, and so on, up to `max`.

    Args:
        base: Seconds after the first attempt.
        factor: Growth from one delay to the next, at least 1.
        max: Longest delay, in seconds.
        jitter: Largest part by which a delay is longer or shorter at random, 0 to 1.

    Raises:
        ConfigurationError: A value is out of range.
    """
    check_seconds("base of exponential", base)
    check_seconds("max of exponential", max)
    if not isinstance(factor, int | float) or not 1 <= factor < math.inf:
        raise ConfigurationError(f"factor of exponential must be at least 1, not {factor!r}")
    if not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise ConfigurationError(f"jitter of exponential must be 0 to 1, not {jitter!r}")

    def delay(attempt: int, _error: BaseException) -> float:
        try:
            raw = min(base * float(factor) ** (attempt - 1), max)
        except OverflowError:
            raw = max
        return raw * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311  # jitter, not a secret

    return delay


def fixed(seconds: float) -> DelayFunction:
    """The same delay after each attempt.

    Raises:
        ConfigurationError: It is negative or not finite.
    """
    checked = check_seconds("delay of fixed", seconds)
    return lambda _attempt, _error: checked


class RetryPolicy(Record):
    """What a failed attempt of a task leads to. It acts in the worker, wherever the job came from.

    Args:
        max_attempts: The job has failed for good after this many attempts; its own `max_attempts`
            counts too, if it is smaller. None means only the job's own.
        delay: Seconds until the next attempt, from the attempt and its error. None means Graphile
            Worker's: e to the power of the attempt, at most six hours.
        retry_on: Errors that are tried again; after any other error the job has failed for good.
            `Exception` stands for every error, a `SystemExit` of the task included.
        discard_on: Errors after which the job is discarded; they go before `retry_on`.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    max_attempts: int | None = None
    delay: DelayFunction | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    discard_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            check_whole("max_attempts of RetryPolicy", self.max_attempts, smallest=1)
        if self.delay is not None and not callable(self.delay):
            raise ConfigurationError(
                f"delay of RetryPolicy must be exponential(...), fixed(...) or a function of "
                f"attempt and error, not {self.delay!r}"
            )
        for name in ("retry_on", "discard_on"):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple) or not all(map(_is_error_class, kinds)):
                raise ConfigurationError(
                    f"{name} of RetryPolicy must be a tuple of exception classes, not {kinds!r}"
                )

    def retries(self, error: BaseException) -> bool:
        """Whether an error is tried again."""
        return Exception in self.retry_on or isinstance(error, self.retry_on)

    def delay_after(self, job: Job, error: BaseException) -> float | None:
        """Seconds until the next attempt; None means Graphile Worker's, also if `delay` fails."""
        if self.delay is None:
            return None
        try:
            return check_seconds("the delay", self.delay(job.attempts, error))
        except BaseException as failed:  # SystemExit included: it must not end the worker
            if isinstance(failed, KeyboardInterrupt) and is_ctrl_c(failed):
                raise
            logger.error(  # noqa: TRY400  # which may fail on the error
                "The retry policy of job %d (%s) gave no delay; using the default\n%s",
                job.id,
                job.task_identifier,
                traceback_of(failed),
            )
            return None


def _is_error_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


DEFAULT_POLICY: Final = RetryPolicy()
"""Graphile Worker's: every error is tried again, with growing delays, until attempts run out."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The job has succeeded; its row is deleted.

    Attributes:
        result: What the task returned.
    """

    result: Any = None


class Failed(Record):
    """The attempt has failed; the job waits for its next attempt, unless it is final.

    Attributes:
        error: What the task raised or returned.
        message: What `last_error` becomes.
        delay: Seconds until the next attempt, or when it is due; None means Graphile Worker's
            delay.
        is_final: Whether the job is not tried again.
        is_discarded: Whether the task or its policy gave up on purpose.
        payload: JSON text that replaces the payload, of a batch job that failed in part; None
            keeps it.
    """

    error: BaseException
    message: str
    delay: float | datetime | None = None
    is_final: bool
    is_discarded: bool = False
    payload: str | None = None


class Snoozed(Record, kw_only=False):
    """The job is available again, with its attempt, after a delay.

    Attributes:
        delay: Seconds until it is due, or when it is due.
    """

    delay: float | datetime


class Cancelled(Record, kw_only=False):
    """The job was cancelled while it ran; its row is deleted.

    Attributes:
        reason: Why; None if no reason was given.
    """

    reason: str | None = None


class Returned(Record, kw_only=False):
    """The job was not run to an end; it is available again with its attempt.

    Attributes:
        reason: Why, for the event; None means that the pool is being stopped by force.
    """

    reason: str | None = None


Outcome: TypeAlias = Completed | Failed | Snoozed | Cancelled | Returned

Settled: TypeAlias = tuple[Job, Outcome, float, float]
"""A job, its outcome, when it ended (`time.perf_counter()`), and the seconds that it ran."""

NOTHING_RETURNED: Final = Completed()
"""The outcome of a task that returned None, which is nearly every one."""


def outcome_of(
    job: Job,
    *,
    returned: Any = None,
    raised: BaseException | None = None,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> Outcome:
    """Decide the outcome of a job from what its task returned or raised.

    An error that ends the worker's own waiting (a cancellation at a forced stop) does not come
    here: the pool returns such a job.
    """
    if raised is None and returned is None:
        return NOTHING_RETURNED
    try:
        if raised is None:
            raised = decision_of(returned)
            if raised is None:
                return Completed(returned)
        return _of_raised(job, raised, policy)
    except BaseException as broken:  # what the class of a result or an error, or a policy, may do
        if isinstance(broken, KeyboardInterrupt) and is_ctrl_c(broken):
            raise
        raised = broken if raised is None else raised
        message = f"{message_of(raised)}\n(deciding about a retry failed: {one_line(broken)})"
        return Failed(error=raised, message=message, is_final=job.attempts >= job.max_attempts)


def _of_raised(job: Job, raised: BaseException, policy: RetryPolicy) -> Outcome:
    match raised:
        case CutOffError():
            return Returned(message_of(raised))
        case Snooze():
            return Snoozed(_not_too_short(checked_delay("Snooze", raised.delay)))
        case Discard():
            return _failed(raised, is_final=True, is_discarded=True)
        case RetryIn():
            is_final = job.attempts >= _most_attempts(job, policy)
            delay = checked_delay("RetryIn", raised.delay)
            return _failed(raised, is_final=is_final, delay=delay)
    return _of_error(job, raised, policy)


def _of_error(job: Job, error: BaseException, policy: RetryPolicy) -> Failed:
    payload, delay = None, None
    if isinstance(error, BatchJobError):
        payload, delay = error.payload, error.delay
    if isinstance(error, policy.discard_on):
        return _failed(error, is_final=True, is_discarded=True, payload=payload)
    is_final = job.attempts >= _most_attempts(job, policy) or not policy.retries(error)
    if delay is None and not is_final:
        delay = policy.delay_after(job, error)
    return _failed(error, is_final=is_final, delay=delay, payload=payload)


def _failed(error: BaseException, **about: Any) -> Failed:
    return Failed(error=error, message=message_of(error), **about)


def _most_attempts(job: Job, policy: RetryPolicy) -> int:
    if policy.max_attempts is None:
        return job.max_attempts
    return min(policy.max_attempts, job.max_attempts)


def _not_too_short(delay: float | datetime) -> float | datetime:
    return delay if isinstance(delay, datetime) else max(delay, SHORTEST_SNOOZE)
