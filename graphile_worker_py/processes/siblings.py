"""The health ports of the processes that one supervisor has started."""

import os
from typing import Final

from graphile_worker_py.records import Record

VARIABLE: Final = "GRAPHILE_WORKER_PY_HEALTH_PORTS"
"""Holds the supervisor's process id, the first and the number of the ports, and the host."""
_ASKED_AT: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to ask, not to listen


class Siblings(Record):
    """The processes of one supervisor.

    Attributes:
        host: Address of their health ports.
        first_port: Health port of process 1; those of the others follow.
        count: How many processes there are.
    """

    host: str
    first_port: int
    count: int

    def name_to_processes(self) -> None:
        """Let the processes that this one starts know their siblings."""
        os.environ[VARIABLE] = f"{os.getpid()}:{self.first_port}:{self.count}:{self.host}"


def siblings_of_process() -> Siblings | None:
    """The processes of the supervisor of this process; None without one, or without known ports."""
    supervisor, *rest = os.environ.get(VARIABLE, "").split(":", 3)
    # A program that a task starts inherits the variable, but it is a child of a worker.
    if supervisor != str(os.getppid()):
        return None
    first, count, host = rest
    return Siblings(host=_ASKED_AT.get(host, host), first_port=int(first), count=int(count))
