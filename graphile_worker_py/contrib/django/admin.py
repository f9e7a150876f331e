"""Admin pages: jobs to look at, to try again and to cancel."""

import json
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from graphile_worker_py.contrib.django import utils
from graphile_worker_py.contrib.django.models import Job
from graphile_worker_py.contrib.django.project import read_project
from graphile_worker_py.sql.cancel_jobs import CancelState


class StateFilter(admin.SimpleListFilter):  # type: ignore[misc]  # Django has no types
    """Jobs by where they stand."""

    title = "state"
    parameter_name = "state"

    def lookups(self, _request: Any, _model_admin: Any) -> list[tuple[str, str]]:
        """The states."""
        return [(state, state) for state in _STATES]

    def queryset(self, _request: Any, queryset: Any) -> Any:
        """The jobs in the chosen state."""
        condition = _STATES.get(str(self.value()))
        return queryset if condition is None else queryset.filter(condition)


_FREE = Q(locked_at=None)
_FAILED = Q(attempts__gte=F("max_attempts"))
_STATES = {
    "running": ~_FREE,
    "failed": _FREE & _FAILED,
    "scheduled": _FREE & ~_FAILED & Q(run_at__gt=Now()),
    "ready": _FREE & ~_FAILED & Q(run_at__lte=Now()),
}


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):  # type: ignore[misc]  # Django has no types
    """The jobs of the project's database.

    Users with the permission to view see them and their payloads; those with the permission to
    change may retry and cancel.
    """

    actions: ClassVar[list[str]] = ["retry", "cancel"]
    list_display = ("id", "task_identifier", "state", "run_at", "attempts", "queue_name", "key")
    list_filter = (StateFilter, "task_identifier", "queue_name")
    search_fields = ("task_identifier", "key", "last_error")
    show_full_result_count = False

    def get_queryset(self, request: Any) -> Any:
        """The jobs, in the database that has them."""
        return super().get_queryset(request).using(read_project().database)

    def get_fields(self, _request: Any, _obj: Any = None) -> list[str]:
        """What a page of a job shows."""
        return [*(field.name for field in Job._meta.fields), "payload"]

    def get_readonly_fields(self, request: Any, obj: Any = None) -> list[str]:
        """All of it."""
        return self.get_fields(request, obj)

    @admin.display(description="state")
    def state(self, job: Any) -> str:
        """Where a job stands."""
        if job.locked_at is not None:
            return "running"
        if job.attempts >= job.max_attempts:
            return "failed"
        return "scheduled" if job.run_at > timezone.now() else "ready"

    @admin.display(description="payload")
    def payload(self, job: Any) -> str:
        """The payload of a job as JSON."""
        found = utils().get_job(job.id)
        return "" if found is None else json.dumps(found.payload, indent=2, ensure_ascii=False)

    @admin.action(description="Try selected jobs again, now", permissions=["steer"])
    def retry(self, request: Any, queryset: Any) -> None:
        """Give jobs all their attempts back."""
        ids = list(queryset.values_list("id", flat=True))
        done = utils().retry_jobs(ids)
        self.message_user(request, f"{len(done)} of {len(ids)} jobs are tried again.")

    @admin.action(description="Cancel selected jobs", permissions=["steer"])
    def cancel(self, request: Any, queryset: Any) -> None:
        """Delete waiting jobs, and ask running ones to end."""
        ids = list(queryset.values_list("id", flat=True))
        states = [each.state for each in utils().cancel_jobs(ids)]
        gone = states.count(CancelState.CANCELLED)
        asked = states.count(CancelState.REQUESTED)
        text = f"{gone} jobs are cancelled, {asked} were asked to end."
        left = len(ids) - gone - asked
        if left:
            text += f" {left} can't be cancelled."
        self.message_user(request, text, messages.WARNING if left else messages.SUCCESS)

    def has_add_permission(self, _request: Any) -> bool:
        """Jobs are added by programs."""
        return False

    def has_change_permission(self, _request: Any, _obj: Any = None) -> bool:
        """Nothing can be edited."""
        return False

    def has_delete_permission(self, _request: Any, _obj: Any = None) -> bool:
        """Cancel them instead."""
        return False

    def has_steer_permission(self, request: Any) -> bool:
        """Whether a user may retry and cancel jobs."""
        return bool(request.user.has_perm("graphile_worker_py.change_job"))
