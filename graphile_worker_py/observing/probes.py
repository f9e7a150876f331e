"""Answer probes over HTTP, and the pages of plugins, with the little of HTTP that they need."""

import asyncio
import errno
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from graphile_worker_py import aio, json_codec
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.plugins import Page
from graphile_worker_py.workers.health import Health

logger = logging.getLogger(__name__)

LONGEST_REQUEST: Final = 8192
"""Bytes that a request may have."""
PATIENCE: Final = 2.0
"""Seconds that a client gets to send its request and to receive the answer."""
MOST_CLIENTS: Final = 32
"""Connections at a time. One more aborts the oldest, which is slower than a probe can be."""
CLOSE_PATIENCE: Final = 1.0

_Answer = tuple[HTTPStatus, str, bytes]


@asynccontextmanager
async def health_server(
    health: Callable[[], Health | None],
    *,
    host: str,
    port: int,
    pages: Mapping[str, Page] = MappingProxyType({}),
) -> AsyncIterator[str]:
    """Answer probes within the block, which gets the URL.

    `/livez` and `/readyz` answer with 200 or 503, `/healthz` with the status of `/readyz` and the
    whole health as JSON. Clients can't hold up the worker, whatever they do.

    Args:
        health: Returns the health of the worker; None while it starts.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        pages: Further pages, by path.

    Raises:
        OSError: The port is in use, or this machine does not have the address.
        ConfigurationError: The host has no address.
    """
    clients = _Clients(health, pages)
    server = await _listening(clients.accept, host, port)
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await clients.close()


class _Clients:
    """The connections of clients, oldest first."""

    def __init__(self, health: Callable[[], Health | None], pages: Mapping[str, Page]) -> None:
        self._health = health
        self._pages = {path.encode(): page for path, page in pages.items()}
        self._connected: dict[asyncio.StreamWriter, None] = {}
        self._crew = aio.Crew()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connected) >= MOST_CLIENTS:
            oldest = next(iter(self._connected))
            del self._connected[oldest]
            oldest.transport.abort()
        self._connected[writer] = None
        self._crew.start(self._serve(reader, writer), name="answer a probe")

    async def close(self) -> None:
        await self._crew.cancel(patience=CLOSE_PATIENCE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(await _response(reader, self._health, self._pages))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except OSError as error:  # TimeoutError is one of them
            logger.debug("A probe was not answered (%s)", error)
        finally:
            writer.transport.abort()
            self._connected.pop(writer, None)


async def _listening(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], host: str, port: int
) -> asyncio.Server:
    try:
        return await asyncio.start_server(accept, host, port, limit=LONGEST_REQUEST)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(f"health_host {host!r} has no address: {error}") from error
    except OSError as error:
        # asyncio's text repeats the address.
        reason = "Address already in use" if error.errno == errno.EADDRINUSE else error.strerror
        named = OSError(f"health_port {port} can't be opened on {host}: {reason}")
        named.errno = error.errno
        raise named from error


async def _response(
    reader: asyncio.StreamReader,
    health: Callable[[], Health | None],
    pages: Mapping[bytes, Page],
) -> bytes:
    head_only = False
    try:
        request = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        answer = _plain(HTTPStatus.BAD_REQUEST)
    else:
        method, _, rest = request.partition(b" ")
        head_only = method == b"HEAD"
        if head_only or method == b"GET":
            answer = await _page(rest.partition(b" ")[0].partition(b"?")[0], health(), pages)
        else:
            answer = _plain(HTTPStatus.METHOD_NOT_ALLOWED)
    status, kind, body = answer
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)


async def _page(path: bytes, health: Health | None, pages: Mapping[bytes, Page]) -> _Answer:
    ready = health is not None and health.ready
    match path:
        case b"/livez":
            return _verdict(health is None or health.live, health)
        case b"/readyz":
            return _verdict(ready, health)
        case b"/healthz":
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            told = {"state": "starting"} if health is None else health.as_json()
            return status, "application/json", json_codec.dumps(told) + b"\n"
    return _plain(HTTPStatus.NOT_FOUND) if path not in pages else await _page_of(pages[path])


async def _page_of(page: Page) -> _Answer:
    try:
        shown = page()
        return HTTPStatus.OK, *(await shown if inspect.isawaitable(shown) else shown)
    except Exception:
        logger.exception("A page of a plugin failed")
        return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _verdict(good: bool, health: Health | None) -> _Answer:  # noqa: FBT001
    if good:
        return HTTPStatus.OK, "text/plain", b"ok\n"
    why = "starting" if health is None else health.trouble
    return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{why}\n".encode()


def _plain(status: HTTPStatus) -> _Answer:
    return status, "text/plain", f"{status.phrase}\n".encode()
