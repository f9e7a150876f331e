"""The tasks of the application, for `gw.drain` and `gw.inline`."""

from typing import Any

import pytest
import shop


@pytest.fixture
def gw_tasks() -> Any:
    """The module with the tasks."""
    return shop
