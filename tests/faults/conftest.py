"""Fixtures of the tests with real faults."""

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledger import Ledger
from tests.faults.scales import give_time, note, scale
from tests.faults.trial import Scale, Trial
from tests.support.processes import Process, Processes

__all__ = ["scale"]  # a fixture

ROOT = Path(__file__).parent.parent.parent

StartWorker = Callable[..., Process]
StartTrial = Callable[..., AbstractAsyncContextManager[Trial]]


@pytest.fixture
def ledger(dsn: str) -> Ledger:
    """The jobs of the test's database, and a record of their runs."""
    return Ledger(dsn)


@pytest.fixture
def start_worker(dsn: str, processes: Processes) -> StartWorker:
    """Start a worker process with the options of a runner; `at` is another connection string."""

    def start(*, at: str | None = None, **options: Any) -> Process:
        command = [sys.executable, "-m", "tests.faults.worker", at or dsn, json.dumps(options)]
        return processes.start(command, cwd=ROOT)

    return start


@pytest.fixture
def trial(scale: Scale, request: pytest.FixtureRequest) -> StartTrial:
    """Two pools under load, within a block; at its end all that must hold is checked."""

    @asynccontextmanager
    async def start(dsn: str, fault: str, **options: Any) -> AsyncIterator[Trial]:
        trial = Trial(dsn, fault=fault, scale=scale, **options)
        async with trial.under_load():
            yield trial
        trial.check()
        note(request, trial.figures())

    return start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give trials the time that they need."""
    give_time(config, items)
