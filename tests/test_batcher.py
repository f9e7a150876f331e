"""Single items are gathered while a write is under way, and none is lost."""

import asyncio
from collections.abc import Sequence

import pytest

from graphile_worker_py.workers.batcher import MOST, Batcher
from tests.support.eventually import eventually


class Writer:
    """Writes batches, each when the test lets it."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []
        self.written: list[list[int]] = []
        self.permits = asyncio.Semaphore(0)

    async def write(self, batch: Sequence[int]) -> None:
        """Write a batch."""
        self.begun.append(list(batch))
        await self.permits.acquire()
        self.written.append(list(batch))

    def allow(self, count: int = 1) -> None:
        """Let so many writes end."""
        for _ in range(count):
            self.permits.release()


async def test_items_that_come_during_a_write_go_together_in_the_next() -> None:
    writer = Writer()
    batcher = Batcher(writer.write, delay=-1)
    async with asyncio.TaskGroup() as group:
        group.create_task(batcher.run())
        batcher.put(1)
        await eventually(lambda: writer.begun == [[1]])
        for item in (2, 3, 4):
            batcher.put(item)
        writer.allow()
        await eventually(lambda: writer.begun == [[1], [2, 3, 4]])
        writer.allow()
        batcher.close()
    assert writer.written == [[1], [2, 3, 4]]


async def test_with_a_delay_an_item_waits_for_company() -> None:
    writer = Writer()
    writer.allow(10)
    batcher = Batcher(writer.write, delay=0.3)
    async with asyncio.TaskGroup() as group:
        group.create_task(batcher.run())
        batcher.put(1)
        for _ in range(3):  # in which it would begin, did it not wait
            await asyncio.sleep(0)
        batcher.put(2)
        assert writer.begun == []
        await eventually(lambda: writer.written == [[1, 2]])
        batcher.close()


async def test_closing_ends_the_delay_and_writes_what_is_there() -> None:
    writer = Writer()
    writer.allow(10)
    batcher = Batcher(writer.write, delay=3600)
    async with asyncio.TaskGroup() as group:
        group.create_task(batcher.run())
        batcher.put(1)
        await asyncio.sleep(0)
        batcher.close()
    assert writer.written == [[1]]


async def test_what_is_put_while_the_last_batch_is_written_is_written_too() -> None:
    writer = Writer()
    batcher = Batcher(writer.write, delay=0)
    async with asyncio.TaskGroup() as group:
        group.create_task(batcher.run())
        batcher.put(1)
        batcher.close()
        await eventually(lambda: writer.begun == [[1]])
        batcher.put(2)
        writer.allow(2)
    assert writer.written == [[1], [2]]


async def test_a_batcher_that_is_closed_without_items_ends() -> None:
    batcher = Batcher(Writer().write, delay=3600)
    batcher.close()
    await asyncio.wait_for(batcher.run(), 5)


async def test_no_batch_is_larger_than_a_statement_can_do_well() -> None:
    writer = Writer()
    writer.allow(10)
    batcher = Batcher(writer.write, delay=0)
    for item in range(2 * MOST + 1):
        batcher.put(item)
    batcher.close()
    await batcher.run()
    assert [len(batch) for batch in writer.written] == [MOST, MOST, 1]
    assert [item for batch in writer.written for item in batch] == list(range(2 * MOST + 1))


async def test_what_a_write_raises_ends_it() -> None:
    async def fail(batch: Sequence[int]) -> None:
        raise ValueError("no")

    batcher = Batcher(fail, delay=0)
    batcher.put(1)
    with pytest.raises(ValueError, match="no"):
        await batcher.run()
