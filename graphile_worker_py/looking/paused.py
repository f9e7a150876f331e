"""What is paused, as far as the role may read it, and which pauses keep a job from running."""

from collections.abc import Iterator, Sequence

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql.backlog import RegisteredPool
from graphile_worker_py.sql.pauses import Pause, PauseTarget, read_pauses
from graphile_worker_py.sql.side_tables import reading


def readable_pauses(schema: str) -> Steps[list[Pause]]:
    """Read what is paused; nothing where the table is missing, or the role may not read it."""
    try:
        yield from reading(schema, "pauses")
    except MissingTablesError:
        return []
    return (yield read_pauses(schema))  # type: ignore[no-any-return]


def pauses_of(
    task: str, pauses: Sequence[Pause], living: Sequence[RegisteredPool]
) -> Iterator[tuple[str, str]]:
    """The facts and remedies of pauses that keep jobs of a task from starting."""
    names = {pool.name for pool in living if task in (pool.tasks or ())}
    for pause in pauses:
        match pause.target:
            case PauseTarget.TASK if pause.name == task:
                flag = f"--task {pause.name}"
            case PauseTarget.POOL if names == {pause.name}:
                flag = f"--pool {pause.name}"
            case PauseTarget.EVERYTHING:
                flag = "--everything"
            case _:
                continue
        fact = f"{pause.what} is paused {pause.why} (which binds Python pools only)"
        yield fact, f"run `graphile-worker-py resume {flag}`"
