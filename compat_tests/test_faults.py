"""A Node worker and two Python workers share a database, under load, while something goes wrong.

Only the first fault is in each run of the tests; the others run with `--long`.

What a Node worker had locked when it ended stays locked until somebody unlocks it. A Node worker
ends when it can't record the outcome of a job, and is started again, as by a supervisor. It goes
straight to the server, and knows one server only: after a failover it is started with the address
of the new one.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.cases import OF_THE_DATABASE, OF_WORKERS, Case, Place, go_through
from tests.faults.scales import note
from tests.faults.trial import Scale
from tests.support.node import Node
from tests.support.own_server import OwnServer
from tests.support.processes import Processes

FIRST, *OTHERS = (*OF_WORKERS, *OF_THE_DATABASE)
LONG = [pytest.param(case, marks=pytest.mark.long) for case in OTHERS]


@pytest.mark.parametrize("case", [FIRST, *LONG], ids=str)
async def test_workers_of_both_sides_get_over(
    case: Case[Any],
    own_dsn: str,
    own_server: OwnServer,
    processes: Processes,
    node: Node,
    scale: Scale,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = Place(dsn=own_dsn, server=own_server, processes=processes)
    note(request, await go_through(case, place, scale=scale, folder=tmp_path, node=node))
