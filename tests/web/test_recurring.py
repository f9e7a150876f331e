"""Crontab items of workers: when they are due, which runs were missed, and a run by hand."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from graphile_worker_py import Runner
from graphile_worker_py.cron import parse_crontab
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.cron.published import as_json, from_json, in_words
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.node import WITHOUT_SIDE_SCHEMA

HTML = {"accept": "text/html"}
CRONTAB = """
0 4 * * 1 nightly ?id=weekly&fill=1d&queue=reports {"depth": 5, "token": "x"}
#py: timezone=Europe/Berlin jitter=30s
#py: 30 9 1 * * morning_mail
"""


async def items_of(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """What the API says of the items, by identifier."""
    found = (await client.get("/api/v1/cron")).json()["items"]
    return {item["identifier"]: item for item in found}


async def test_items_are_shown_with_their_next_runs_and_run_by_hand(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    await client.get("/api/v1/stats")

    async def published() -> bool:
        return bool((await items_of(client)).get("weekly", {}).get("task"))

    async with Runner(dsn, tasks={"other": print}, crontab=CRONTAB):
        await eventually(published)
        items = await items_of(client)
        page = await client.get("/recurring", headers=HTML)
        answer = await client.post("/recurring/run", data={"item": "weekly"})
    weekly = items["weekly"]
    following = datetime.fromisoformat(weekly["next_execution"])
    assert following > datetime.now(UTC)
    assert (following.weekday(), following.hour, following.minute) == (0, 4, 0)
    assert weekly["when"] == "at 04:00 on Monday (UTC)"
    assert (weekly["task"], weekly["backfill_period"], weekly["missed"]) == ("nightly", 86400, 0)
    assert items["morning_mail"]["when"] == "at 09:30 on day 1 of the month (Europe/Berlin)"
    assert "At 04:00 on Monday (UTC)" in page.text
    assert "backfilled for 24 h" in page.text
    (job,) = stored.all()
    assert answer.headers["location"] == f"/jobs/{job['id']}?done=add&n=1"
    assert (job["task_identifier"], job["queue_name"]) == ("nightly", "reports")
    assert job["payload"]["depth"] == 5
    assert job["payload"]["_cron"]["backfilled"] is False
    assert stored.query("select last_execution from graphile_worker._private_known_crontabs") == [
        {"last_execution": None},
        {"last_execution": None},
    ]


async def test_missed_runs_and_items_without_a_worker_are_named(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    await client.get("/api/v1/stats")
    (item,) = parse_crontab("0 * * * * hourly")
    stored.query(
        "insert into graphile_worker_py.crontab_items values"
        " ('graphile_worker', 'hourly', %s::text::json, now() - interval '1 day')",
        json.dumps(as_json(item)),
    )
    stored.query(
        "insert into graphile_worker._private_known_crontabs values"
        " ('hourly', now() - interval '9 days', date_trunc('hour', now()) - interval '5 hours'),"
        " ('of node', now(), null)"
    )
    items = await items_of(client)
    assert items["hourly"]["missed"] in {4, 5}  # the run of this hour is not late at once
    assert (items["hourly"]["is_scheduled"], items["hourly"]["next_execution"]) == (False, None)
    assert (items["of node"]["task"], items["of node"]["missed"]) == (None, 0)
    page = await client.get("/recurring", headers=HTML)
    assert "no worker" in page.text
    answer = await client.post("/recurring/run", data={"item": "of node"})
    assert answer.status_code == 404


@WITHOUT_SIDE_SCHEMA
async def test_workers_without_the_side_schema_write_no_items(dsn: str, stored: Jobs) -> None:
    async with Runner(dsn, tasks={"a": print}, crontab="0 4 * * * a", no_side_schema=True):
        known = "select identifier from graphile_worker._private_known_crontabs"
        await eventually(lambda: stored.query(known) == [{"identifier": "a"}])
    assert stored.query("select to_regclass('graphile_worker_py.crontab_items') as it") == [
        {"it": None}
    ]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0 * * * *", "every hour"),
        ("0 */6 * * *", "at 00:00, 06:00, 12:00 and 18:00"),
        ("0 */2 * * *", "every 2 hours"),
        ("30 2 * * *", "at 02:30"),
        ("0,30 4 1,15 * *", "at 04:00 and 04:30 on day 1 and 15 of the month"),
        ("0 9 * * 1-5", "at 09:00 on weekdays"),
        ("0 9 1 1,7 *", "at 09:00 on day 1 of the month in January and July"),
        ("0 0 13 * 5", "at 00:00 on day 13 of the month and on Friday"),
        ("*/15 8-18 * * 1-5", "every 15 minutes, from 08:00 to 18:59 on weekdays"),
        ("5 * * * *", "at minute 5 of each hour"),
        ("7,9 8-20 * * *", "at minute 7 and 9, from 08:00 to 20:59"),
        ("0 0,3,4,5,9 * * *", "on the hour, at 00:00, 03:00, 04:00, 05:00 and 09:00"),
        ("1-5 1,3 * * *", "at minute 1, 2, 3, 4 and 5, in the hours 1 and 3"),
    ],
)
def test_a_pattern_is_told_in_words_and_survives_as_json(pattern: str, words: str) -> None:
    (item,) = parse_crontab(f'{pattern} task ?jobKey=k&max=3 {{"a": 1}}')
    assert isinstance(item.match, Pattern)
    assert in_words(item.match) == words
    again = from_json(item.identifier, as_json(item))
    assert (again.match, again.options, again.payload) == (item.match, item.options, item.payload)
