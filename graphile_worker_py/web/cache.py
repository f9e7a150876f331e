"""Answers that many requests share: one statement feeds all tabs."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from graphile_worker_py.postgres.query import Steps

T = TypeVar("T")
MOST: Final = 200
"""How many answers are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact(Generic[T]):
    """Something that many requests want to know.

    Attributes:
        key: Its name.
        shared: Seconds that requests share it.
        steps: Makes the steps that read it.
    """

    key: Hashable
    shared: float
    steps: Callable[[], Steps[T]]


class Cache:
    """Keeps the result of each call for some seconds; calls that run at once share one result."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._turns: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, seconds: float, load: Callable[[], Awaitable[T]]) -> T:
        """The result of `load`, at most some seconds old."""
        if not self._has(key):
            async with self._turn(key):
                if not self._has(key):
                    result = await load()
                    self.keep(key, seconds, result)
                    return result
        return self._kept[key][1]  # type: ignore[no-any-return]

    def keep(self, key: Hashable, seconds: float, result: Any) -> None:
        """Keep a result for some seconds."""
        self._kept[key] = asyncio.get_running_loop().time() + seconds, result
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)

    @asynccontextmanager
    async def missing(self, *facts: Fact[Any]) -> AsyncIterator[list[Fact[Any]]]:
        """Those of some facts that are not kept; nobody else loads them within the block."""
        stale = {repr(each.key): each for each in facts if not self._has(each.key)}
        async with AsyncExitStack() as stack:
            for name in sorted(stale):  # in one order, so that two requests can't block each other
                await stack.enter_async_context(self._turn(stale[name].key))
            yield [each for each in stale.values() if not self._has(each.key)]

    def _has(self, key: Hashable) -> bool:
        kept = self._kept.get(key)
        return kept is not None and kept[0] > asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _turn(self, key: Hashable) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with turn:
                yield
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    def clear(self) -> None:
        """Forget everything, after a change."""
        self._kept.clear()
