"""Tests of the code that adds jobs, and of the tasks. Each has a database of its own."""

import pytest
from shop import Mail, send_mail, ship, sign_up

from graphile_worker_py import RetryIn
from graphile_worker_py.testing import Kit, SyncKit, TestClock


async def test_a_customer_is_welcomed(gw: Kit) -> None:
    await sign_up(gw.utils, "ada@example.com")
    job = await gw.assert_added(
        send_mail, {"to": "ada@example.com", "text": "Welcome"}, queue_name="mail"
    )
    assert job.max_attempts == 5
    await gw.refute_added("ship")


async def test_an_opinion_is_asked_for_after_three_days(gw: Kit, gw_clock: TestClock) -> None:
    await sign_up(gw.utils, "ada@example.com")
    first = await gw.drain(with_scheduled=False)
    assert [job.payload["text"] for job in first.completed] == ["Welcome"]
    gw_clock.travel(days=3)
    later = await gw.drain(with_scheduled=False)
    assert [job.payload["text"] for job in later.completed] == ["How do you like it?"]


async def test_an_order_is_announced(gw: Kit) -> None:
    await gw.utils.add_job(ship, {"customer": "ada@example.com"})
    report = await gw.drain()
    assert list(report.results.values()) == [None, "ada@example.com by the first server"]


async def test_the_second_attempt_takes_the_other_server(gw: Kit) -> None:
    sent = await gw.perform(send_mail, Mail("ada@example.com", "Hello"), attempt=2)
    assert sent == "ada@example.com by the second server"


async def test_a_server_that_does_not_answer_is_tried_later(gw: Kit) -> None:
    with pytest.raises(RetryIn):
        await gw.perform(send_mail, Mail("ada@unreachable.example", "Hello"))


async def test_jobs_run_where_they_are_added(gw: Kit) -> None:
    with gw.inline():
        await sign_up(gw.utils, "ada@example.com")
    assert await gw.all_added() == []


def test_plain_tests_have_the_same(gw_sync: SyncKit) -> None:
    gw_sync.utils.add_job(send_mail, Mail("ada@example.com", "Hello"))
    gw_sync.assert_added("send_mail", {"to": "ada@example.com"})
    assert len(gw_sync.drain().completed) == 1
