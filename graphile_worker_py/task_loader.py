"""Tasks from a directory."""

import logging
from pathlib import Path

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks import Task


def load_tasks(path: str | Path, *, logger: logging.Logger | None = None) -> dict[str, Task]:
    raise ConfigurationError(f"not yet: {path}")
