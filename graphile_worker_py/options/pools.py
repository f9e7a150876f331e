"""The worker pools of a runner that has several of them."""

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from graphile_worker_py.checks import check_identifier, check_is, check_texts
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.options import LocalQueueOptions, WorkerOptions
from graphile_worker_py.records import Record

DEFAULT_NAME: Final = "default"
"""The name of the pool of a runner that has one."""
OWN: Final = 2
"""Connections that a pool keeps to itself where there are enough; one more is common to all."""


class Pool(Record):
    """One of the worker pools of a runner. None means the runner's own option.

    Args:
        tasks: Identifiers of its tasks, or patterns such as `mail/*`; None means all tasks that no
            other pool has, which one pool may have.
        concurrent_jobs: Number of jobs that it runs at the same time.
        poll_interval: Seconds between looks for jobs that were not announced.
        forbidden_flags: It leaves jobs with one of these flags alone.
        local_queue: How it fetches ahead.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    tasks: Sequence[str] | None = None
    concurrent_jobs: int | None = None
    poll_interval: float | None = None
    forbidden_flags: Sequence[str] | None = None
    local_queue: LocalQueueOptions | None = None

    def __post_init__(self) -> None:
        if self.tasks is not None and not check_texts("tasks", self.tasks):
            raise ConfigurationError("tasks must name at least one task or pattern")
        checks = {each.name: each.metadata["check"] for each in fields(WorkerOptions)}
        for name, value in self.given().items():
            checks[name](name, value)

    def given(self) -> dict[str, Any]:
        """The options that differ from the runner's."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: v for name, v in values.items() if v is not None and name != "tasks"}


def pools_of(value: object, *, name: str = "pools") -> dict[str, Pool]:
    """The pools by their names; files give tables instead of objects.

    Raises:
        ConfigurationError: A name, a key or a value is not allowed.
    """
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(f"{name} must have a Pool for each name, not {value!r}")
    pools = {}
    for key, given in value.items():
        check_identifier(f"a name in {name}", key)
        try:
            pools[key] = _made(given)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}.{key}: {error}") from error
    return pools


def _made(given: object) -> Pool:
    if not isinstance(given, Mapping):
        check_is("it", given, Pool, how="Pool(...), or a table of its options in a file")
        assert isinstance(given, Pool)  # noqa: S101  # for type checkers
        return given
    known = [each.name for each in fields(Pool)]
    for key in given:
        if key not in known:
            raise ConfigurationError(f"unknown key {key!r}; keys are {', '.join(known)}")
    values = dict(given)
    if isinstance(values.get("local_queue"), Mapping):
        queue = [each.name for each in fields(LocalQueueOptions) if each.name != "refetch_delay"]
        for key in values["local_queue"]:
            if key not in queue:
                raise ConfigurationError(
                    f"unknown key {key!r} in local_queue; keys are {', '.join(queue)}"
                )
        values["local_queue"] = LocalQueueOptions(**values["local_queue"])
    return Pool(**values)


def divided(tasks: Collection[str], pools: Mapping[str, Pool]) -> dict[str, list[str]]:
    """The tasks of each pool.

    Raises:
        ConfigurationError: A task is in two pools or in none, a pattern matches no task, or several
            pools are to have the rest.
    """
    owners: dict[str, str] = {}
    for name, pool in pools.items():
        for pattern in pool.tasks or ():
            matched = fnmatch.filter(tasks, pattern) if _is_pattern(pattern) else [pattern]
            if not matched or not set(matched) <= set(tasks):
                raise _unknown(name, pattern, tasks)
            for task in matched:
                if owners.setdefault(task, name) != name:
                    raise ConfigurationError(
                        f"task {task!r} is in two pools, {owners[task]!r} and {name!r}: a task is "
                        f"in one pool"
                    )
    rest = [task for task in tasks if task not in owners]
    open_pools = [name for name, pool in pools.items() if pool.tasks is None]
    if len(open_pools) > 1:
        raise ConfigurationError(
            f"pools {' and '.join(map(repr, open_pools))} name no tasks; one pool may have all "
            f"tasks that no other pool has"
        )
    if rest and not open_pools:
        raise ConfigurationError(
            f"no pool has {'task' if len(rest) == 1 else 'tasks'} {', '.join(map(repr, rest))}; "
            f"add a pool without tasks, which has all that no other pool has"
        )
    if open_pools and not rest and len(pools) > 1:
        raise ConfigurationError(
            f"pool {open_pools[0]!r} has no task: other pools have all of them"
        )
    return {
        name: rest if pool.tasks is None else [task for task in tasks if owners.get(task) == name]
        for name, pool in pools.items()
    }


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _unknown(name: str, pattern: str, tasks: Collection[str]) -> ConfigurationError:
    import difflib  # noqa: PLC0415  # most runs make no mistake

    close = difflib.get_close_matches(pattern, sorted(tasks), n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"tasks are {', '.join(sorted(tasks))}"
    return ConfigurationError(
        f"pool {name!r} has {pattern!r}, which "
        f"{'matches no task' if _is_pattern(pattern) else 'is no task'}; {meant}"
    )


def pool_options(options: WorkerOptions, pools: Mapping[str, Pool]) -> dict[str, WorkerOptions]:
    """The options of each pool; they share the connections of the runner.

    Raises:
        ConfigurationError: There are too few connections, or the options allow one pool only.
    """
    most, number = options.max_pool_size, len(pools)
    if most <= number:
        raise ConfigurationError(
            f"max_pool_size {most} is too small for {number} pools, each of which needs a "
            f"connection; it must be at least {number + 1}"
        )
    if options.worker_id is not None and number > 1:
        raise ConfigurationError(
            f"worker_id {options.worker_id!r} is for one worker, but there are {number} pools"
        )
    own, common = min(OWN, (most - 1) // number), int(most > number * OWN + 1)
    share = own + common + max(1, (most - number * own - common) // number)
    return {
        name: replace(options, max_pool_size=share, **pool.given()) for name, pool in pools.items()
    }
