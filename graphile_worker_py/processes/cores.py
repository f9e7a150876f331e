"""The number of processor cores that this process may use."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> int:
    """The number of cores by the affinity of this process and the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    return max(math.ceil(min(count, _quota(cgroup))), 1)


def _quota(cgroup: Path) -> float:
    """The processor time of the container, in cores, by cgroups version 2 or 1."""
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        spent = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return math.inf if spent < 0 else spent / period_us
    return math.inf
