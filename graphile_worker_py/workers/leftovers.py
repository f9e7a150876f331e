"""Keep what a job leaves in its asyncio task and its context from the next job.

A worker runs its jobs in one asyncio task, because a task for each job would cost two turns of the
event loop. What a job leaves there would reach the next one: values of context variables, and
whatever still refers to `asyncio.current_task()`, such as a timer that cancels it. After each job
the worker compares its task and its context with what they were at the start, which takes 0.2 µs
(measured on Python 3.11; a task for each job takes 3.7 µs, one with `eager_start` on 3.12 and 3.13
about 1.2 µs). If something is left, the worker goes on in a new task.
"""

import asyncio
from contextvars import copy_context
from sys import getrefcount
from weakref import getweakrefcount


class Leftovers:
    """Detects what jobs leave in the asyncio task that runs this."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a worker runs in one
        self._task = task
        del task  # it would count below
        self._variables = copy_context()
        self._weak_references = getweakrefcount(self._task)
        self._references = getrefcount(self._task)

    def exist(self) -> bool:
        """Whether the last job has left something."""
        try:
            return (
                getrefcount(self._task) != self._references
                or getweakrefcount(self._task) != self._weak_references
                or self._task.cancelling() > 0
                or copy_context() != self._variables
            )
        except Exception:  # what a value of a context variable does when it is compared
            return True
