"""Tasks in processes that ask for more than payload and context, for `test_injection.py`."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from graphile_worker_py import Inject, ProcessJobContext, Resource, State, task


@dataclass
class Files:
    """What `init` makes."""

    made_in: int = field(default_factory=os.getpid)


def init() -> State:
    """The setup of the program."""
    return State(Files())


def note(path: str, line: str) -> None:
    """Write a line into a file."""
    with Path(path).open("a") as file:
        print(line, file=file)


def opened(payload: Any, ctx: ProcessJobContext) -> Iterator[str]:
    """A plain factory."""
    note(payload["path"], "begin")
    yield f"of {ctx.job.task_identifier}"
    note(payload["path"], "end")


async def opened_on_loop(payload: Any) -> AsyncIterator[str]:
    """One that needs an event loop."""
    note(payload["path"], "begin")
    yield "on a loop"
    note(payload["path"], "end")


@task(executor="process")
def compute(
    payload: Any, ctx: Any, files: Resource[Files], opened: Annotated[str, Inject(opened)]
) -> None:
    """Use both."""
    assert files.made_in == os.getpid()
    note(payload["path"], opened)


@task(executor="process")
def compute_on_loop(payload: Any, *, opened: Annotated[str, Inject(opened_on_loop)]) -> None:
    """Use the other."""
    note(payload["path"], opened)
