"""Which jobs a test expects, and how other jobs differ from that."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypedDict, Unpack

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import TaskName
from graphile_worker_py.sql.inspect import ListedJob

NOT_GIVEN: Final[Any] = object()
"""Stands for a payload that may be anything."""


class Expected(TypedDict, total=False):
    """What a job is expected to have; `None` means that it has no such value."""

    queue_name: str | None
    priority: int
    max_attempts: int
    job_key: str | None
    flags: list[str] | None
    run_at: Any
    state: str


class Wanted:
    """The jobs that a test expects.

    Args:
        task: Their task, or its identifier.
        payload: What their payload contains: of objects, the given keys. Values that JSON does not
            have, such as `unittest.mock.ANY`, are compared with `==`.
        expected: Further values, compared with `==`.

    Raises:
        ConfigurationError: A value has an unknown name.
    """

    def __init__(
        self,
        task: str | TaskName[Any],
        payload: Any = NOT_GIVEN,
        **expected: Unpack[Expected],
    ) -> None:
        unknown = set(expected) - set(Expected.__annotations__)
        if unknown:
            raise ConfigurationError(
                f"{min(unknown)!r} is not compared; what is: "
                f"{', '.join(sorted(Expected.__annotations__))}"
            )
        self.identifier = task.identifier if isinstance(task, TaskName) else task
        self._payload = NOT_GIVEN if payload is NOT_GIVEN else _as_json(payload)
        self._expected = expected

    def differences(self, job: ListedJob) -> list[str]:
        """How a job of the task differs; empty if it is one of the wanted jobs."""
        found: list[str] = []
        if self._payload is not NOT_GIVEN:
            found += _differences("payload", job.payload, self._payload)
        for name, wanted in self._expected.items():
            actual = _value_of(job, name)
            if actual != wanted:
                found.append(f"{name} is {actual!r}, not {wanted!r}")
        return found

    def __str__(self) -> str:
        said = [f"{name}={value!r}" for name, value in self._expected.items()]
        if self._payload is not NOT_GIVEN:
            said.insert(0, f"payload {self._payload!r}")
        return " and ".join([f"task {self.identifier!r}", *said])


def _value_of(job: ListedJob, name: str) -> Any:
    match name:
        case "job_key":
            return job.key
        case "flags":
            return None if job.flags is None else list(job.flags)
        case "state":
            return str(job.state)
    return getattr(job, name)


def _as_json(value: Any) -> Any:
    """A value as it is after a round trip through JSON; what JSON does not have stays."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    try:
        return json_codec.loads(json_codec.dumps(value))
    except ValueError:
        return value


def _differences(place: str, actual: Any, wanted: Any) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(actual, dict):
        for key, value in wanted.items():
            if key in actual:
                yield from _differences(f"{place}.{key}", actual[key], value)
            else:
                yield f"{place}.{key} is missing"
    elif isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        for place_in, (one, other) in enumerate(zip(actual, wanted, strict=True)):
            yield from _differences(f"{place}[{place_in}]", one, other)
    elif (
        isinstance(wanted, bool) is not isinstance(actual, bool) and isinstance(wanted, int | float)
    ) or actual != wanted:
        yield f"{place} is {actual!r}, not {wanted!r}"
