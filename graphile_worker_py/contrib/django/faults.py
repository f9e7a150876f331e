"""What `manage.py check` says about jobs."""

from collections.abc import Iterable
from typing import Any

from django.core import checks
from django.db import connections

from graphile_worker_py.contrib.django.connecting import database_wrapper
from graphile_worker_py.contrib.django.project import read_project
from graphile_worker_py.errors import ConfigurationError


def found_in_project(**_kwargs: Any) -> Iterable[checks.CheckMessage]:
    """Faults that show without a connection to the database."""
    try:
        project = read_project()
        database_wrapper(project.database)
    except ConfigurationError as error:
        return [checks.Error(str(error), id="graphile_worker_py.E001")]
    settings = connections[project.database].settings_dict
    if settings.get("ATOMIC_REQUESTS") or settings.get("AUTOCOMMIT", True):
        return []
    hint = "Jobs are committed with what you commit. Call transaction.commit() after adding them."
    message = f"the database {project.database!r} has AUTOCOMMIT off"
    return [checks.Info(message, hint=hint, id="graphile_worker_py.I001")]
