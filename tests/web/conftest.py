"""The application, served for real."""

from collections.abc import AsyncIterator

import httpx
import pytest

from graphile_worker_py.web import Access, create_app
from tests.web.serving import client_of, served


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A program that may do everything."""
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    async with served(app) as url, client_of(url) as client:
        yield client
