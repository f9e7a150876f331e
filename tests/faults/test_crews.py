"""Two worker processes under load, while something goes wrong with one or both.

These tests run only with `--long`: `compat_tests/test_faults.py` has the same faults with a Node
worker at the same database, and each fault has its own shorter test elsewhere.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.cases import OF_WORKERS, Case, Place, go_through
from tests.faults.scales import note
from tests.faults.trial import Scale
from tests.support.own_server import OwnServer
from tests.support.processes import Processes


@pytest.mark.long
@pytest.mark.parametrize("case", OF_WORKERS, ids=str)
async def test_two_workers_get_over(
    case: Case[Any],
    own_dsn: str,
    own_server: OwnServer,
    processes: Processes,
    scale: Scale,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = Place(dsn=own_dsn, server=own_server, processes=processes)
    note(request, await go_through(case, place, scale=scale, folder=tmp_path))
