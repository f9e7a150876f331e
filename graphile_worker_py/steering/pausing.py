"""The steps of pausing and resuming, for programs with and without an event loop."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from graphile_worker_py.checks import (
    MAX_IDENTIFIER_LENGTH,
    check_aware,
    check_flag,
    check_text,
    similar,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import MAX_QUEUE_NAME_LENGTH
from graphile_worker_py.postgres.query import Steps, Transaction
from graphile_worker_py.sql import known_names, quiet_pools
from graphile_worker_py.sql import pauses as statements
from graphile_worker_py.sql.backlog import read_pools
from graphile_worker_py.sql.pauses import Pause, PauseTarget
from graphile_worker_py.sql.side_tables import reading

_LONGEST: Final = {
    PauseTarget.TASK: MAX_IDENTIFIER_LENGTH,
    PauseTarget.QUEUE: MAX_QUEUE_NAME_LENGTH,
}


def pause(
    worker_schema: str,
    targets: Mapping[str, object],
    *,
    reason: str | None,
    until: datetime | None,
    by: str | None,
) -> Steps[Pause]:
    """Pause one thing; `targets` has a value for each kind, of which one is given."""
    target, name = chosen(targets)
    if reason is not None:
        check_text("reason", reason)
    if by is not None:
        check_text("by", by, shortest=1)
    if until is not None:
        check_aware("until", until)
    now = yield from reading(worker_schema, "pauses", "changes", right="insert")
    if until is not None and until <= now:
        raise ConfigurationError(
            f"until {until.isoformat()} is in the past; it is {now.isoformat(timespec='seconds')}"
        )
    if target is PauseTarget.POOL:
        yield from _check_pool(worker_schema, name)
    notice = yield from _unknown(target, name)
    made: Pause = yield statements.pause(
        worker_schema, target, name, reason=reason, by=by, until=until
    )
    return replace(made, notice=notice)


def _unknown(target: PauseTarget, name: str) -> Steps[str | None]:
    """That there is no such task or queue yet, as after a slip of the keyboard."""
    if target is PauseTarget.QUEUE:
        if (yield known_names.has_queue(name)):
            return None
        return f"no job has had the queue {name!r} so far"
    if target is not PauseTarget.TASK:
        return None
    known: set[str] = yield known_names.read_task_identifiers()
    if name in known:
        return None
    close = similar(name, known)
    meant = "" if close is None else f"; did you mean {close!r}?"
    return f"no worker and no job has had the task {name!r} so far{meant}"


def resume(worker_schema: str, targets: Mapping[str, object]) -> Steps[Pause | None]:
    """End the pause of one thing; None if it is not paused."""
    target, name = chosen(targets)
    yield from reading(worker_schema, "pauses", "changes", right="insert")
    return (yield Transaction(_resume(worker_schema, target, name)))  # type: ignore[no-any-return]


def _resume(worker_schema: str, target: PauseTarget, name: str) -> Steps[Pause | None]:
    ended: Pause | None = yield statements.resume(worker_schema, target, name)
    if ended is not None and target is PauseTarget.QUEUE:
        yield statements.free_queues(worker_schema)
    return ended


def read(worker_schema: str) -> Steps[list[Pause]]:
    """Read all pauses."""
    yield from reading(worker_schema, "pauses")
    return (yield statements.read_pauses(worker_schema))  # type: ignore[no-any-return]


def chosen(targets: Mapping[str, object]) -> tuple[PauseTarget, str]:
    """The one thing that was given, and its name.

    Raises:
        ConfigurationError: None or several were given, or a name is not allowed.
    """
    check_flag("everything", targets["everything"])
    given = [name for name, value in targets.items() if value is not None and value is not False]
    if len(given) != 1:
        said = " and ".join(given) + " were" if given else "nothing was"
        raise ConfigurationError(
            f"{said} given; give exactly one of task, queue, pool and everything=True"
        )
    target = PauseTarget(given[0])
    if target is PauseTarget.EVERYTHING:
        return target, ""
    longest = _LONGEST.get(target)
    return target, check_text(target, targets[target], shortest=1, longest=longest)


def quiet(worker_schema: str, pool: object, *, everything: object) -> Steps[list[str]]:
    """Have pools fetch no more jobs; their ids."""
    check_flag("everything", everything)
    if (pool is None) == (everything is False):
        raise ConfigurationError("give either pool, a name or an id, or everything=True")
    name = None if pool is None else check_text("pool", pool, shortest=1)
    yield from reading(worker_schema, "pools", right="update")
    told: list[str] = yield quiet_pools.quiet(worker_schema, name)
    if name is not None and not told:
        yield from _check_pool(worker_schema, name)
    return told


def _check_pool(worker_schema: str, name: str) -> Steps[None]:
    yield from reading(worker_schema, "pools")
    known = {pool.name for pool in (yield read_pools(worker_schema)) if pool.name is not None}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(
            f"no worker pool of the name {name!r} is registered; names of pools are: {names}"
        )
