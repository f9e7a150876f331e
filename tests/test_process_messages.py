"""The messages between a worker and the process of a task, however they are cut and ordered."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from graphile_worker_py.executors import wire
from graphile_worker_py.executors.beginning import Beginning, new_file
from graphile_worker_py.executors.channel import MOST_HELD, Channel
from graphile_worker_py.executors.link import Link
from tests.support.eventually import eventually


def framed(message: bytes) -> bytes:
    return wire.HEADER.pack(len(message)) + message


async def connected() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = Channel()
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
    return channel, theirs


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_messages_arrive_whole_however_they_are_cut(size: int) -> None:
    channel, process = await connected()
    messages = [b"", b"a", b"b" * 300, b"c"]
    stream = b"".join(map(framed, messages))
    receiving = asyncio.create_task(_all(channel))
    for at in range(0, len(stream), size):
        process.send(stream[at : at + size])
        await asyncio.sleep(0)
    process.close()
    assert await receiving == messages


async def _all(channel: Channel) -> list[bytes]:
    found: list[bytes] = []
    while (message := await channel.receive()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize(
    "end",
    [wire.HEADER.pack(100)[:3], framed(b"x" * 100)[:50], wire.HEADER.pack(wire.LONGEST + 1)],
    ids=["within the length", "within a message", "with a length that can't be"],
)
async def test_what_is_whole_counts_where_a_process_ends_within_a_message(end: bytes) -> None:
    channel, process = await connected()
    process.send(framed(b"whole") + end)
    process.close()
    assert await _all(channel) == [b"whole"]
    channel.close()


async def test_a_process_waits_if_its_messages_are_not_received() -> None:
    channel, process = await connected()
    loop, message = asyncio.get_running_loop(), b"x" * 10_000
    count = 1000
    sending = asyncio.create_task(loop.sock_sendall(process, framed(message) * count))
    await eventually(lambda: channel.held > MOST_HELD)
    # What the socket itself holds comes on top.
    for _ in range(20):
        await asyncio.sleep(0)
    assert channel.held < MOST_HELD + 2**20
    assert not sending.done()
    for _ in range(count):
        assert await channel.receive() == message
    await sending
    channel.close()
    process.close()


async def test_nothing_is_received_after_a_worker_has_hung_up() -> None:
    channel, process = await connected()
    receiving = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    channel.hang_up()
    assert await receiving is None
    process.send(framed(b"late"))
    assert await channel.receive() is None
    channel.close()
    process.close()


@pytest.fixture
def link() -> Iterator[tuple[Link, socket.socket]]:
    """A connection as a process sees it, and the worker's end of its second socket."""
    jobs, jobs_of_worker = socket.socketpair()
    control, control_of_worker = socket.socketpair()
    with jobs_of_worker, control_of_worker:
        link = Link(jobs, control)
        reading = threading.Thread(target=_read, args=(link,))
        reading.start()
        yield link, control_of_worker
        control_of_worker.sendall(framed(b"not a message"))
        reading.join()
        link.forget()


def _read(link: Link) -> None:
    # The thread of a process ends with it. This one ends with what it can't read.
    with pytest.raises(Exception, match=r"pickle|unpickling|opcode|load key"):
        link.read_control()


def asked(process: Link) -> tuple[bool, str | None]:
    return process.abort_event.is_set(), process.abort_reason


async def test_only_the_job_that_is_meant_is_asked_to_end(
    link: tuple[Link, socket.socket],
) -> None:
    process, worker = link
    process.begin(1)
    worker.sendall(wire.encode_order(wire.Abort(1, "cancelled")))
    await eventually(process.abort_event.is_set)
    assert asked(process) == (True, "cancelled")
    first = process.abort_event
    process.begin(2)
    assert asked(process) == (False, None)
    assert first.is_set()
    # It may overtake its job, because it comes by another socket.
    worker.sendall(wire.encode_order(wire.Abort(3, "shutdown")))
    await eventually(lambda: process.asked_last == 3)
    assert asked(process) == (False, None)
    process.begin(3)
    assert asked(process) == (True, "shutdown")


def test_a_worker_sees_when_a_job_has_begun() -> None:
    file = new_file()
    worker, process = Beginning(os.dup(file)), Beginning(file)
    worker.clear()
    assert not worker.is_written()
    now = time.monotonic()
    process.write(now)
    assert worker.is_written()
    assert worker.read() == now
    worker.clear()
    assert not process.is_written()
    # Whatever a task writes there: the job counts as begun, and is not run again.
    process.write(struct.unpack("=d", b"\xff" * 8)[0])
    assert worker.is_written()
