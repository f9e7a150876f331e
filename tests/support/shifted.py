"""Run a module by a clock that is wrong: `python -m tests.support.shifted HOURS MODULE ARGUMENT…`.

The clock is wrong for all that the module imports, too. Intervals are measured as ever.
"""

import datetime
import runpy
import sys
import time

REAL = datetime.datetime


class _Kind(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, REAL)  # those that C code makes


def shift(hours: float) -> None:
    """Let this process believe that it is later."""
    honest = time.time

    class Shifted(datetime.datetime, metaclass=_Kind):
        __slots__ = ()

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return REAL.now(tz) + datetime.timedelta(hours=hours)

    time.time = lambda: honest() + hours * 3600
    datetime.datetime = Shifted  # type: ignore[misc]


if __name__ == "__main__":
    _, given, module, *arguments = sys.argv
    shift(float(given))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
