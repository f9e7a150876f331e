"""The answer of a task to a batch job: one result for each item of its payload.

A promise in Node runs by itself, a coroutine in Python only if it is awaited. So an answer with
coroutines that belong to no item is not a success: their work was not done.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import (
    BatchJobError,
    GraphileWorkerError,
    TaskTimeoutError,
    presentable,
)
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze, decision_of
from graphile_worker_py.processes.interrupts import as_failure, is_ctrl_c

_PLAIN: Final = frozenset({str, int, float, bool, type(None), dict, list, tuple})
"""Checked first, which takes a tenth of the time: a task may return a million of them."""


class BatchAnswerError(GraphileWorkerError):
    """A task returned awaitables that can't be matched with the items of the payload."""


class Batch:
    """The items of a batch job, each with its result.

    Attributes:
        failures: What items have raised so far, by their places.
    """

    def __init__(self, payload_json: bytes, results: Sequence[Any]) -> None:
        self.failures: dict[int, BaseException] = {}
        self._payload_json = payload_json
        self._results = results
        self._unfinished = {
            at: result for at, result in enumerate(results) if inspect.isawaitable(result)
        }
        for at, result in enumerate(results):
            self._look_at(at, result)

    async def settle(self) -> None:
        """Await all awaitable results, at the same time."""
        try:
            async with asyncio.TaskGroup() as group:
                # Of a list, for an item may end as soon as its task is made (eager tasks).
                for at, result in list(self._unfinished.items()):
                    group.create_task(self._settle(at, result))
        finally:
            _drop(self._results)

    def failure_after(self, error: TaskTimeoutError) -> BaseException:
        """The failure of a batch whose unfinished items were cut off with this error."""
        for at in self._unfinished:
            if isinstance(self.failures.get(at), asyncio.CancelledError | None):
                self.failures[at] = error
        try:
            self.check()
        except Exception as failure:
            return failure
        return error

    def check(self) -> None:
        """Look for items that have failed. Discarded items are not tried again.

        Raises:
            BatchJobError: Some have failed. Its payload has their own JSON text, in which no
                number has lost digits.
        """
        failed = [at for at in sorted(self.failures) if not isinstance(self.failures[at], Discard)]
        if failed:
            errors = [_of_item(self.failures[at]) for at in failed]
            texts = json_codec.texts_of_items(self._payload_json)
            payload = f"[{','.join(texts[at] for at in failed)}]"
            raise BatchJobError(errors, payload, _longest_delay(errors))

    async def _settle(self, at: int, result: Awaitable[Any]) -> None:
        try:
            answer = await result
        except asyncio.CancelledError as cancelled:
            # If it was not the item's own, the group is cancelled: see `cut_off`.
            self.failures[at] = cancelled
            raise
        except KeyboardInterrupt as interrupt:
            if is_ctrl_c(interrupt):
                raise
            self.failures[at] = as_failure(interrupt)
        except BaseException as error:  # SystemExit included: it is the item's failure
            self.failures[at] = presentable(error)
        else:
            del self._unfinished[at]
            self._look_at(at, answer)

    def _look_at(self, at: int, answer: object) -> None:
        try:
            decision = decision_of(answer)
        except TypeError as error:
            self.failures[at] = error
            return
        if decision is not None:
            self.failures[at] = decision


def _of_item(error: BaseException) -> BaseException:
    """The error of an item; the items of a job can't be due at different times."""
    if isinstance(error, Snooze):
        return BatchAnswerError("an item of a batch job can't snooze: use RetryIn, or Discard")
    return error


def _longest_delay(errors: Iterable[BaseException]) -> float | datetime | None:
    """When a job is due again whose items asked for delays; None if none did."""
    now = utc_now()
    delays = [error.delay for error in errors if isinstance(error, RetryIn)]

    def seconds(delay: float | datetime) -> float:
        return (delay - now).total_seconds() if isinstance(delay, datetime) else delay

    return max(delays, key=seconds, default=None)


def batch_of(
    identifier: str, payload_json: bytes, answer: object, logger: logging.Logger
) -> Batch | None:
    """Read what a task returned.

    Args:
        identifier: Of the task.
        payload_json: As it is stored: the task may have changed the list that it was given.
        answer: What it returned.
        logger: Where to warn of a list of values that does not fit.

    Returns:
        The batch; None if the job is not a batch job, or the answer is not one to a batch.

    Raises:
        BatchAnswerError: There are awaitables in the answer that fit no items.
    """
    if not isinstance(answer, list | tuple):
        if _is_unbegun(answer):
            raise BatchAnswerError(
                f"task {identifier!r} returned a {type(answer).__name__}, which is not run: return "
                f"a list"
            )
        if _drop(_within(answer)):
            raise BatchAnswerError(
                f"task {identifier!r} returned awaitables in a {type(answer).__name__}, which "
                f"are not awaited: return a list with one result for each item of the payload"
            )
        return None
    items = json_codec.loads(payload_json)
    if isinstance(items, list) and len(items) == len(answer):
        return Batch(payload_json, answer)
    what = f"{len(items)} payload items" if isinstance(items, list) else "a payload that is no list"
    if _drop(answer):
        raise BatchAnswerError(
            f"task {identifier!r} returned {len(answer)} results for {what}, with awaitables among "
            f"them, which are not awaited: return one result for each item of a list, or await them"
        )
    if isinstance(items, list) and isinstance(answer, list):
        logger.warning(
            "Task %r returned %d results for %s; taken as success", identifier, len(answer), what
        )
    return None


def _is_unbegun(answer: object) -> bool:
    """Whether it is an iterator that would do its work only when it is iterated."""
    if isinstance(answer, GeneratorType):
        return inspect.getgeneratorstate(answer) == inspect.GEN_CREATED
    return isinstance(answer, AsyncGeneratorType | map)


def _within(answer: object) -> Iterable[Any]:
    if isinstance(answer, dict):
        return answer.values()
    return answer if isinstance(answer, set | frozenset) else ()


def _drop(results: Iterable[Any]) -> bool:
    """End awaitables that will not be awaited; returns whether there were any."""
    found = False
    for result in results:
        if type(result) not in _PLAIN and inspect.isawaitable(result):
            found = True
            if isinstance(result, asyncio.Task):
                result.cancel()
            elif (
                inspect.iscoroutine(result)
                and inspect.getcoroutinestate(result) == inspect.CORO_CREATED
            ):
                result.close()  # else Python warns that it was never awaited
    return found
