"""When a worker pool that has too much to do fetches no more jobs."""

from graphile_worker_py.checks import check_seconds, check_share, check_whole
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.records import Record


class Shedding(Record):
    """Thresholds above which a worker pool fetches no jobs; None switches one off.

    The pool stays live and ready meanwhile; its jobs go on, and other pools take the others.

    Args:
        loop_lag: Seconds by which the event loop is late.
        memory: Share of the memory that the process may use: of the limit of its container, or of
            the machine, above 0 and at most 1. It is measured on Linux only.
        unrecorded: Jobs that have ended and whose outcome is not recorded yet.

    Raises:
        ConfigurationError: A value is not allowed, or none is given.
    """

    loop_lag: float | None = None
    memory: float | None = None
    unrecorded: int | None = None

    def __post_init__(self) -> None:
        if self.loop_lag is None and self.memory is None and self.unrecorded is None:
            raise ConfigurationError(
                "Shedding needs at least one threshold: loop_lag, memory or unrecorded"
            )
        if self.loop_lag is not None:
            check_seconds("loop_lag of Shedding", self.loop_lag, above_zero=True)
        if self.unrecorded is not None:
            check_whole("unrecorded of Shedding", self.unrecorded, smallest=1)
        if self.memory is not None:
            check_share("memory of Shedding", self.memory)
