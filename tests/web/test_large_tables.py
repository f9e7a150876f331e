"""Numbers and lists of large tables: bounded, and honest about it."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import census, windows
from tests.support.eventually import eventually
from tests.support.jobs import Jobs

FILL = """
insert into graphile_worker._private_jobs (task_id, attempts, last_error)
select (select id from graphile_worker._private_tasks where identifier = 'a'),
  case when n <= 3 then 25 else 0 end, case when n <= 3 then 'no' end
from generate_series(1, 250) as n
"""


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks and windows of 100 jobs, so that 250 jobs are a large table."""
    monkeypatch.setattr(census, "CHUNK", 100)
    monkeypatch.setattr(windows, "WINDOW", 100)
    return iter(())


async def test_a_sweep_counts_all_jobs_and_says_what_it_is(
    client: httpx.AsyncClient, stored: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphile_worker_py.web.census.CHUNK", 100)
    monkeypatch.setattr(census, "CHUNK", 100)
    stored.add("a")
    stored.query(FILL)

    async def swept() -> bool:
        kind: str = (await client.get("/api/v1/stats")).json()["kind"]
        return kind == "sweep"

    await eventually(swept)
    stats = (await client.get("/api/v1/stats")).json()
    assert stats["states"] == {"ready": 248, "scheduled": 0, "running": 0, "failed": 3}
    assert stats["as_of"] is not None


async def test_a_list_says_where_its_window_ends_and_goes_on_there(
    client: httpx.AsyncClient, stored: Jobs, small_windows: None
) -> None:
    stored.add("a")
    stored.query(FILL)
    found: list[int] = []
    ends: list[int] = []
    after = None
    while True:
        parameters = {"error": "no", "q": "error:no", **({"after": after} if after else {})}
        page = (await client.get("/api/v1/jobs", params=parameters)).json()
        found += [job["id"] for job in page["items"]]
        ends.append(page["window"]["from_id"])
        after = page["next"]
        if after is None:
            break
    assert found == [4, 3, 2]
    assert ends == [152, 52, 1]
    assert page["window"]["complete"]


async def test_failed_jobs_are_shown_although_no_new_one_is(
    client: httpx.AsyncClient, stored: Jobs, small_windows: None
) -> None:
    stored.add("a")
    stored.query(FILL)

    async def seen() -> bool:
        page = await client.get("/jobs?q=state:failed", headers={"accept": "text/html"})
        return "Some of the newest failed jobs" in page.text and "/jobs/4" in page.text

    await eventually(seen)


async def test_a_bulk_action_reaches_all_windows(
    client: httpx.AsyncClient, stored: Jobs, small_windows: None
) -> None:
    stored.add("a")
    stored.query(FILL)
    done = await client.post("/api/v1/jobs/actions", json={"action": "retry", "filter": "error:no"})
    assert (done.json()["count"], done.json()["complete"]) == (3, True)


async def test_50_tabs_cost_the_database_what_one_costs(
    client: httpx.AsyncClient, stored: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    run = Database.run

    async def counted(database: Database, query: Query[Any], **options: Any) -> Any:
        sent.append(query.text)
        return await run(database, query, **options)

    stored.add("a")
    await client.get("/")
    monkeypatch.setattr(Database, "run", counted)
    answers = await asyncio.gather(*(client.get("/") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    # Each statement once for every two seconds, and a sweep.
    assert max(Counter(sent).values(), default=0) < 10
