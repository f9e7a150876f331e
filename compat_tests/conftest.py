"""What the tests with workers of both languages share."""

from collections.abc import Iterator

import pytest

from compat_tests.fleet import LEDGER, Fleet
from tests.faults.scales import give_time, scale
from tests.support.node import Node
from tests.support.processes import Processes

__all__ = ["scale"]  # a fixture


@pytest.fixture
def fleet(dsn: str, node: Node, processes: Processes) -> Iterator[Fleet]:
    """Workers of both languages on the test's database, which has a ledger of their jobs."""
    fleet = Fleet(dsn, node, processes)
    fleet.query(LEDGER)
    yield fleet
    fleet.connection.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give trials the time that they need."""
    give_time(config, items)
