"""Ask the pool of a running job where its task is at this moment."""

from http import HTTPStatus
from typing import Final

from graphile_worker_py.history.stacks import ask
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.inspect import JobState, ListedJob, get_job
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.changes import gone
from graphile_worker_py.web.problems import ProblemError
from graphile_worker_py.web.site import Site

PATIENCE: Final = 2.0
"""Seconds to wait for the pool."""


async def look(site: Site, access: Access, job_id: int) -> tuple[ListedJob, str | None]:
    """A job, and its stack; None if it does not run, or no Python pool has answered.

    Raises:
        ProblemError: The user may not see stacks (403), or there is no such job (404, 410).
    """
    if not access.payloads:
        raise ProblemError(
            HTTPStatus.FORBIDDEN, "stacks show code, which only users see who see payloads"
        )
    found = await site.read(get_job(job_id))
    if found is None:
        raise await gone(site, job_id)
    if found.state is not JobState.RUNNING:
        return found, None
    database = await site.open()
    stack = await site.cache.get(
        ("stack", job_id), 1.0, lambda: ask(database, job_id, timeout=PATIENCE)
    )
    return found, None if stack is None else site.redaction.text(masked_text(stack))
