"""A processor for structlog: `structlog.configure(processors=[add_job, …])`."""

from collections.abc import MutableMapping
from typing import Any

from graphile_worker_py.tasks.current import fields_of_job


def add_job(
    _logger: Any, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add `job_id`, `task_identifier` and `attempt` to what a task logs.

    Values that the event has under these names stay. Outside of a job nothing is added.
    """
    for name, value in fields_of_job().items():
        event_dict.setdefault(name, value)
    return event_dict
