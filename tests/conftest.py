"""Fixtures that several files of tests share."""

from collections.abc import AsyncIterator

import pytest

from graphile_worker_py import WorkerUtils
from tests.worker_utils_support import Api, Tables


@pytest.fixture
def api(installer: str) -> Api:
    """The form of WorkerUtils: async on a schema that Node installed, sync on one of ours.

    The statements are the same, so not each form has to meet each schema.
    """
    return Api("async" if installer == "node" else "sync")


@pytest.fixture
async def utils(api: Api, dsn: str) -> AsyncIterator[WorkerUtils]:
    """WorkerUtils on the test's database; the blocking form can be awaited, too."""
    async with api.opened(dsn) as utils:
        yield utils


@pytest.fixture
def tables(dsn: str) -> Tables:
    """The tables of the test's database."""
    return Tables(dsn)
