"""The asyncio helpers: what a cancellation does at each moment."""

import asyncio

import pytest

from graphile_worker_py import aio


async def test_work_that_is_to_finish_does_so_though_the_waiting_task_is_cancelled() -> None:
    go, done = asyncio.Event(), list[str]()

    async def work() -> str:
        await go.wait()
        done.append("done")
        return "result"

    waiting = asyncio.create_task(aio.finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == ["done"]


async def test_finish_hands_on_results_and_errors() -> None:
    async def work() -> int:
        return 7

    async def fail() -> None:
        raise ValueError("no")

    assert await aio.finish(work()) == 7
    with pytest.raises(ValueError, match="no"):
        await aio.finish(fail())


async def test_an_error_of_the_work_goes_before_the_cancellation() -> None:
    go = asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise ValueError("no")

    waiting = asyncio.create_task(aio.finish(fail()))
    await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    with pytest.raises(ValueError, match="no"):
        await waiting


async def test_waiting_for_an_event_tells_whether_it_came() -> None:
    event = asyncio.Event()
    assert not await aio.wait_for(event, 0)
    assert not await aio.wait_for(event, -1)
    assert not await aio.wait_for(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await aio.wait_for(event, None)
    assert await aio.wait_for(event, 0)


async def test_waiting_for_an_event_can_be_cancelled() -> None:
    waiting = asyncio.create_task(aio.wait_for(asyncio.Event(), 3600))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_each_cancellation_is_told_to_work_that_ends_by_itself() -> None:
    told, go = list[str](), asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "result"

    waiting = asyncio.create_task(aio.run_to_end(work(), on_cancel=lambda: told.append("stop")))
    for count in (1, 2):
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        assert told == ["stop"] * count
        assert not waiting.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_run_to_end_hands_on_results_and_errors() -> None:
    async def work() -> int:
        return 7

    async def fail() -> None:
        raise ValueError("no")

    assert await aio.run_to_end(work(), on_cancel=pytest.fail) == 7
    with pytest.raises(ValueError, match="no"):
        await aio.run_to_end(fail(), on_cancel=pytest.fail)


async def test_a_crew_is_waited_for() -> None:
    crew, go, ended = aio.Crew(), asyncio.Event(), list[str]()

    async def member(name: str) -> None:
        await go.wait()
        ended.append(name)

    crew.start(member("a"), name="a")
    crew.start(member("b"), name="b")
    go.set()
    await asyncio.wait_for(crew.wait(), 5)
    assert sorted(ended) == ["a", "b"]


async def test_members_that_swallow_a_cancellation_are_cancelled_again_and_then_given_up() -> None:
    crew, release = aio.Crew(), asyncio.Event()
    swallowed = {"once": 0, "always": 0}

    async def once() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed["once"] += 1
        await asyncio.Event().wait()

    async def always() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                swallowed["always"] += 1

    crew.start(once(), name="once")
    crew.start(always(), name="always")
    await asyncio.sleep(0)
    assert await crew.cancel(patience=0.3, pause=0.1) == ["always"]
    await asyncio.wait_for(crew.wait(), 5)
    assert swallowed["once"] == 1
    # Once in each pause; a loop that stood still meanwhile may have left out a time.
    assert 2 <= swallowed["always"] <= 3
    release.set()


async def test_an_event_ends_a_block() -> None:
    event, steps = asyncio.Event(), list[str]()
    asyncio.get_running_loop().call_later(0.01, event.set)
    async with aio.until(event):
        steps.append("begun")
        await asyncio.Event().wait()
        steps.append("never")
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    assert steps == ["begun"]


async def test_a_block_that_ends_by_itself_needs_no_event() -> None:
    async with aio.until(asyncio.Event()):
        await asyncio.sleep(0)
    with pytest.raises(LookupError):
        async with aio.until(asyncio.Event()):
            raise LookupError


async def test_a_block_may_end_at_the_very_moment_of_the_event() -> None:
    event = asyncio.Event()
    for turns in range(6):
        event.clear()
        async with aio.until(event):
            await asyncio.sleep(0)
            event.set()
            for _ in range(turns):
                await asyncio.sleep(0)
        # No cancellation is left over.
        await asyncio.sleep(0)


async def test_a_cancellation_from_outside_passes_through_the_block() -> None:
    event = asyncio.Event()

    async def block() -> None:
        async with aio.until(event):
            await asyncio.Event().wait()

    for event_too in (False, True):
        running = asyncio.create_task(block())
        await asyncio.sleep(0)
        if event_too:
            event.set()
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
