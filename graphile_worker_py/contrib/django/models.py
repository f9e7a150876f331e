"""Jobs as a model without a table of its own: the view `jobs`, to look at."""

from typing import Any, ClassVar, Final

from django.db import models

from graphile_worker_py.contrib.django.project import read_project
from graphile_worker_py.errors import ConfigurationError

VIEW: Final = "jobs"


def _schema() -> str:
    try:
        return read_project().schema
    except ConfigurationError:  # a check reports it
        return "graphile_worker"


class Job(models.Model):  # type: ignore[misc]  # Django has no types
    """A job that waits, runs or was given up. Completed jobs are deleted."""

    id = models.BigIntegerField(primary_key=True)
    task_identifier = models.TextField("task")
    queue_name = models.TextField(null=True)
    key = models.TextField(null=True)
    priority = models.SmallIntegerField(help_text="Smaller numbers run first.")
    run_at = models.DateTimeField()
    attempts = models.SmallIntegerField()
    max_attempts = models.SmallIntegerField()
    last_error = models.TextField(null=True)
    locked_at = models.DateTimeField(null=True)
    locked_by = models.TextField(null=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        """The public view of Graphile Worker."""

        app_label = "graphile_worker_py"
        managed = False
        # Django quotes the name once: the quotes within separate schema and view.
        db_table = f'{_schema()}"."{VIEW}'
        default_permissions: ClassVar[tuple[str, ...]] = ("view", "change")
        ordering: ClassVar[list[str]] = ["-id"]

    def __str__(self) -> str:
        return f"{self.id} ({self.task_identifier})"

    def save(self, *_args: Any, **_kwargs: Any) -> None:
        """Not possible: jobs are changed by workers and utils."""
        raise TypeError("jobs can't be saved: use graphile_worker_py.contrib.django.utils()")

    def delete(self, *_args: Any, **_kwargs: Any) -> tuple[int, dict[str, int]]:
        """Not possible: see `save`."""
        raise TypeError("jobs can't be deleted: use utils().cancel_jobs([job.id])")
