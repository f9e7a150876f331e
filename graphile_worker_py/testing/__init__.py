"""Test tasks and the code that adds their jobs: what the pytest plugin's fixtures are made of."""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from graphile_worker_py.testing.clock import TestClock as TestClock
    from graphile_worker_py.testing.draining import Report as Report
    from graphile_worker_py.testing.kit import Kit as Kit
    from graphile_worker_py.testing.sync_kit import SyncKit as SyncKit

# pytest imports this package at each start: its modules are imported when a fixture is used.
_HOMES: Final = {"Kit": "kit", "Report": "draining", "SyncKit": "sync_kit", "TestClock": "clock"}

if not TYPE_CHECKING:  # type checkers know the names above and no others

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
