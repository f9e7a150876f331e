"""A job to be added, and the task that runs it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, Never, TypedDict, TypeVar

from graphile_worker_py import clock, json_codec
from graphile_worker_py.checks import (
    check_aware,
    check_flag,
    check_identifier,
    check_one_of,
    check_seconds,
    check_smallint,
    check_text,
    check_texts,
    unknown_word,
)
from graphile_worker_py.errors import ConfigurationError

MAX_QUEUE_NAME_LENGTH: Final = 128
MAX_JOB_KEY_LENGTH: Final = 512
DEFAULT_PRIORITY: Final = 0
DEFAULT_MAX_ATTEMPTS: Final = 25


class JobKeyMode(StrEnum):
    """What adding a job does when its `job_key` is taken, as Graphile Worker defines it."""

    REPLACE = "replace"
    """Overwrite the waiting job with that key, its `run_at` included. The default."""
    PRESERVE_RUN_AT = "preserve_run_at"
    """Overwrite it, but keep its `run_at` if it was not tried yet (a throttle, not a debounce)."""
    UNSAFE_DEDUPE = "unsafe_dedupe"
    """Keep the existing job as it is, even if it is running or has permanently failed."""


PayloadT = TypeVar("PayloadT")
PayloadT_contra = TypeVar("PayloadT_contra", contravariant=True)


class TaskName(Generic[PayloadT_contra]):
    """The identifier of a task and, for type checkers, the type of its payload.

    Every `Task` is one. For a task that runs elsewhere, for example in Node, make one:
    `TaskName[Invoice]("render_invoice")`.
    """

    def __init__(self, identifier: str) -> None:
        self.identifier = check_identifier("task identifier", identifier)

    def adding_defaults(self, payload: Any) -> Mapping[str, Any]:  # noqa: ARG002  # for tasks
        """The options that a job with this payload has by default; only a `Task` has some."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"


def _from_now(run_in: float | timedelta, run_at: datetime | None) -> datetime:
    if run_at is not None:
        raise ConfigurationError("run_at and run_in were both given; give one of them")
    seconds = run_in.total_seconds() if isinstance(run_in, timedelta) else run_in
    return clock.utc_now() + timedelta(seconds=check_seconds("run_in", seconds))


def _name_of(given: Any) -> Any:
    """The identifier of a task, or what was given in place of one."""
    if callable(given) and not hasattr(given, "identifier"):
        raise ConfigurationError(
            f"{getattr(given, '__name__', given)!r} is a function and no task: decorate it with "
            f"@task, or give the identifier of a task"
        )
    return getattr(given, "identifier", given)


class SpecOptions(TypedDict, total=False):
    """What a job may have in addition to task and payload; explained at `JobSpec`."""

    queue_name: str | None
    run_at: datetime | None
    run_in: float | timedelta | None
    priority: int | None
    max_attempts: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | str | None
    flags: Iterable[str] | None
    awaited: bool


@dataclass(frozen=True, slots=True, init=False)
class JobSpec:
    """A job to be added.

    Args:
        identifier: The task that runs it, or its name; at most 128 characters.
        payload: Any JSON value, or an object of a type that `json_codec.dumps` writes; None means
            an empty object, as in Graphile Worker.
        queue_name: Serial queue, at most 128 characters: its jobs run one after the other. None
            means no queue.
        run_at: The job does not run before this time, an aware datetime; None means now.
        run_in: The same as a length of time from now, in seconds or as a `timedelta`, by the
            clock of this process. Give only one of the two.
        priority: Smaller numbers run first, -32768 to 32767; None means 0.
        max_attempts: The job is permanently failed after this many failures, 1 to 32767; None
            means 25.
        job_key: 1 to 512 characters, unique over all tasks; None means no key.
        job_key_mode: What happens if the key is taken; None means `replace`.
        flags: Workers that forbid one of these flags do not fetch the job.
        awaited: Keep a record of how the job ends, whatever the workers' option `history` says, so
            that a handle's `wait` finds it, for a day. Needs the tables of history in the side
            schema.

    Where the identifier is a `Task`, what is not given is what the task has as default.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    identifier: str
    payload: Any
    queue_name: str | None
    run_at: datetime | None
    priority: int | None
    max_attempts: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | str | None
    flags: list[str] | None
    awaited: bool

    # Written out, so that type checkers compare the payload with the type that its task takes.
    def __init__(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        queue_name: str | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str | None = None,
        flags: Iterable[str] | None = None,
        *,
        run_in: float | timedelta | None = None,
        awaited: bool = False,
        **unknown: Never,
    ) -> None:
        for word in unknown:
            raise unknown_word(word, known=[*SpecOptions.__annotations__, "conn"])
        if isinstance(identifier, TaskName) and (default := identifier.adding_defaults(payload)):
            queue_name = default.get("queue_name") if queue_name is None else queue_name
            priority = default.get("priority") if priority is None else priority
            max_attempts = default.get("max_attempts") if max_attempts is None else max_attempts
            job_key = default.get("job_key") if job_key is None else job_key
            flags = default.get("flags") if flags is None else flags
        if run_in is not None:
            run_at = _from_now(run_in, run_at)
        put = object.__setattr__
        put(self, "identifier", identifier if isinstance(identifier, str) else _name_of(identifier))
        put(self, "payload", payload)
        put(self, "queue_name", queue_name)
        put(self, "run_at", run_at)
        put(self, "priority", priority)
        put(self, "max_attempts", max_attempts)
        put(self, "job_key", job_key)
        put(self, "job_key_mode", job_key_mode)
        put(self, "flags", flags)
        put(self, "awaited", awaited)
        self._check()

    def _check(self) -> None:
        put = object.__setattr__
        put(self, "identifier", check_identifier("identifier", self.identifier))
        if (queue := self.queue_name) is not None:
            put(self, "queue_name", check_text("queue_name", queue, longest=MAX_QUEUE_NAME_LENGTH))
        if self.run_at is not None:
            put(self, "run_at", check_aware("run_at", self.run_at))
        if self.priority is not None:
            put(self, "priority", check_smallint("priority", self.priority))
        if (most := self.max_attempts) is not None:
            put(self, "max_attempts", check_smallint("max_attempts", most, smallest=1))
        if (key := self.job_key) is not None:
            put(self, "job_key", check_text("job_key", key, shortest=1, longest=MAX_JOB_KEY_LENGTH))
        if self.job_key_mode is not None:
            if type(self.job_key_mode) is not JobKeyMode:
                put(self, "job_key_mode", check_text("job_key_mode", self.job_key_mode))
            check_one_of("job_key_mode", self.job_key_mode, allowed=JobKeyMode)
            if self.job_key is None:
                raise ConfigurationError(f"job_key_mode {str(self.job_key_mode)!r} needs a job_key")
        if self.flags is not None:
            put(self, "flags", check_texts("flags", self.flags))
        check_flag("awaited", self.awaited)

    def payload_json(self, *, nan_as_null: bool = False) -> str:
        """The payload as JSON text.

        Args:
            nan_as_null: Whether NaN and infinities become null, instead of being refused.

        Raises:
            ConfigurationError: The payload can't be written as JSON.
        """
        if self.payload is None:
            return "{}"
        dumps = json_codec.dumps if nan_as_null else json_codec.dumps_finite
        try:
            return dumps(self.payload).decode()
        except ValueError as error:
            raise ConfigurationError(f"payload of task {self.identifier!r} is {error}") from error
