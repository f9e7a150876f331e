"""What a plugin keeps for each worker pool."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

T = TypeVar("T")


class PerPool(Generic[T]):
    """An object for each worker pool, which lives as long as the pool.

    Args:
        make: Makes it of a `WorkerPool`.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._of: WeakKeyDictionary[Any, T] = WeakKeyDictionary()
        self._by_id: WeakValueDictionary[str, T] = WeakValueDictionary()

    def of(self, pool: Any) -> T:
        """The object of a pool, made when it is first asked for."""
        found = self._of.get(pool)
        if found is None:
            found = self._of[pool] = self._by_id[pool.pool_id] = self._make(pool)
        return found

    def by_id(self, pool_id: str) -> T:
        """The object of the pool with this id, for which there is one."""
        return self._by_id[pool_id]
