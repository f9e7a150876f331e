"""Recording failure: the error is stored, and the job waits for its next attempt."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import LONGEST_MESSAGE, shortened
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql.outcomes import BoundRider, ids, record

# `attempts` was counted by the fetch. By default the delay grows with it: e^attempts seconds, six
# hours from the tenth attempt on. `retry_at` computes the same. A job that is not tried again has
# used all its attempts, which is how Graphile Worker's tables say so.
_FAIL: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set last_error = failure.message,
  run_at = case
    when failure.due is not null then failure.due
    when failure.delay is not null
      then pg_catalog.now() + failure.delay * interval '1 second'
    else greatest(pg_catalog.now(), jobs.run_at)
      + pg_catalog.exp(least(jobs.attempts, 10)) * interval '1 second'
  end,
  attempts = case
    when failure.is_final then greatest(jobs.attempts, jobs.max_attempts) else jobs.attempts
  end,
  locked_by = null,
  locked_at = null,
  payload = coalesce(failure.payload::pg_catalog.json, jobs.payload)
from rows from (
  pg_catalog.unnest($2::pg_catalog.int8[]),
  pg_catalog.unnest($3::pg_catalog.text[]),
  pg_catalog.unnest($4::pg_catalog.text[]),
  pg_catalog.unnest($5::pg_catalog.float8[]),
  pg_catalog.unnest($6::pg_catalog.timestamptz[]),
  pg_catalog.unnest($7::pg_catalog.bool[])
) as failure (job_id, message, payload, delay, due, is_final)
where jobs.id = failure.job_id and jobs.locked_by = $1::pg_catalog.text
returning jobs.id, jobs.job_queue_id
"""


class Failure(Record, kw_only=False):
    """A job that failed.

    Args:
        job: The job.
        message: What `last_error` becomes.
        payload: JSON text that replaces the payload; None keeps it.
        delay: Seconds until the next attempt, or when it is due; None means the default.
        is_final: Whether the job is not tried again.
    """

    job: Job
    message: str
    payload: str | None = None
    delay: float | datetime | None = None
    is_final: bool = False

    @property
    def size(self) -> int:
        """About how many characters of a statement it takes."""
        return min(len(self.message), LONGEST_MESSAGE) + len(self.payload or "")

    def in_ascii(self) -> "Failure":
        """The same with characters escaped that the database's encoding may lack."""
        return replace(
            self,
            message=self.message.encode("ascii", "backslashreplace").decode(),
            payload=self.payload and re.sub(_NOT_ASCII, _json_escape, self.payload),
        )


_NOT_ASCII: Final = r"[^\x00-\x7f]"


def _json_escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def fail_jobs(
    failures: Sequence[Failure], *, pool_id: str, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Record failures and release queues; the ids of the jobs that were still the pool's."""
    queued = any(failure.job.job_queue_id is not None for failure in failures)
    values = (
        pool_id,
        [failure.job.id for failure in failures],
        [storable(failure.message) for failure in failures],
        [failure.payload for failure in failures],
        [None if isinstance(each.delay, datetime) else each.delay for each in failures],
        [each.delay if isinstance(each.delay, datetime) else None for each in failures],
        [failure.is_final for failure in failures],
    )
    return record(Query(_FAIL, values, ids), queued=queued, riders=riders)


def retry_at(job: Job, delay: float | datetime | None) -> datetime:
    """When a failed job is due again, by this process's clock; `delay` as in `Failure`.

    A running job was due, so that `run_at` is in the past.
    """
    if isinstance(delay, datetime):
        return delay
    seconds = math.exp(min(job.attempts, 10)) if delay is None else delay
    return utc_now() + timedelta(seconds=seconds)


def storable(text: str) -> str:
    """A shortened text with U+0000 and lone surrogates escaped, which PostgreSQL can't store.

    They would fail the statement, and with it every outcome in it.
    """
    text = shortened(text)
    if "\0" in text:
        text = text.replace("\0", "\\u0000")
    return text.encode("utf-8", "backslashreplace").decode()
