"""One page of metrics for all processes of a supervisor: each sample has the label `process`.

The numbers are not added up. A process that is replaced begins to count at 0, which Prometheus
takes for what it is only if the process has series of its own.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from graphile_worker_py.processes.siblings import Siblings

logger = logging.getLogger(__name__)

PATIENCE: Final = 1.5
"""Seconds that a process gets to answer; the health port gives the client of the page two."""


async def ask_all(siblings: Siblings, path: str) -> dict[int, bytes | None]:
    """The pages of all processes by number; None where one did not answer in time."""
    found: dict[int, bytes | None] = {}

    async def ask(number: int) -> None:
        port = siblings.first_port + number - 1
        try:
            async with asyncio.timeout(PATIENCE):
                found[number] = await _get(siblings.host, port, path)
        except (OSError, ValueError) as error:  # TimeoutError is one of them
            logger.debug("Process %d did not show its metrics (%s)", number, error)
            found[number] = None

    async with asyncio.TaskGroup() as group:
        for number in range(1, siblings.count + 1):
            group.create_task(ask(number), name=f"ask process {number}")
    return found


async def _get(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(f"it answered {head[:80]!r}")
    return body


def joined(pages: Mapping[int, bytes | None]) -> bytes:
    """The pages of processes as one: lines of one metric stand together."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for number, page in sorted(pages.items()):
        label = b'process="%d"' % number
        family = b""
        for line in (page or b"").splitlines():
            if line.startswith(b"#"):
                family = line.split(b" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, label))
    lines = [line for family, head in heads.items() for line in head + samples.get(family, [])]
    lines += [
        b"# HELP graphile_worker_process_up Whether the process has shown its metrics.",
        b"# TYPE graphile_worker_process_up gauge",
        *(
            b'graphile_worker_process_up{process="%d"} %d' % (number, page is not None)
            for number, page in sorted(pages.items())
        ),
    ]
    return b"\n".join([*lines, b""])


def _labelled(line: bytes, label: bytes) -> bytes:
    name, brace, rest = line.partition(b"{")
    if brace and b" " not in name:
        return name + b"{" + label + (b"" if rest.startswith(b"}") else b",") + rest
    name, _, value = line.partition(b" ")
    return name + b"{" + label + b"} " + value
