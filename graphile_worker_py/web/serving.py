"""Serve the application from the command line, safe by default."""

import gc
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.web.access import (
    LOOPBACK,
    BearerDoor,
    Door,
    PasswordDoor,
    ProxyDoor,
    TokenDoor,
)

STOP_PATIENCE: Final = 2
"""Seconds that open requests get at the end; streams of events never end by themselves."""
_WAYS: Final = "--user with --password-file, --bearer-file, or --trust-header with --trusted-proxy"


def choose_door(
    *,
    host: str,
    user: str | None,
    password_file: str | None,
    bearer_file: str | None,
    trust_header: str | None,
    trusted_proxies: Sequence[str],
) -> Door:
    """How users get in, by the flags of the command.

    Raises:
        ConfigurationError: Flags exclude each other, a file can't be used, or the host can be
            reached from other machines and no flag says how users get in.
    """
    ways = [user is not None or password_file is not None, bearer_file is not None]
    ways.append(trust_header is not None)
    if sum(ways) > 1:
        raise ConfigurationError(f"give one of {_WAYS}")
    if ways[0]:
        if user is None or password_file is None:
            raise ConfigurationError("--user and --password-file belong together")
        return PasswordDoor({user: _lines(password_file)[0]})
    if bearer_file is not None:
        return BearerDoor(_lines(bearer_file))
    if trust_header is not None:
        return ProxyDoor(trust_header, trusted_proxies)
    if not is_loopback(host):
        raise ConfigurationError(
            f"listening on {host} without authentication is refused: give {_WAYS}"
        )
    return TokenDoor()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    return host.lower() in LOOPBACK


def hosts_for(host: str, door: Door, allowed: Collection[str]) -> Collection[str] | None:
    """The hosts that requests may name; None means any."""
    if is_loopback(host) or isinstance(door, TokenDoor):
        return {*LOOPBACK, *allowed}
    return {*LOOPBACK, *allowed} if allowed else None


def _lines(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} can't be read: {error}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigurationError(f"{file} is empty")
    return found


def link_of(door: Door, host: str, port: int) -> str:
    """The address to open, with the token if there is one."""
    name = f"[{host}]" if ":" in host else host
    token = f"?token={door.token}" if isinstance(door, TokenDoor) else ""
    return f"http://{name}:{port}/{token}"


class _Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(settings)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the port once it is open."""
        await super().startup(sockets)
        freeze_start()
        if self.servers:
            self._ready(self.servers[0].sockets[0].getsockname()[1])


def freeze_start() -> None:
    """Let the garbage collector leave alone what was made until now.

    It is for a process that only serves: modules and routes are never freed, and to look through
    them stops all requests for a tenth of a second.
    """
    gc.collect()
    gc.freeze()


async def serve(
    app: FastAPI,
    *,
    host: str,
    port: int,
    ready: Callable[[int], None],
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        ready: Called with the port when it listens.
        trusted_proxies: Proxies whose `X-Forwarded-Proto` and `X-Forwarded-For` count.
    """
    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies) or None,
        timeout_graceful_shutdown=STOP_PATIENCE,
        h11_max_incomplete_event_size=65_536,
    )
    await _Server(settings, ready).serve()
