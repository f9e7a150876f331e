"""The forms of pages: everything that changes something."""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

import psycopg
from fastapi import APIRouter, Request, Response

from graphile_worker_py import json_codec
from graphile_worker_py.checks import BIGINT_MAX
from graphile_worker_py.clock import utc_now
from graphile_worker_py.looking.explaining import counted
from graphile_worker_py.sql.cleanup import CleanupTask, preview
from graphile_worker_py.sql.edit_job import edit_payload
from graphile_worker_py.sql.windows import Filter
from graphile_worker_py.web import adding, audit, changes, filters, listing, pausing, recurring
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.api.models import JobId
from graphile_worker_py.web.changes import Action, Change
from graphile_worker_py.web.context import Admin, Operator, admin, web_of
from graphile_worker_py.web.pages.rendering import back, render
from graphile_worker_py.web.problems import ProblemError
from graphile_worker_py.web.site import Site

router = APIRouter()
VERBS: Final = {
    Action.RETRY: "Retry",
    Action.CANCEL: "Cancel",
    Action.RESCHEDULE: "Reschedule",
    Action.FAIL: "Give up",
    Action.DELETE: "Delete",
}


@dataclass(frozen=True, slots=True)
class Form:
    """A form that was sent."""

    values: dict[str, str]
    ids: list[int]

    def get(self, name: str) -> str:
        """A field without spaces around it; empty if it is missing."""
        return self.values.get(name, "").strip()


async def _form(request: Request) -> Form:
    async with request.form(max_fields=1_000, max_files=0) as form:
        values = {name: value for name, value in form.items() if isinstance(value, str)}
        given = [value for value in form.getlist("id") if isinstance(value, str)]
    try:
        ids = [int(value) for value in given]
    except ValueError as error:
        raise _refused("an id is no number") from error
    if any(abs(number) > BIGINT_MAX for number in ids):
        raise _refused("an id is out of range")
    return Form(values, ids)


def _refused(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def _change(form: Form) -> Change:
    try:
        action = Action(form.get("action"))
    except ValueError as error:
        raise _refused("choose what to do") from error
    run_at, priority = None, None
    if action is Action.RESCHEDULE:
        run_at, priority = _moment(form), _priority(form.get("priority"))
        if run_at is None and priority is None:
            raise _refused("give a time or a priority")
    reason = form.get("reason") or None
    return Change(action=action, run_at=run_at, priority=priority, reason=reason)


def _moment(form: Form) -> datetime | None:
    if form.get("now"):
        return utc_now()
    text = form.get("run_at")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _refused(f"{text!r} is no time like 2026-01-31T04:00") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _priority(text: str) -> int | None:
    if not text:
        return None
    is_number = text.removeprefix("-").isdecimal() and len(text) < 7
    if not is_number or not -32768 <= int(text) <= 32767:
        raise _refused("a priority is a whole number from -32768 to 32767")
    return int(text)


def _newest(text: str) -> int:
    """The newest job that is meant, as the page with the count has said."""
    if text and not (text.isdecimal() and len(text) < 20):
        raise _refused("a job that is meant last is no id")
    return int(text or BIGINT_MAX)


async def _check_level(request: Request, access: Access, action: Action) -> None:
    if action is Action.DELETE:
        await admin(request, access)


def _filter(form: Form, access: Access, site: Site) -> Filter:
    """The filter whose jobs were all chosen."""
    try:
        wanted = filters.parse(form.get("q"))
    except filters.FilterError as error:
        raise _refused(str(error)) from error
    listing.check_allowed(wanted, access, site)
    return wanted


@router.post("/jobs/action")
async def change_jobs(request: Request, access: Operator) -> Response:
    """Change the chosen jobs, or all that match: first the count, then the change."""
    site = web_of(request).site
    form = await _form(request)
    change = _change(form)
    await _check_level(request, access, change.action)
    wanted = _filter(form, access, site) if form.get("all") else None
    ids, complete = form.ids, True
    if wanted is not None:
        selection = await changes.select(site, wanted)
        # Jobs that came after the count are not meant.
        newest = _newest(form.get("up_to"))
        ids, complete = [each for each in selection.ids if each <= newest], selection.complete
    if not ids:
        raise _refused("no job was chosen, or the chosen ones no longer match")
    if not form.get("confirmed"):
        return render(
            request,
            "confirm.html",
            page="jobs",
            title=VERBS[change.action],
            access=access,
            change=change,
            verb=VERBS[change.action],
            ids=ids,
            all=form.get("all"),
            q=form.get("q"),
            up_to=max(ids),
            complete=complete,
            form=form,
        )

    async def goes_on() -> bool:
        return not await request.is_disconnected()

    done = 0
    async for step in changes.change_many(
        site, access, change, ids, wanted=wanted, goes_on=goes_on
    ):
        done = step.done
    return back(request, "jobs", q=form.get("q"), done=str(change.action), n=done)


@router.post("/jobs/{job_id}/action")
async def change_job(request: Request, access: Operator, job_id: JobId) -> Response:
    """Change one job."""
    site = web_of(request).site
    form = await _form(request)
    if form.get("action") == "edit":
        return await _edit(request, access, job_id, form)
    change = _change(form)
    await _check_level(request, access, change.action)
    await changes.change_one(site, access, change, job_id)
    is_gone = change.action in {Action.CANCEL, Action.DELETE}
    return back(request, "jobs" if is_gone else f"jobs/{job_id}", done=str(change.action))


async def _edit(request: Request, access: Access, job_id: int, form: Form) -> Response:
    await admin(request, access)
    site = web_of(request).site
    # Browsers send line ends as CR LF; in JSON they stand between values only.
    text, shown = (form.values.get(name, "").replace("\r\n", "\n") for name in ("payload", "shown"))
    try:
        json_codec.loads(text)
    except ValueError as error:
        raise _refused(f"the payload is not JSON: {error}") from error
    if not await site.read(edit_payload(job_id, text, shown=shown)):
        raise ProblemError(
            HTTPStatus.CONFLICT,
            "the job runs, is gone, or was changed meanwhile: look at it again",
        )
    await audit.record(site, access, "edit", count=1, job_id=job_id)
    await site.changed()
    return back(request, f"jobs/{job_id}", done="edit")


@router.post("/workers/unlock")
async def unlock(request: Request, access: Admin) -> Response:
    """Release the locks of a dead pool; of a living one only with `force`."""
    site = web_of(request).site
    form = await _form(request)
    pool_id, force = form.get("pool"), bool(form.get("force"))
    utils = await site.utils()
    unlocked = await utils.force_unlock_workers([pool_id], force=force)
    number = unlocked.jobs + unlocked.queues
    details: dict[str, Any] = {"pool": pool_id, "force": force}
    await audit.record(site, access, "unlock", count=number, details=details)
    await site.changed()
    return back(request, "workers", done="unlock", n=number)


_PAGES: Final = {"task": "tasks", "queue": "queues", "pool": "workers", "everything": "workers"}
"""The page that shows each kind of thing that can be paused."""


@router.post("/pauses")
async def pause(request: Request, access: Operator) -> Response:
    """Pause or resume one thing, from the page that shows it."""
    site = web_of(request).site
    form = await _form(request)
    target = form.get("target")
    if target not in _PAGES:
        raise _refused("choose what to pause")
    targets: dict[str, Any] = {"everything": target == "everything"}
    if target != "everything":
        targets[target] = form.values.get("name", "")
    if form.get("action") == "resume":
        await pausing.resume(site, access, targets)
        return back(request, _PAGES[target], done="resume")
    await pausing.pause(site, access, targets, reason=form.get("reason") or None, until=None)
    return back(request, _PAGES[target], done="pause")


@router.post("/recurring/run")
async def run_now(request: Request, access: Operator) -> Response:
    """Add a job of a crontab item now, as a worker adds it when it is due."""
    site = web_of(request).site
    wanted = (await _form(request)).get("item")
    found = next((each for each in await recurring.items(site) if each.identifier == wanted), None)
    if found is None or found.item is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, "no worker has written what this item adds")
    job = await adding.add(site, access, recurring.run_of(found.item))
    await site.changed()
    return back(request, f"jobs/{job.id}", done="add")


async def _number_of(site: Site, task: CleanupTask, older_than: str | None) -> str:
    (query,) = preview([task], None, older_than).values()
    try:
        found = await site.read(query)
    except psycopg.errors.QueryCanceled:
        return "too many rows to count them"
    return counted(found.rows, "row")


@router.post("/maintenance/cleanup")
async def cleanup(request: Request, access: Admin) -> Response:
    """Clean up, after a page that asks."""
    site = web_of(request).site
    form = await _form(request)
    try:
        task = CleanupTask(form.get("task"))
    except ValueError as error:
        raise _refused("choose what to clean up") from error
    older_than = form.get("older_than") or None
    if not form.get("confirmed"):
        return render(
            request,
            "confirm_cleanup.html",
            page="maintenance",
            title="Clean up",
            access=access,
            task=str(task),
            older_than=older_than,
            number=await _number_of(site, task, older_than),
        )
    utils = await site.utils()
    number = sum((await utils.cleanup([task], older_than=older_than)).values())
    details = {"task": str(task)} | ({} if older_than is None else {"older_than": older_than})
    await audit.record(site, access, "cleanup", count=number, details=details)
    await site.changed()
    return back(request, "maintenance", done="cleanup", n=number)
