"""Import modules without the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading_modules() -> Iterator[None]:
    """Turn garbage collection off in the block, and exclude its objects from later collections.

    Modules are never garbage. Scanning them during the imports and again at the end of the process
    takes a tenth to a quarter of the time of a short command (`jobs`: 215 ms instead of 190 ms).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
