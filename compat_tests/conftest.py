"""What the tests with workers of both languages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compat_tests.fleet import LEDGER, Fleet
from tests.faults.scales import give_time, scale
from tests.support.node import Node
from tests.support.processes import Processes

__all__ = ["scale"]  # a fixture

HERE = Path(__file__).parent
TIMEOUT = 60


@pytest.fixture
def fleet(dsn: str, node: Node, processes: Processes) -> Iterator[Fleet]:
    """Workers of both languages on the test's database, which has a ledger of their jobs."""
    fleet = Fleet(dsn, node, processes)
    fleet.query(LEDGER)
    yield fleet
    fleet.connection.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give trials the time that they need, and others that of the processes they start."""
    give_time(config, items)
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))
