"""The app."""

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.db.models.signals import post_migrate


class GraphileWorkerConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Jobs of graphile_worker_py."""

    name = "graphile_worker_py.contrib.django"
    label = "graphile_worker_py"
    verbose_name = "Graphile Worker"

    def ready(self) -> None:
        """Register checks, and install the schemas after each migration."""
        from graphile_worker_py.contrib.django.faults import found_in_project  # noqa: PLC0415

        checks.register(found_in_project)
        post_migrate.connect(install, sender=self)


def install(*, using: str, verbosity: int = 1, **_signal: Any) -> None:
    """Install or upgrade the schemas of jobs, if `using` is their database."""
    import asyncio  # noqa: PLC0415  # programs that do not migrate need none of it
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from graphile_worker_py.contrib.django.connecting import connection_string  # noqa: PLC0415
    from graphile_worker_py.contrib.django.project import read_project  # noqa: PLC0415
    from graphile_worker_py.runner import run_migrations  # noqa: PLC0415

    project = read_project()
    if using != project.database or not project.migrates:
        return
    dsn = connection_string(using)
    if verbosity > 1:
        print(f"Installing the schema {project.schema} of jobs")  # noqa: T201  # as migrate does

    def migrate() -> None:
        asyncio.run(run_migrations(dsn, schema=project.schema, side_schema=True))

    # The caller may have an event loop.
    with ThreadPoolExecutor(1, "graphile-worker-py-migrate") as executor:
        executor.submit(migrate).result()
