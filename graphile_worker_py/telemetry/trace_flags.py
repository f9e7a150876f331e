"""The trace in which a job was added, carried by a flag of the job.

A flag passes through SQL, Node and Python alike: `traceparent:` and a W3C trace parent.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec

PREFIX: Final = "traceparent:"
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent_of(job: Job) -> str | None:
    """The trace parent that a job carries; None if it has none that can be read."""
    for flag in job.flags or ():
        given = flag.removeprefix(PREFIX)
        if given != flag and _TRACEPARENT.fullmatch(given):
            return given
    return None


def with_traceparent(spec: JobSpec, traceparent: str) -> JobSpec:
    """A job that carries a trace parent; one that carries one already stays as it is."""
    flags: Sequence[str] = spec.flags or ()
    if any(flag.startswith(PREFIX) for flag in flags):
        return spec
    return replace(spec, flags=[*flags, PREFIX + traceparent])
