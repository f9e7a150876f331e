"""How many processor cores there are for this process."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> int:
    """How many processor cores this process may use: those it is bound to, and its container's."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    return max(math.ceil(min(count, _quota(cgroup))), 1)


def _quota(cgroup: Path) -> float:
    """The processor time of a container, in cores, as the two generations of cgroups write it."""
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        spent = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return math.inf if spent < 0 else spent / period_us
    return math.inf
