"""The pytest plugin: fixtures for tests of tasks and of the code that adds jobs.

pytest imports it at each start, so it imports nothing else of the package before a fixture is used.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from graphile_worker_py.testing import Kit, SyncKit, TestClock
    from graphile_worker_py.testing.server import TestDatabases


@pytest.fixture(scope="session")
def gw_server_dsn() -> str | None:
    """The server of the test run; None means an embedded one. Override it in `conftest.py`."""
    return os.environ.get("GRAPHILE_WORKER_TEST_DSN") or None


@pytest.fixture(scope="session")
def gw_databases(gw_server_dsn: str | None) -> "Iterator[TestDatabases]":
    """The databases of the test run, on the server of `gw_server_dsn`."""
    from graphile_worker_py.testing.server import opened_databases  # noqa: PLC0415  # see above

    with opened_databases(gw_server_dsn) as databases:
        yield databases


@pytest.fixture
def gw_dsn(gw_databases: "TestDatabases") -> Iterator[str]:
    """The connection string of the test's database, which has the schema `graphile_worker`."""
    dsn = gw_databases.create()
    yield dsn
    gw_databases.drop(dsn)


@pytest.fixture
def gw_tasks() -> Any:
    """The tasks that `drain` and `inline` use; override it in `conftest.py`."""
    return None


@pytest.fixture
def gw_clock() -> "TestClock":
    """The clock of the test: `gw_clock.travel(days=3)`."""
    from graphile_worker_py.testing import TestClock  # noqa: PLC0415  # see above

    return TestClock()


@pytest.fixture
def gw(gw_dsn: str, gw_tasks: Any, gw_clock: "TestClock") -> "Kit":
    """Looks for jobs and runs tasks, in tests with an event loop."""
    from graphile_worker_py.testing import Kit  # noqa: PLC0415  # see above

    return Kit(gw_dsn, tasks=gw_tasks, clock=gw_clock)


@pytest.fixture
def gw_sync(gw_dsn: str, gw_tasks: Any, gw_clock: "TestClock") -> "Iterator[SyncKit]":
    """The same for plain tests."""
    from graphile_worker_py.testing import SyncKit  # noqa: PLC0415  # see above

    with SyncKit(gw_dsn, tasks=gw_tasks, clock=gw_clock) as kit:
        yield kit
