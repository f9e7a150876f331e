"""Fixtures that several files of tests share."""

from collections.abc import AsyncIterator

import pytest

from graphile_worker_py import WorkerUtils
from tests.worker_utils_support import Api, Tables


@pytest.fixture(params=["async", "sync"])
def api(request: pytest.FixtureRequest) -> Api:
    """The form of WorkerUtils: each test that uses it runs for both."""
    return Api(request.param)


@pytest.fixture
async def utils(api: Api, dsn: str) -> AsyncIterator[WorkerUtils]:
    """WorkerUtils on the test's database; the blocking form can be awaited, too."""
    async with api.opened(dsn) as utils:
        yield utils


@pytest.fixture
def tables(dsn: str) -> Tables:
    """The tables of the test's database."""
    return Tables(dsn)
