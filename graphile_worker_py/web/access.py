"""Who may do what, and how users prove who they are."""

import base64
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

from starlette.requests import Request

from graphile_worker_py import aio
from graphile_worker_py.errors import ConfigurationError

SESSION: Final = 12 * 3600.0
"""Seconds that a log-in holds."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Level(IntEnum):
    """What a user may do; each level includes those before it."""

    VIEWER = 1
    """Look."""
    OPERATOR = 2
    """Add, retry, cancel, reschedule and fail jobs, pause, and set limits."""
    ADMIN = 3
    """Delete and edit jobs, clean up, and unlock pools."""


@dataclass(frozen=True, slots=True)
class Access:
    """A user and what they may do; made by `viewer`, `operator` and `admin`.

    Args:
        user: Name for the audit log.
        level: What they may do.
        payloads: Whether they may see payloads, errors and results.
    """

    user: str
    level: Level
    payloads: bool = True

    @classmethod
    def viewer(cls, user: str, *, payloads: bool = False) -> "Access":
        """A user who may look, by default without payloads."""
        return cls(user, Level.VIEWER, payloads)

    @classmethod
    def operator(cls, user: str) -> "Access":
        """A user who may steer jobs."""
        return cls(user, Level.OPERATOR)

    @classmethod
    def admin(cls, user: str) -> "Access":
        """A user who may do everything."""
        return cls(user, Level.ADMIN)


Authorize: TypeAlias = Callable[[Request], "Awaitable[Access | None] | Access | None"]


class Door(Protocol):
    """How users get in."""

    @property
    def form(self) -> tuple[str, ...]:
        """The fields of the log-in page; empty if there is no log-in."""

    @property
    def challenge(self) -> str | None:
        """The `WWW-Authenticate` header of an answer with 401."""

    async def knock(self, request: Request) -> Access | None:
        """Who sends this request, by its own headers."""

    def log_in(self, given: Mapping[str, str]) -> Access | None:
        """Who fills in the log-in page."""


class HostDoor:
    """The application around decides, by the function that it gives."""

    form: tuple[str, ...] = ()
    challenge: str | None = None

    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def knock(self, request: Request) -> Access | None:
        """Ask the function."""
        found: object = self._authorize(request)
        if hasattr(found, "__await__"):
            found = await aio.awaited(found)
        if found is not None and not isinstance(found, Access):
            raise ConfigurationError(
                f"authorize must return an Access or None, not {type(found).__name__}"
            )
        return found

    def log_in(self, given: Mapping[str, str]) -> Access | None:  # noqa: ARG002
        """There is no log-in."""
        return None


class TokenDoor:
    """A token that is good for one log-in, for a person at the machine itself."""

    form = ("token",)
    challenge = None

    def __init__(self) -> None:
        self._token: str | None = secrets.token_urlsafe(24)
        self.token = self._token
        """The token, which the command prints as a link."""

    async def knock(self, request: Request) -> Access | None:  # noqa: ARG002
        """No user gets in by a header."""
        return None

    def log_in(self, given: Mapping[str, str]) -> Access | None:
        """Take the token."""
        if self._token is None or not same(given.get("token", ""), self._token):
            return None
        self._token = None
        return Access.admin("local")


class PasswordDoor:
    """Users with passwords: by HTTP Basic for programs, by the log-in page for people."""

    form = ("user", "password")
    challenge = 'Basic realm="graphile-worker-py", charset="UTF-8"'

    def __init__(self, users: Mapping[str, str]) -> None:
        if not users or not all(users.values()):
            raise ConfigurationError("each user needs a password that is not empty")
        self._users = dict(users)

    async def knock(self, request: Request) -> Access | None:
        """Read the Basic header."""
        kind, _, rest = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except ValueError:
            return None
        return self.log_in({"user": user, "password": password})

    def log_in(self, given: Mapping[str, str]) -> Access | None:
        """Compare with all users, in constant time."""
        user, password = given.get("user", ""), given.get("password", "")
        found = [
            name for name, right in self._users.items() if same(user, name) & same(password, right)
        ]
        return Access.admin(found[0]) if found else None


class BearerDoor:
    """Tokens for programs; people give one on the log-in page."""

    form = ("token",)
    challenge = 'Bearer realm="graphile-worker-py"'

    def __init__(self, tokens: Sequence[str]) -> None:
        if not tokens or not all(len(token) >= 16 for token in tokens):
            raise ConfigurationError("bearer tokens need at least 16 characters each")
        self._tokens = list(tokens)

    async def knock(self, request: Request) -> Access | None:
        """Read the Bearer header."""
        kind, _, rest = request.headers.get("authorization", "").partition(" ")
        return self.log_in({"token": rest}) if kind.lower() == "bearer" else None

    def log_in(self, given: Mapping[str, str]) -> Access | None:
        """Compare with all tokens, in constant time."""
        found = [same(given.get("token", ""), token) for token in self._tokens]
        return Access.admin(f"bearer-{found.index(True) + 1}") if any(found) else None


class ProxyDoor:
    """A proxy in front has authenticated the user, and names them in a header."""

    form: tuple[str, ...] = ()
    challenge: str | None = None

    def __init__(self, header: str, proxies: Sequence[str]) -> None:
        if not proxies:
            raise ConfigurationError("--trust-header needs --trusted-proxy")
        self._header = header
        try:
            self._proxies = [ipaddress.ip_network(each) for each in proxies]
        except ValueError as error:
            raise ConfigurationError(f"--trusted-proxy: {error}") from error

    async def knock(self, request: Request) -> Access | None:
        """Read the header if the proxy sends it."""
        user = request.headers.get(self._header)
        if not user or request.client is None:
            return None
        try:
            peer = ipaddress.ip_address(request.client.host)
        except ValueError:
            return None
        return Access.admin(user) if any(peer in each for each in self._proxies) else None

    def log_in(self, given: Mapping[str, str]) -> Access | None:  # noqa: ARG002
        """There is no log-in."""
        return None


def same(given: str, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(), right.encode())


class Sessions:
    """Cookies that hold a log-in, signed with a secret of this process."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(self, access: Access) -> str:
        """The value of a cookie for a user who has logged in."""
        user = base64.urlsafe_b64encode(access.user.encode()).decode()
        body = f"{user}.{int(access.level)}.{int(access.payloads)}.{int(time.time() + SESSION)}"
        return f"{body}.{self._signature(body)}"

    def read(self, cookie: str | None) -> Access | None:
        """The user whose cookie it is; None if it is forged or too old."""
        body, _, signature = (cookie or "").rpartition(".")
        if not body or not same(signature, self._signature(body)):
            return None
        user, level, payloads, until = body.split(".")
        if float(until) < time.time():
            return None
        name = base64.urlsafe_b64decode(user).decode()
        return Access(name, Level(int(level)), payloads == "1")

    def _signature(self, body: str) -> str:
        return hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()


def cookie_name(request: Request) -> str:
    """Name of the cookie, with the prefix that browsers guard where TLS is used."""
    return "__Host-gwpy" if request.url.scheme == "https" else "gwpy"
