"""Fixtures that several files of tests share."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

# The database of examples is for those who look for faults; a run is to depend on nothing but the
# code. Fixtures of functions are shared by all examples of a test, which is wanted.
settings.register_profile(
    "short",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("short"), max_examples=5000, derandomize=False
)


LONG_TIMEOUT = 900


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples are tried: many with `--long`."""
    settings.load_profile("long" if config.getoption("--long") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give many examples the time that they need."""
    if config.getoption("--long"):
        for item in items:
            if item.path.parent.name == "fuzz" or is_hypothesis_test(getattr(item, "obj", None)):
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT))


@pytest.fixture(params=["async", "sync"])
def api(request: pytest.FixtureRequest) -> Api:
    """Each of the two forms of WorkerUtils."""
    return Api(request.param)


@pytest.fixture
async def utils(api: Api, dsn: str) -> AsyncIterator[WorkerUtils]:
    """WorkerUtils on the test's database; the blocking form can be awaited, too."""
    async with api.opened(dsn) as utils:
        yield utils


@pytest.fixture
def stored(dsn: str) -> Jobs:
    """The jobs of the test's database."""
    return Jobs(dsn)
