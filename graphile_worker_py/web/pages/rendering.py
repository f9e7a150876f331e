"""Render templates, with what all pages show."""

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from graphile_worker_py.clock import utc_now
from graphile_worker_py.job import EARLIEST, LATEST
from graphile_worker_py.looking.explaining import counted, duration
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.web.access import Access, Level
from graphile_worker_py.web.census import Standing
from graphile_worker_py.web.charts import meter
from graphile_worker_py.web.charts import shown as short
from graphile_worker_py.web.context import access_or_none, web_of
from graphile_worker_py.web.problems import ProblemError

NAVIGATION: Final = (
    ("overview", "", "Overview"),
    ("jobs", "jobs", "Jobs"),
    ("tasks", "tasks", "Tasks"),
    ("queues", "queues", "Queues"),
    ("limits", "limits", "Limits"),
    ("workers", "workers", "Workers"),
    ("recurring", "recurring", "Recurring"),
    ("errors", "errors", "Errors"),
    ("maintenance", "maintenance", "Maintenance"),
)
SAYINGS: Final = {
    "retry": ("job", "will be tried again now."),
    "cancel": ("job", "cancelled."),
    "reschedule": ("job", "rescheduled."),
    "fail": ("job", "given up."),
    "delete": ("job", "deleted."),
    "edit": (None, "The payload was changed."),
    "add": ("job", "added."),
    "unlock": ("lock", "released."),
    "pause": (None, "It is paused. Running jobs go on."),
    "resume": (None, "It was resumed."),
    "set_limit": (None, "The limit was changed. Running jobs go on."),
    "clear_limit": (None, "The number in the code counts again."),
    "reset_breaker": (None, "The breaker is closed."),
    "cleanup": ("row", "deleted."),
}
"""What a page says after a change; the text never comes from the address."""


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("graphile_worker_py.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        {
            "ago": ago,
            "since": lambda moment: duration((utc_now() - moment).total_seconds()),
            "short": short,
            "duration": duration,
            "size": size,
            "seconds": seconds,
            "thousands": "{:,}".format,
            "counted": counted,
            "sentence": sentence,
            "clip": clip,
            "moment": lambda seconds: datetime.fromtimestamp(seconds, UTC),
        }
    )
    made.globals.update(
        {
            "meter": meter,
            "outcome_mark": OUTCOME_MARKS.get,
            "state_mark": STATE_MARKS.get,
            "no_error": lambda _job: None,
        }
    )
    return made


STATE_MARKS: Final = {
    "ready": "●",
    "scheduled": "◷",
    "running": "▶",
    "failed": "✕",
    "alive": "●",
    "late": "✕",
    "stopping": "◼",
    "unknown": "○",
    "free": "○",
    "full": "◼",
    "draining": "▼",
    "paused": "‖",
    "closed": "●",
    "open": "✕",
    "half-open": "◷",
}
"""A shape for each state, because colour alone says nothing to some people."""


OUTCOME_MARKS: Final = {
    "completed": "✓",
    "retried": "↻",
    "failed": "✕",
    "discarded": "✕",
    "snoozed": "◷",
    "cancelled": "◼",
    "killed": "!",
}
"""A shape for each outcome of an attempt."""


def clip(text: str, longest: int = 80) -> str:
    """The beginning of a long text."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def sentence(text: str) -> Markup:
    """A message as people write it: with a capital, and commands as code."""
    parts = (text[:1].upper() + text[1:]).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 and at < len(parts) - 1 else part
        for at, part in enumerate(parts)
    )


def seconds(value: float) -> str:
    """A short length of time for people: `12 ms`, `1.4 s`, `3 min`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else duration(value)


def size(count: float) -> str:
    """Bytes for people."""
    for limit, unit in ((2**40, "TB"), (2**30, "GB"), (2**20, "MB"), (2**10, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f} bytes"


def ago(moment: datetime | None) -> Markup:
    """A time relative to now, with the time itself as title."""
    if moment is None:
        return Markup('<span class="none">–</span>')
    if moment in {LATEST, EARLIEST}:
        return Markup("<span>{}</span>").format("never" if moment == LATEST else "always")
    seconds = (utc_now() - moment).total_seconds()
    text = f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S}", text
    )


_ENVIRONMENT: Final = _environment()


def root(request: Request) -> str:
    """The prefix below which the application is mounted."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def link(request: Request, path: str, **query: Any) -> str:
    """The address of a page of ours."""
    given = {name: value for name, value in query.items() if value not in {None, ""}}
    tail = f"?{urlencode(given, safe=':/')}" if given else ""
    return f"{root(request)}/{quote(path, safe='/:@?=&%')}{tail}"


def render(
    request: Request,
    template: str,
    *,
    page: str,
    title: str,
    access: Access | None,
    status: int = HTTPStatus.OK,
    **values: Any,
) -> HTMLResponse:
    """Render a template within the frame of all pages."""
    web = web_of(request)
    context = {
        "page": page,
        "title": title,
        "access": access,
        "may_steer": access is not None
        and access.level >= Level.OPERATOR
        and not web.site.is_read_only,
        "may_all": access is not None and access.level >= Level.ADMIN and not web.site.is_read_only,
        "root": root(request),
        "link": lambda path, **query: link(request, path, **query),
        "navigation": NAVIGATION,
        "site": web.site,
        "name": web.settings.name,
        "others": web.others,
        "links": web.settings.links,
        "has_api": web.settings.api,
        "hide": lambda text: web.site.redaction.text(masked_text(text)),
        "can_log_out": bool(web.door.form),
        "said": _saying(request.query_params),
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        **values,
    }
    html = _ENVIRONMENT.get_template(template).render(context)
    return HTMLResponse(html, status_code=status)


def _saying(query: Mapping[str, str]) -> str | None:
    said = SAYINGS.get(query.get("done", ""))
    if said is None:
        return None
    noun, text = said
    if noun is None:
        return text
    number = query.get("n", "1")
    return f"{counted(int(number[:18]), noun) if number.isdecimal() else f'Some {noun}s'} {text}"


def back(request: Request, path: str, *, done: str, n: int = 1, **query: Any) -> RedirectResponse:
    """Go to a page that says what was done."""
    return RedirectResponse(link(request, path, **query, done=done, n=n), status_code=303)


def count_note(standing: Standing) -> str:
    """How good the numbers of jobs are."""
    counts = standing.counts
    if counts is None:
        return f"counting… {standing.progress:.0%}"
    if counts.exact:
        known = "exact numbers"
        return known if standing.age < 5 else f"{known}, as of {duration(standing.age)} ago"
    return f"numbers counted bit by bit, as of {duration(standing.age)} ago"


async def error_page(request: Request, problem: ProblemError) -> HTMLResponse | RedirectResponse:
    """A problem for people; nobody's request leads to the log-in."""
    web = web_of(request)
    if problem.status is HTTPStatus.UNAUTHORIZED and web.door.form and request.method == "GET":
        path = request.url.path.removeprefix(root(request)).lstrip("/")
        return RedirectResponse(link(request, "login", next=path), status_code=303)
    response = render(
        request,
        "error.html",
        page="",
        title=problem.title,
        access=await access_or_none(request),
        status=int(problem.status),
        problem=problem,
    )
    for name, value in (problem.headers or {}).items():
        response.headers[name] = value
    return response
