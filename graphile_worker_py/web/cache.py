"""Answers that many requests share: one statement feeds all tabs."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

T = TypeVar("T")
MOST: Final = 200
"""How many answers are kept."""


class Cache:
    """Keeps the result of each call for some seconds; calls that run at once share one result."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._turns: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, seconds: float, load: Callable[[], Awaitable[T]]) -> T:
        """The result of `load`, at most some seconds old."""
        now = asyncio.get_running_loop().time
        kept = self._kept.get(key)
        if kept is not None and kept[0] > now():
            return kept[1]  # type: ignore[no-any-return]
        turn = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with turn:
                kept = self._kept.get(key)
                if kept is not None and kept[0] > now():
                    return kept[1]  # type: ignore[no-any-return]
                result = await load()
                self._kept[key] = now() + seconds, result
                self._kept.move_to_end(key)
                while len(self._kept) > MOST:
                    self._kept.popitem(last=False)
                return result
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    def clear(self) -> None:
        """Forget everything, after a change."""
        self._kept.clear()
