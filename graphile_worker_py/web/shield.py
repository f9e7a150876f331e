"""What stands before every request: host, origin, size; and behind every answer: its headers."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graphile_worker_py.web.problems import CONTENT_TYPE, ProblemError
from graphile_worker_py.web.settings import Settings

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Shield:
    """Refuses requests that a browser sends for another site, for another host, or too large.

    Args:
        app: What is behind it.
        settings: The limits of sizes.
        hosts: The hosts that requests may name; None means any.
    """

    def __init__(self, app: ASGIApp, settings: Settings, hosts: Collection[str] | None) -> None:
        self._app = app
        self._settings = settings
        self._hosts = None if hosts is None else frozenset(each.lower() for each in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = _with_headers(send)
        try:
            self._check_host(headers)
            _check_origin(scope, headers)
            limit = self._limit(scope)
            _check_length(headers, limit)
        except ProblemError as problem:
            await _answer(problem, guarded)
            return
        await self._app(scope, _limited(receive, limit), guarded)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts is None:
            return
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in self._hosts:
            raise ProblemError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this host name is not served here; allow it with --allowed-host",
            )

    def _limit(self, scope: Scope) -> int:
        is_bulk = scope["path"].endswith("/jobs/bulk")
        return self._settings.max_bulk_body if is_bulk else self._settings.max_body


def _check_origin(scope: Scope, headers: Headers) -> None:
    """Refuse what a browser sends on behalf of another site.

    Programs send neither `Origin` nor a cookie.
    """
    if scope["method"] in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        allowed = site == "same-origin"
    elif origin is not None:
        allowed = urlsplit(origin).netloc == headers.get("host")
    else:
        allowed = "cookie" not in headers
    if not allowed:
        raise ProblemError(HTTPStatus.FORBIDDEN, "the request comes from another site")


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body may have {limit:,} bytes",
        more={"limit": limit},
    )


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit)
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return guarded


async def _answer(problem: ProblemError, send: Send) -> None:
    body = problem.document()
    headers = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    start = {"type": "http.response.start", "status": int(problem.status), "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
