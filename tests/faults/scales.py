"""How much is tried of each fault: a little by all tests, more with `--long`."""

import json

import pytest

from tests.faults.crew import Figures as CrewFigures
from tests.faults.trial import Figures, Scale

SHORT = Scale(rounds=1, outage=0.7, patience=15, drain=15)
# The longest pause between two tries of a worker is 22.5 seconds.
LONG = Scale(rounds=3, outage=10, patience=30, drain=60)
SHORT_TIMEOUT = 60
LONG_TIMEOUT = 300


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    """How much is tried of each fault."""
    return LONG if request.config.getoption("--long") else SHORT


def note(request: pytest.FixtureRequest, figures: Figures | CrewFigures) -> None:
    """Leave figures in the report of pytest, for the table in the documentation."""
    request.node.user_properties.append(("fault", json.dumps(figures)))


def give_time(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give trials the time that they need: they wait for much, one after the other."""
    timeout = LONG_TIMEOUT if config.getoption("--long") else SHORT_TIMEOUT
    for item in items:
        if "scale" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(timeout))
