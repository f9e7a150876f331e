"""The limits of tasks: how many of their jobs run at once, and how many start in a time."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any, Final, TypeAlias

from graphile_worker_py.checks import (
    LARGEST_AMOUNT,
    check_seconds,
    check_text,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.records import Record

LONGEST_NAME: Final = 128
"""Characters of a limit's name."""
LONGEST_KEY: Final = 128
"""Characters of what tells jobs of a limit apart."""
FLAG_KEY: Final = "flag:"
"""With this a key begins that is found in the flags of jobs."""
MOST_KEYS: Final = 4
"""Limits with a key that a task may have."""
FULL_USE: Final = 0.25
"""A rate without `burst` may save up the starts of this many seconds."""
SLOWEST: Final = 1e-6
FASTEST: Final = 1e6
"""Starts a second that a rate may have, at least and at most."""


class ConcurrencyLimit(Record, kw_only=False):
    """At most this many jobs at once, in all Python worker pools of the schema together.

    Args:
        amount: Most jobs at once; 0 pauses the tasks.
        name: Tasks whose limits have one name share it. None means the identifier of the task, and
            with `key` the identifier, a colon and the key.
        key: Counts the jobs of each value apart: `"tenant"` is a field of the payload,
            `"customer.id"` a field of a field, and `"flag:tenant="` what follows `tenant=` in a
            flag of the job. Jobs without a value count together. None counts all jobs together.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    amount: int
    name: str | None = None
    key: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_whole("the amount of a ConcurrencyLimit", self.amount, smallest=0)
        _check_name("ConcurrencyLimit", self.name)
        if self.key is not None:
            _check_key(self.key)


class RateLimit(Record, kw_only=False):
    """At most this many starts in a time, in all Python worker pools of the schema together.

    Each attempt is a start, so retries count. In any `per` seconds there are at most
    `rate + burst` starts.

    Args:
        rate: Starts in `per` seconds, on average.
        per: Seconds.
        burst: Most starts at once after a quiet time. None means as many as come due in a quarter
            of a second, at least 1. With a small burst, a fast rate is not used fully.
        name: Tasks whose limits have one name share it; None means the identifier of the task.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    rate: float
    per: float = 1.0
    burst: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        rate: object = self.rate
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not is_number or not 0 < rate <= LARGEST_AMOUNT:  # type: ignore[operator]
            raise ConfigurationError(
                f"the rate of a RateLimit must be a number above 0, and finite, not {rate!r}; "
                f"ConcurrencyLimit(0) pauses a task"
            )
        check_seconds("per of a RateLimit", self.per, above_zero=True)
        if not SLOWEST <= self.rate / self.per <= FASTEST:
            raise ConfigurationError(
                f"a RateLimit must be between {SLOWEST:g} and {FASTEST:g} starts a second, not "
                f"{self.rate!r} in {self.per!r} s"
            )
        if self.burst is not None:
            check_whole("burst of a RateLimit", self.burst, smallest=1)
        _check_name("RateLimit", self.name)

    @property
    def most_at_once(self) -> int:
        """The burst, also where none was given."""
        if self.burst is not None:
            return self.burst
        return max(1, int(self.rate / self.per * FULL_USE))


class CircuitBreaker(Record, kw_only=False):
    """Start no jobs of a task for a time after too many of them failed in a short time.

    Then one job is let through: if it succeeds, all go on, and if it fails, all wait again. Each
    worker pool counts for itself; once one opens the breaker, it is open in all Python worker
    pools of the schema. `Discard`, `Snooze` and `RetryIn` are no failures. Jobs that fail while
    the breaker is open already are returned with their attempt.

    Args:
        name: Tasks whose breakers have one name share it.
        failures: The number of failures that opens the breaker, at least 1.
        window: Seconds; failures that are older do not count.
        open_for: Seconds until one job is let through.

    Raises:
        ConfigurationError: A value is not allowed.
    """

    name: str
    failures: int = 5
    window: float = 60.0
    open_for: float = 30.0

    def __post_init__(self) -> None:
        check_text("name of a CircuitBreaker", self.name, shortest=1, longest=LONGEST_NAME)
        check_whole("failures of a CircuitBreaker", self.failures, smallest=1)
        check_seconds("window of a CircuitBreaker", self.window, above_zero=True)
        check_seconds("open_for of a CircuitBreaker", self.open_for, above_zero=True)


TaskLimit: TypeAlias = ConcurrencyLimit | RateLimit
LIMITS: Final = (ConcurrencyLimit, RateLimit)


def check_limits(name: str, value: object) -> None:
    """Check the limits of a task: a list, with one of each kind and name."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise ConfigurationError(f"{name} must be a list of {_KINDS}, not {value!r}")
    seen: set[tuple[type, str | None, str | None]] = set()
    keyed = 0
    for each in value:
        if not isinstance(each, LIMITS):
            raise ConfigurationError(f"{name} must be a list of {_KINDS}; got {each!r}")
        key = key_of(each)
        keyed += key is not None
        kind = (type(each), each.name, key if each.name is None else None)
        if kind in seen:
            named = "without a name" if each.name is None else f"named {each.name!r}"
            raise ConfigurationError(f"{name} has two of {type(each).__name__} {named}")
        seen.add(kind)
    if keyed > MOST_KEYS:
        raise ConfigurationError(f"{name} may have {MOST_KEYS} limits with a key, not {keyed}")


_KINDS: Final = "ConcurrencyLimit(...) and RateLimit(...)"


def limits_of(identifier: str, limits: Iterable[TaskLimit]) -> list[tuple[str, TaskLimit]]:
    """The limits of a task with their names; one without a name has that of the task."""
    return [(each.name or _own_name(identifier, key_of(each)), each) for each in limits]


def key_of(limit: TaskLimit) -> str | None:
    """What a limit tells jobs apart by; None if it does not."""
    return limit.key if isinstance(limit, ConcurrencyLimit) else None


def _own_name(identifier: str, key: str | None) -> str:
    return identifier if key is None else f"{identifier}:{key}"


def check_agreement(settings: Iterable[tuple[str, Iterable[TaskLimit]]]) -> None:
    """Check that limits of one kind and name have the same values in all tasks.

    Args:
        settings: Identifier and limits of each task.

    Raises:
        ConfigurationError: Two tasks disagree.
    """
    known: dict[tuple[type, str], tuple[str, Any]] = {}
    for identifier, limits in settings:
        for name, limit in limits_of(identifier, limits):
            values = _values(limit)
            first, others = known.setdefault((type(limit), name), (identifier, values))
            if others != values:
                raise ConfigurationError(
                    f"tasks {first!r} and {identifier!r} have different settings of the "
                    f"{type(limit).__name__} {name!r}: {others} and {values}"
                )


def check_breakers(settings: Iterable[tuple[str, CircuitBreaker | None]]) -> None:
    """Check that breakers of one name have the same values in all tasks.

    Args:
        settings: Identifier and breaker of each task.

    Raises:
        ConfigurationError: Two tasks disagree.
    """
    known: dict[str, tuple[str, CircuitBreaker]] = {}
    for identifier, breaker in settings:
        if breaker is None:
            continue
        first, other = known.setdefault(breaker.name, (identifier, breaker))
        if other != breaker:
            raise ConfigurationError(
                f"tasks {first!r} and {identifier!r} have different settings of one breaker: "
                f"{other} and {breaker}"
            )


def _values(limit: TaskLimit) -> tuple[object, ...]:
    if isinstance(limit, ConcurrencyLimit):
        return (limit.amount,) if limit.key is None else (limit.amount, limit.key)
    return (limit.rate, limit.per, limit.most_at_once)


def _check_name(kind: str, name: object) -> None:
    if name is not None:
        check_text(f"name of a {kind}", name, shortest=1, longest=LONGEST_NAME)


def _check_key(key: object) -> None:
    what = "key of a ConcurrencyLimit"
    text = check_text(what, key, shortest=1, longest=LONGEST_KEY)
    if text == FLAG_KEY:
        raise ConfigurationError(f"{what} must name the flag, such as 'flag:tenant=', not {key!r}")
    if not text.startswith(FLAG_KEY) and not all(text.split(".")):
        raise ConfigurationError(
            f"{what} must be a field of the payload, such as 'tenant' or 'customer.id', or "
            f"'flag:' and how a flag begins, not {key!r}"
        )
