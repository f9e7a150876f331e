"""Wait for a condition with a deadline, never for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    check: Callable[[], Awaitable[T]], *, timeout: float = 10.0, interval: float = 0.01
) -> T: ...
@overload
async def eventually(
    check: Callable[[], T], *, timeout: float = 10.0, interval: float = 0.01
) -> T: ...
async def eventually(
    check: Callable[[], Any], *, timeout: float = 10.0, interval: float = 0.01
) -> Any:
    """Call `check` again and again until it returns something true; return that.

    Args:
        check: A function or coroutine function. Returning something false (None included) or
            raising AssertionError means not yet.
        timeout: Seconds until the wait fails with the last AssertionError or value; enough for a
            machine that has much else to do.
        interval: Seconds between two calls.
    """
    deadline = time.monotonic() + timeout
    while True:
        reason: AssertionError | None = None
        value = None
        try:
            answer = check()
            value = await answer if inspect.isawaitable(answer) else answer
        except AssertionError as error:
            reason = error
        else:
            if value:
                return value
        if time.monotonic() >= deadline:
            message = f"not so after {timeout} s: {reason or f'{check!r} returned {value!r}'}"
            raise AssertionError(message) from reason
        await asyncio.sleep(interval)
